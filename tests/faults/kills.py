"""Protecting, publishing and restoring, killed with SIGKILL at random instants and run again.

    python -m tests.faults kills --times 100 --out kills.json

does what `test_kills.py` does a few times. Each job is the flow that people run, in a process of its own (forked from
one that has everything imported, or most kills would hit imports); it is killed after a share, drawn from a seed, of
the time that it takes undisturbed. What can be seen then is looked at; the same job run again must end as it does
undisturbed: byte-identical, nothing lost, nothing doubled, nothing half visible.
"""

import json
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from flows.protect import protect
from flows.publish import publish_folder
from flows.restore import serve_request
from storage.files import sha256_file
from storage.manifest import read_manifest, verify_variant
from storage.objects import open_store
from storage.settings import settings
from tasks.request import fetch_results, submit_request
from tests.faults.s3_faults import assert_whole
from tests.faults.s3_proxy import contents

SEEN = "started"
LONGEST = 300.0
"""Seconds after which a job hangs; none takes more than some on any machine."""


@dataclass
class Outcome:
    """What became of one kind of job. `finished`: it was done before the kill came."""

    kills: int = 0
    finished: int = 0
    undisturbed_seconds: float = 0.0
    instants: list[float] = field(default_factory=list)


class Job(Protocol):
    """A job on a world (`tests/flows/world.py`), made anew for each kill."""

    def prepare(self) -> None:
        """Bring the world to where the job begins."""

    def run(self) -> None:
        """Do it; in a process of its own."""

    def look(self) -> None:
        """See after a kill that nothing is half visible."""

    def check(self) -> None:
        """See at the end that the result is what it is undisturbed, once."""


class Protecting:
    """data/sample/clean becomes data/sample/protected."""

    def __init__(self) -> None:
        self.variant = settings().data_path("sample", "protected")
        self.expected = _digests(self.variant)

    def prepare(self) -> None:
        shutil.rmtree(self.variant, ignore_errors=True)
        shutil.rmtree(settings().home_path("work"), ignore_errors=True)

    def run(self) -> None:
        protect("sample")

    def look(self) -> None:
        if self.variant.exists():
            verify_variant(self.variant)

    def check(self) -> None:
        assert _digests(self.variant) == self.expected
        assert not list(self.variant.parent.glob(".*")), "something was left beside the variant"


class Publishing:
    """data/sample/protected becomes a version in the public bucket, below a prefix of this job's own."""

    expected: dict[str, str] | None = None

    def __init__(self) -> None:
        self.prefix = uuid4().hex[:12]
        self.variant = settings().data_path("sample", "protected")

    def prepare(self) -> None:
        return

    def run(self) -> None:
        os.environ["DMCP_S3_PREFIX"] = self.prefix
        settings.cache_clear()
        publish_folder(str(self.variant), "sample")

    def look(self) -> None:
        store = open_store(settings().model_copy(update={"s3_prefix": self.prefix}), "public")
        with tempfile.TemporaryDirectory() as scratch:
            assert_whole(store, "sample", Path(scratch))

    def check(self) -> None:
        store = open_store(settings().model_copy(update={"s3_prefix": self.prefix}), "public")
        found = contents(store)
        Publishing.expected = Publishing.expected or found  # the first is the undisturbed one
        assert found == Publishing.expected
        self.look()


class Restoring:
    """A request for every image of data/sample/protected, uploaded by somebody with a grant of exactly so many."""

    def __init__(self) -> None:
        from flows import access

        self.images = read_manifest(settings().data_path("sample", "protected")).samples
        self.name = f"ann-{uuid4().hex[:8]}"
        with access.registry() as book:
            token = book.add_user(self.name)
            book.grant(self.name, "sample", quota=self.images)
            self.request = submit_request(
                book,
                open_store(settings(), "private"),
                token,
                settings().data_path("sample", "protected"),
                work=settings().home_path("submit"),
                shard_size=32,
            )

    def prepare(self) -> None:
        return

    def run(self) -> None:
        from flows import access

        with access.registry() as book:
            done = book.get_request(self.request).state == "done"  # the kill came too late
        if not done:
            serve_request(self.request, force=True)

    def look(self) -> None:
        """What is released is charged and on record; what is in the bucket was released."""
        store, (used, entries) = open_store(settings(), "private"), self._account()
        shards = [shard for shard, _ in entries]
        keys = [info.key.rpartition("/")[2] for info in store.list(f"requests/{self.request}/")]
        there = {name for name in keys if name.startswith("result-")}
        assert len(shards) == len(set(shards)), f"a shard was released twice: {shards}"
        assert len(there) <= len(shards)
        assert used >= 32 * len(shards)

    def check(self) -> None:
        used, entries = self._account()
        assert used == self.images
        assert len(entries) == len(set(entries)), f"an attempt released a shard twice: {entries}"
        # Killed between the entry in the log and the release, a shard is entered again by the next attempt.
        assert {shard for shard, _ in entries} == set(range(self.images // 32)), entries
        with tempfile.TemporaryDirectory() as folder:
            done = fetch_results(open_store(settings(), "private"), self.request, Path(folder, "out"), Path(folder))
            assert (done.restored, len(done.refused)) == (self.images, 0)
            assert _pictures(Path(folder, "out")) == _pictures(settings().data_path("sample", "clean"))

    def _account(self) -> tuple[int, list[tuple[int, int]]]:
        """Images charged; shard and attempt of each entry that says a shard is about to be released."""
        from flows import access
        from storage.audit import open_audit_log

        with access.registry() as book, open_audit_log(settings()) as log:
            assert log.verify().fault is None
            entries = log.entries(action="release", request_id=self.request)
            found = [json.loads(entry.details) for entry in entries]
            return book.list_grants(self.name)[0].used, [(entry["shard"], entry["attempt"]) for entry in found]


JOBS: dict[str, Callable[[], Job]] = {"protect": Protecting, "publish": Publishing, "restore": Restoring}


@contextmanager
def launcher() -> Iterator[Any]:
    """Starts processes that have everything imported already, in the folder and with the settings of this one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    yield context


def started(context: Any, job: Job) -> Any:
    """Run the job in a process group of its own; returns when it has begun."""
    begun = context.Event()
    process = context.Process(target=_child, args=(job, begun, str(Path.cwd()), dict(os.environ)))
    process.start()
    assert begun.wait(LONGEST), "the process did not start"
    return process


def _child(job: Job, begun: Any, folder: str, environment: dict[str, str]) -> None:
    os.setsid()
    os.environ.update(environment)
    os.chdir(folder)
    settings.cache_clear()
    begun.set()
    job.run()


def undisturbed(context: Any, make: Callable[[], Job]) -> float:
    """Do the job once without a kill, check it, and tell how many seconds it took."""
    job = make()
    job.prepare()
    begin = time.monotonic()
    finish(context, job)
    seconds = time.monotonic() - begin
    job.check()
    return seconds


def finish(context: Any, job: Job) -> None:
    """Run the job to its end."""
    process = started(context, job)
    process.join(LONGEST)
    assert process.exitcode == 0, f"it ended with {process.exitcode}"


def kill_once(context: Any, make: Callable[[], Job], instant: float, outcome: Outcome) -> None:
    """Begin the job, kill it after `instant` seconds, look, and run it again."""
    job = make()
    job.prepare()
    process = started(context, job)
    process.join(instant)
    if process.exitcode is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
        outcome.kills += 1
    else:
        assert process.exitcode == 0
        outcome.finished += 1
    outcome.instants.append(round(instant, 3))
    job.look()
    finish(context, job)
    job.check()


def _digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in sorted(folder.iterdir())}


def _pictures(folder: Path) -> list[bytes]:
    """Pixels of a variant's images, in its order."""
    from tasks.variants import load_arrays

    return [image.tobytes() for image in load_arrays(folder).images]
