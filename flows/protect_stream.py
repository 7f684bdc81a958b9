"""Protecting without a local copy: from a clean variant at an address to a published version at another.

    done = run_protect_stream("s3://private/clean", "s3://public", surrogate, params, key_id)

Shards go through the local disk one a worker, by `tasks/stream.py`. Protected they are, byte for byte, what
`flows/protect.py` makes of a folder, and the version is what `dmcp publish` would make of that folder: its manifest
comes last. A run that was killed goes on: what is on record and in the bucket is not computed again.
"""

import shutil
import threading
import time
from dataclasses import asdict
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import uuid4

from flows import access
from flows.console import note
from flows.engine import flow, over_shards, task
from flows.meter import meter
from flows.protect import facts_of, job_of, shared_of
from flows.publish import and_then, carried_over, check_overlap, clear_leftovers, policy
from flows.runners import check_home
from flows.services import object_store
from flows.work import Work, read_job, work_for
from storage.addresses import open_address, read_remote_manifest
from storage.committing import complete, open_publication
from storage.croissant import About
from storage.datacard import terms_text
from storage.errors import CorruptShard, ObjectStoreError, UsageError, VersionsOverlap
from storage.manifest import Manifest
from storage.names import check_dataset_name
from storage.objects import ObjectStore
from storage.overlaps import published_shards, remove_unnamed
from storage.settings import settings
from storage.shards import ShardInfo
from storage.versions import PAYLOADS_NAME
from tasks.params import ProtectParams
from tasks.protect import ShardReport, make_library, method_named, summarise, surrogate_features
from tasks.stream import SCRATCH, made_of, remote_reader, stream_shard
from tasks.stream_records import Records


def run_protect_stream(
    source: str,
    target: str,
    surrogate: Path,
    params: ProtectParams,
    key_id: str,
    terms: str | None = None,
    about: About | None = None,
) -> dict[str, Any]:
    """Protect the variant at one address and publish it at another.

    Args:
        source: s3://BUCKET/PREFIX with the shards and manifest.json of a clean variant; every image needs a label.
        target: s3://BUCKET/PREFIX as `dmcp publish` uses it: DATASET/shards, DATASET/versions, ...
        surrogate: model.pt of the surrogate.
        params: the method's parameters.
        key_id: which key of the vault seals.
        terms, about: as `flows.publish.publish_once` takes them.

    Returns:
        what `metrics/protect.json` holds, and `version`, `withdrawn` (ids), `shards_sent`, `shards_there` and
        `guarantee`.

    Raises:
        NotFound: there is no variant at `source`.
        UnknownKey, VaultLocked, ParameterError: as `flows.protect.run_protect`.
        CorruptManifest, CorruptShard, UnsupportedImage, DatasetError: the variant can not be read.
        UsageError: an address or the data set's name is impossible, or nothing of the variant could be protected.
        VersionsOverlap: as `flows.publish.publish_once`; the shard that shows it is not sent, and those that were are
            removed again.
        PublicationConflict, ObjectStoreError: as `storage.publication.publish`; running it again goes on.
        WorkspaceBusy: another process does the very same.
    """
    said = asdict(about or About())
    said["published"] = said["published"].isoformat() if said["published"] else None
    return protect_addresses(source, target, str(surrogate), params.model_dump(), key_id, terms, said)


@flow("protect-stream", sharded=True)
def protect_addresses(
    source: str,
    target: str,
    surrogate: str,
    parameters: dict[str, Any],
    key_id: str,
    terms: str | None,
    about: dict[str, str | None],
) -> dict[str, Any]:
    """Protect all shards of a variant from address to address, then publish the version."""
    started = time.monotonic()
    with object_store():
        run = uuid4().hex
        clean, public = _place(run, source), _place(run, target)
        manifest = read_remote_manifest(clean)
        dataset = check_dataset_name(manifest.dataset)
        access.data_key(key_id)  # before anything is computed: is the key there?
        facts = facts_of(manifest, Path(surrogate), parameters, key_id)
        with work_for("protect-stream", dataset, facts) as work:
            _prepare(work, facts, clean, manifest, Path(surrogate), {"source": source, "target": target, "run": run})
            opened = open_publication(public, dataset)
            terms, said = carried_over(public, dataset, terms, _about(about))
            clear_leftovers(public, dataset, [shard.sha256 for shard in _made(work, manifest)])
            try:
                there = _stream_shards(manifest, work)
                metrics, protected = _gather(work, manifest)
                earlier = check_overlap(public, dataset, protected)
            except VersionsOverlap:  # what was sent and is refused does not stay
                remove_unnamed(public, dataset, _made(work, manifest))
                raise
            payloads = _payloads(work, manifest, PAYLOADS_NAME)
            version, gone = and_then(
                lambda: complete(opened, protected, terms_text(terms), said, payloads, send=_again),
                public,
                protected,
                terms,
                earlier,
            )
            work.keep_only_this(())  # slots there are none; what other parameters or older code left goes
    metrics |= {
        "wall_seconds": round(time.monotonic() - started, 3),
        "workers": settings().workers,
        "key_id": key_id,
        "version": version,
        "withdrawn": [other.id for other in gone],
        "shards_sent": len(manifest.shards) - there,
        "shards_there": there,
        "guarantee": opened.guarantee.explanation,
    }
    note(f"Protected {metrics['protected']:,} of {metrics['images']:,} images as {dataset}@{version}.")
    return metrics


def _prepare(
    work: Work,
    facts: dict[str, Any],
    clean: ObjectStore,
    manifest: Manifest,
    surrogate: Path,
    addresses: dict[str, str],
) -> None:
    """Leave in the work folder what all shards share, and nothing of a run that was killed but its records."""
    for left in work.folder.glob(f"{SCRATCH}*"):
        shutil.rmtree(left, ignore_errors=True)
    wanted, model, library = method_named(facts["parameters"]), surrogate.resolve(), work.folder / "library.npy"
    surrogate_features(model, wanted.layer, facts["device"])  # loaded before threads use it
    if not library.exists():
        read = remote_reader(manifest, clean, work.folder)
        make_library(manifest, read, model, library, wanted, facts["device"])
    shared = {"surrogate": model, "library": library, "refuse": policy() == "refuse"}
    work.write_job(facts | addresses | shared_of(manifest) | shared)


def _stream_shards(manifest: Manifest, work: Work) -> int:
    """See that all shards are in the bucket; how many were there."""
    there = 0
    with meter("protect", len(manifest.shards), manifest.samples) as progress:

        def finished(result: dict[str, Any]) -> None:
            nonlocal there
            there += result["reused"]
            progress.advance(result["images"], result["reused"])

        jobs = ((s.name, s.samples, s.bytes, s.sha256, str(work.folder)) for s in manifest.shards)
        over_shards(stream_one, jobs, finished)
    return there


@task("protect shard in a bucket", "protect {name}")
def stream_one(name: str, samples: int, size: int, sha256: str, work: str) -> dict[str, Any]:
    """Protect one shard, unless an earlier run did. The key is taken from the vault here and goes nowhere else."""
    check_home(work)
    shared = read_job(work)
    shard = ShardInfo(name, samples, size, sha256)
    source, target = (_place(shared["run"], shared[which]) for which in ("source", "target"))
    known = _known(shared["run"], shared["target"], shared["dataset"]) if shared["refuse"] else {}
    _, reused = stream_shard(
        shard, source, target, job_of(shared), lambda: access.data_key(shared["key"]), Path(work), known
    )
    return {"images": samples, "reused": reused}


_OPENING = threading.Lock()


@lru_cache(maxsize=4)
def _opened(run: str, address: str) -> ObjectStore:
    return open_address(settings(), address)


@lru_cache(maxsize=4)
def _known(run: str, address: str, dataset: str) -> dict[str, set[str]]:
    """What is public of a data set at an address, looked up once in a process and run."""
    return published_shards(_place(run, address), dataset)


def _place(run: str, address: str) -> ObjectStore:
    """An address, opened once in a process and run: that takes longer than a small shard does."""
    with _OPENING:
        return _opened(run, address)


def _gather(work: Work, manifest: Manifest) -> tuple[dict[str, Any], Manifest]:
    """The metrics of all shards, and the protected variant's manifest."""
    records, shards, reports = Records(work.folder), [], []
    for shard in manifest.shards:
        done = records.find(shard.sha256)
        if done is None:
            raise CorruptShard(f"What was made of {shard.name} is not on record.", "Run the same command again.")
        shards.append(made_of(shard, done))
        reports.append(ShardReport(**done.report | {"shard": shard.name}))
    protected = manifest.model_copy(update={"shards": shards})
    if not protected.samples:
        raise UsageError(
            f"No image of {manifest.dataset} could be protected; nothing is published.", "Try other parameters (--set)."
        )
    return summarise(reports), protected


def _made(work: Work, manifest: Manifest) -> list[ShardInfo]:
    """The protected shards that are on record."""
    records = Records(work.folder)
    return [made_of(shard, done) for shard in manifest.shards if (done := records.find(shard.sha256)) is not None]


def _again(shard: ShardInfo) -> None:
    raise ObjectStoreError(
        f"{shard.name} was removed from the bucket while the others were made.", "Run the same command again."
    )


def _payloads(work: Work, manifest: Manifest, name: str) -> Path:
    """The file of payloads that travel beside the pixels, of this variant alone; empty where there are none."""
    records = Records(work.folder)
    records.keep_only([shard.sha256 for shard in manifest.shards])
    records.write_payloads(work.folder / name)
    return work.folder / name


def _about(said: dict[str, str | None]) -> About:
    day = said["published"]
    return About(said["contact"], said["creator"], said["url"], date.fromisoformat(day) if day else None)
