"""Publishing, pulling and restoring through an object store that fails, again and again until it is done.

    python -m tests.faults s3 --times 100 --out docs/results/s3-faults.json

does what `test_s3_faults.py` does a few times. After each try, whether it failed or not, everything that a reader can
see is looked at: a version that is visible is whole. At the end the bucket is what it is without faults, byte for byte.
"""

import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from storage.errors import DmcpError, NotFound
from storage.manifest import verify_variant
from storage.objects import ObjectStore
from storage.publication import list_versions, publish, pull
from storage.server import ServerAddress
from tests.faults.s3_proxy import Fault, faulty, snapshot

RATE = {1: 0.05, 3: 0.3}
"""Share of the requests that meet a fault, by how often the client tries each: so that some runs fail, and not all."""
MOST_TRIES = 60
"""So many tries that all fail mean a fault of ours."""


@dataclass
class Account:
    """What happened."""

    runs: int = 0
    tries: int = 0
    requests: int = 0
    met: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


def tree(folder: Path) -> dict[str, bytes]:
    """Files of a folder by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_whole(store: ObjectStore, dataset: str, scratch: Path) -> int:
    """Pull every version that is visible, past all faults; how many there are. None may be half there."""
    try:
        versions = list_versions(store, dataset)
    except NotFound:
        return 0
    for version in versions:
        target = scratch / uuid4().hex
        pull(store, dataset, target, version.id)
        verify_variant(target)
        shutil.rmtree(target)
    return len(versions)


def publish_and_pull(
    server: ServerAddress,
    variant: Path,
    scratch: Path,
    seed: int,
    account: Account,
    faults: tuple[Fault, ...] = tuple(Fault),
    attempts: int = 3,
) -> None:
    """Publish a variant and pull it again through faults, each until it is done; nothing is lost, doubled or half."""
    bucket, reference = f"faults-{uuid4().hex[:12]}", f"whole-{uuid4().hex[:12]}"
    with faulty(server) as honest:
        publish(variant, honest.address.store(reference), "tiny", "Mine.")
    started = time.monotonic()
    with faulty(server, RATE[attempts], faults, seed) as broken:
        store, plain = broken.address.store(bucket, attempts=attempts), server.store(bucket)
        plain.ensure_bucket()
        until_done(
            lambda: publish(variant, store, "tiny", "Mine."), account, lambda: assert_whole(plain, "tiny", scratch)
        )
        until_done(lambda: pull(store, "tiny", scratch / bucket), account)
        account.requests += broken.requests
        account.met.update(fault.name for fault in broken.met.elements())
    account.runs += 1
    account.seconds += time.monotonic() - started
    assert snapshot(server, bucket) == snapshot(server, reference)
    came = tree(scratch / bucket)
    assert {name: came[name] for name in tree(variant)} == tree(variant)
    assert [p.name for p in scratch.iterdir() if bucket in p.name] == [bucket]  # nothing beside it
    shutil.rmtree(scratch / bucket)


def until_done(act: Callable[[], object], account: Account, look: Callable[[], object] = lambda: None) -> None:
    """Try until it is done; whatever fails must be one of this project's errors."""
    for _ in range(MOST_TRIES):
        account.tries += 1
        try:
            act()
        except DmcpError as error:
            account.failures[type(error).__name__] += 1
            look()
        else:
            look()
            return
    raise AssertionError(f"not done after {MOST_TRIES} tries: {dict(account.failures)}")
