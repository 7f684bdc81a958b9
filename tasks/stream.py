"""Protect a variant that lies in an object store, one shard at a time: fetched, protected, checked, sent, removed.

A shard takes the place of one file on the local disk: the clean one is removed when it is read, and the protected one,
which is written after that, when the bucket holds it. What is done is on record (`tasks/stream_records.py`).
"""

import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from pathlib import Path

from storage.addresses import fetch_shard
from storage.committing import send_shard
from storage.errors import DmcpError
from storage.manifest import Manifest
from storage.objects import ObjectStore
from storage.overlaps import refusal
from storage.s3_client import digest_file
from storage.shards import Sample, ShardInfo, read_shard
from storage.versions import shard_key
from tasks.method.seal import DataKey
from tasks.protect import ProtectJob, protect_shard
from tasks.publish import Inspection
from tasks.stream_records import Done, Records


def stream_shard(
    shard: ShardInfo,
    source: ObjectStore,
    target: ObjectStore,
    job: ProtectJob,
    key: Callable[[], DataKey],
    folder: Path,
    known: Mapping[str, Collection[str]],
) -> tuple[Done, bool]:
    """See that the protected shard lies in the bucket, under its digest, and is on record.

    Args:
        shard: the clean one, as the manifest names it.
        source: where the clean variant lies.
        target: where protected shards are published.
        job: what all shards share.
        key: gives the data set's key; asked only when something is to be computed.
        folder: the work folder, with the records.
        known: SHA-256 of shards that are public, by name; another one of such a name is not sent.

    Returns:
        what was made of it, and whether that was there already.

    Raises:
        CorruptShard: the clean shard is missing, damaged or not the manifest's.
        NotProtected, PayloadMissing: an image would be published that must not be; nothing of its shard was sent.
        VersionsOverlap: what is public shows the same images otherwise.
        ObjectStoreError: a server failed.
    """
    records = Records(folder)
    done = records.find(shard.sha256)
    if done is not None and target.holds(_key(job, shard, done), done.digest):
        return done, True
    with tempfile.TemporaryDirectory(dir=folder, prefix=SCRATCH) as name:
        clean, protected = Path(name, "clean.tar"), Path(name, "protected.tar")
        fetch_shard(source, shard, clean)
        report = asdict(protect_shard(clean, protected, job, key(), remove_source=True))
        images, payloads = _inspected(protected)
        done = Done(images, digest_file(protected), report | {"shard": shard.name})
        if done.digest.sha256 not in known.get(shard.name, (done.digest.sha256,)):
            raise refusal(f"A version of {job.dataset}")
        send_shard(protected, target, _key(job, shard, done), done.digest)
    records.add(shard.sha256, done, payloads)
    return done, False


SCRATCH = "shard-"
"""What the names of folders begin with that hold a shard under way; one of a killed run is removed by the next."""


def made_of(shard: ShardInfo, done: Done) -> ShardInfo:
    """The entry of the protected shard in the manifest."""
    return ShardInfo(shard.name, done.samples, done.digest.size, done.digest.sha256)


def _key(job: ProtectJob, shard: ShardInfo, done: Done) -> str:
    return shard_key(job.dataset, made_of(shard, done))


def _inspected(protected: Path) -> tuple[int, set[tuple[bytes, bytes]]]:
    """How many images, and what travels beside their pixels, when all pass what `dmcp publish` asks of each."""
    seen = Inspection()
    samples = read_shard(protected)
    for sample in samples:
        try:
            seen.check(sample.png)
        except DmcpError as error:
            what = f"Image {sample.key} must not be published: {error.what}"
            raise type(error)(what, "Nothing of its shard was sent.") from error
    return len(samples), seen.found


def remote_reader(manifest: Manifest, source: ObjectStore, folder: Path) -> Callable[[str], list[Sample]]:
    """Reads the shards of a variant in a bucket by their names, each by way of a file that is removed at once."""
    shards = {shard.name: shard for shard in manifest.shards}

    def read(name: str) -> list[Sample]:
        with tempfile.TemporaryDirectory(dir=folder, prefix=SCRATCH) as scratch:
            path = Path(scratch, "clean.tar")
            fetch_shard(source, shards[name], path)
            return read_shard(path)

    return read
