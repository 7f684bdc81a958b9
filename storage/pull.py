"""Fetching a published version: what anyone may have, checked against its manifest, placed whole or not at all."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from storage.datacard import local_card
from storage.disk import writing
from storage.errors import CorruptManifest, CorruptShard, NotFound, ObjectStoreError, UsageError, WorkspaceBusy
from storage.files import Progress, replace_directory, sha256_file, write_atomic
from storage.manifest import MANIFEST_NAME, Manifest, read_manifest, write_manifest
from storage.objects import ObjectStore
from storage.shards import ShardInfo
from storage.transfer import Meter, in_parallel
from storage.versions import (
    CROISSANT_NAME,
    LICENSE_NAME,
    PAYLOADS_NAME,
    README_NAME,
    read_version,
    shard_key,
    version_key,
)

_BESIDE = (README_NAME, LICENSE_NAME, CROISSANT_NAME, PAYLOADS_NAME)


@dataclass(frozen=True)
class PulledVersion:
    """What `pull` did: the version, what it holds, which shards came and which were there already."""

    dataset: str
    id: str
    samples: int
    bytes: int
    shards_downloaded: int
    shards_kept: int


def pull(
    store: ObjectStore,
    dataset: str,
    out: Path,
    version: str = "latest",
    progress: Progress | None = None,
    workers: int = 4,
) -> PulledVersion:
    """Fetch a published version as a variant folder, with the files that lie beside its manifest.

    Every shard's size and SHA-256 is the manifest's, and manifest and terms are what the version's id says. Shards
    that an earlier, killed pull fetched, or that an older version in `out` shares, are kept. `out` appears, or is
    replaced, at the end and at once. payloads.jsonl comes as it is, without a digest: it repeats what lies in the
    shards, and whoever restores believes a payload only when its seal opens. croissant.json too, which an older version
    has not; in README.md the shards get their names in `out`.

    Args:
        store: the public bucket.
        dataset: name in the bucket.
        out: the folder to make; one that exists must be empty or an earlier pull's.
        version: an id, or `latest`.
        progress: told the bytes fetched.
        workers: shards at once.

    Raises:
        NotFound: no such data set or version, or a shard is gone from the bucket.
        CorruptManifest, CorruptShard: what lies in the bucket is not what it should be; `out` is as it was.
        UsageError: `out` holds something else.
        WorkspaceBusy: another process pulls into `out`.
        ObjectStoreError: the server failed; calling again goes on from there.
        DiskFault: the disk is full, or `out` can not be written; likewise.
    """
    out = Path(os.path.abspath(out))  # noqa: PTH100 - a link in place of `out` is replaced, not followed
    _check_target(out)
    version, manifest, terms = read_version(store, dataset, version)
    readme = store.get_bytes(version_key(dataset, version, README_NAME))
    total = sum(shard.bytes for shard in manifest.shards)
    meter = Meter("download", total, progress)
    with _work_folder(out) as work:
        fetched = in_parallel(lambda s: _fetch_shard(store, dataset, s, work, out, meter), manifest.shards, workers)
        with replace_directory(out) as folder:
            for shard in manifest.shards:
                _link(work / shard.name, folder / shard.name)
            write_manifest(folder, manifest)
            write_atomic(folder / README_NAME, local_card(readme, manifest))
            write_atomic(folder / LICENSE_NAME, terms.encode())
            # To strangers S3 refuses what is not there, instead of saying so; and what it repeats has come already.
            for name in (PAYLOADS_NAME, CROISSANT_NAME):
                with suppress(NotFound, ObjectStoreError):
                    store.get_file(version_key(dataset, version, name), folder / name)
        shutil.rmtree(work, ignore_errors=True)
    return PulledVersion(dataset, version, manifest.samples, total, sum(fetched), len(fetched) - sum(fetched))


def _fetch_shard(store: ObjectStore, dataset: str, shard: ShardInfo, work: Path, out: Path, meter: Meter) -> bool:
    """See that a shard lies in the work folder; whether it had to be downloaded."""
    path, key = work / shard.name, shard_key(dataset, shard)
    if not _is_shard(path, shard):
        if not _is_shard(out / shard.name, shard):
            _download(store, key, shard, path, meter)
            return True
        path.unlink(missing_ok=True)
        _link(out / shard.name, path)
    meter.add(shard.bytes)
    return False


def _download(store: ObjectStore, key: str, shard: ShardInfo, path: Path, meter: Meter) -> None:
    cure = "Ask its publisher to publish the same variant again: that replaces what is wrong. What came is kept."
    try:
        store.get_file(key, path, shard.sha256, shard.bytes, meter.add)
    except NotFound as error:
        raise NotFound(f"The shard {shard.name} is missing from the bucket: {store.where(key)}.", cure) from error
    except CorruptShard as error:
        raise CorruptShard(f"The shard {shard.name} in the bucket is corrupt: {error.what}", cure) from error


def _is_shard(path: Path, shard: ShardInfo) -> bool:
    return path.is_file() and path.stat().st_size == shard.bytes and sha256_file(path) == shard.sha256


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        with writing(target):
            shutil.copyfile(source, target)


def _check_target(out: Path) -> None:
    """Refuse to replace a folder that is not an earlier pull's.

    Raises:
        UsageError: it is something else.
    """
    if not os.path.lexists(out) or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        manifest: Manifest = read_manifest(out)
    except (CorruptManifest, OSError):
        known = None
    else:
        known = {shard.name for shard in manifest.shards} | {MANIFEST_NAME, *_BESIDE}
    if known is None or not {path.name for path in out.iterdir()} <= known:
        raise UsageError(f"{out} exists and is not an earlier pull.", "Name a folder that is empty or does not exist.")


@contextmanager
def _work_folder(out: Path) -> Iterator[Path]:
    """The folder beside `out` in which downloads wait; it stays after an error, so that a second pull goes on."""
    work = out.with_name(f".{out.name}.pull")
    while True:
        with writing(work):
            work.mkdir(parents=True, exist_ok=True)
            lock = os.open(work, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            what = f"Another process is pulling into {out}."
            raise WorkspaceBusy(what, "Wait for it, or name another folder.") from error
        if work.exists() and os.path.samestat(os.fstat(lock), work.stat()):
            break  # else the pull that held it removed it just now
        os.close(lock)
    try:
        yield work
    finally:
        os.close(lock)
