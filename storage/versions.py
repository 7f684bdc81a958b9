"""What lies where in the public bucket, and how a reader finds it; `storage/publication.py` is the manual."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from storage.croissant import About, read_about
from storage.errors import CorruptManifest, NotFound, UsageError
from storage.manifest import MANIFEST_NAME, Manifest, dump_manifest, parse_manifest
from storage.names import VERSION_PATTERN, check_dataset_name
from storage.objects import ObjectInfo, ObjectStore
from storage.shards import ShardInfo

README_NAME = "README.md"
LICENSE_NAME = "LICENSE"
CROISSANT_NAME = "croissant.json"
PAYLOADS_NAME = "payloads.jsonl"
"""What travels beside the pixels of images, where anything does: whoever publishes and restores knows what it says."""
CLASSES_NAME = "classes.json"
"""What the classes of a withdrawn version are called: its copies are restored, and hold nothing but numbers."""


@dataclass(frozen=True)
class VersionInfo:
    """One version in a bucket: its id, when it was completed (UTC) and whether the channel points to it."""

    id: str
    completed: datetime
    latest: bool


class Channel(BaseModel):
    """Content of `channels/latest.json`."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    version: str = Field(pattern=f"^{VERSION_PATTERN}$")
    published: datetime


def shard_key(dataset: str, shard: ShardInfo) -> str:
    """Where a shard lies in the bucket."""
    return f"{dataset}/shards/{shard.sha256}.tar"


def version_key(dataset: str, version: str, name: str = MANIFEST_NAME) -> str:
    """Where a version's file lies in the bucket."""
    return f"{dataset}/versions/{version}/{name}"


def channel_key(dataset: str) -> str:
    """Where the pointer to the latest version lies in the bucket."""
    return f"{dataset}/channels/latest.json"


def version_id(manifest: Manifest, terms: str) -> str:
    """Content address of a version: manifest and terms decide it."""
    parts = (dump_manifest(manifest), terms.encode())
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:16]


def read_channel(store: ObjectStore, dataset: str) -> tuple[Channel, str] | None:
    """What the channel says, and its ETag; None when nothing was published yet.

    Raises:
        CorruptManifest: the object there is no channel.
    """
    key = channel_key(dataset)
    try:
        data, etag = store.get(key)
        return Channel.model_validate_json(data), etag
    except NotFound:
        return None
    except ValidationError as error:
        raise CorruptManifest(
            f"{store.where(key)} does not name a version.", "Delete it and publish again, or ask for a version by id."
        ) from error


def list_versions(store: ObjectStore, dataset: str) -> list[VersionInfo]:
    """All complete versions of a data set, the newest first.

    Raises:
        NotFound: there is none.
    """
    channel = read_channel(store, check_dataset_name(dataset))
    latest = channel[0].version if channel else None
    found = _with_file(store.list(f"{dataset}/versions/"), dataset, MANIFEST_NAME)
    if not found:
        raise NotFound(
            f"No version of {dataset} is published at {store.where()}.",
            f"Check the name, or publish one.{_elsewhere(store)}",
        )
    return [VersionInfo(i, at, i == latest) for i, at in found]


def list_payloads(store: ObjectStore, dataset: str) -> list[str]:
    """Object keys of all payload files, the newest first: of versions that were withdrawn too, for those with a copy.

    None where nothing is published, not even a bucket.
    """
    try:
        objects = list(store.list(f"{check_dataset_name(dataset)}/versions/"))
    except NotFound:
        return []
    return [version_key(dataset, i, PAYLOADS_NAME) for i, _ in _with_file(objects, dataset, PAYLOADS_NAME)]


def class_lists(store: ObjectStore, dataset: str, version: str | None = None) -> list[list[str]]:
    """Names of the classes of every version that was ever published, withdrawn ones too, each list once.

    Args:
        version: only this one's.

    Raises:
        CorruptManifest: of one of them it can not be told.
        NotFound: nothing was ever published.
    """
    pattern = re.compile(rf"{re.escape(check_dataset_name(dataset))}/versions/({VERSION_PATTERN})/(.+)")
    files: dict[str, set[str]] = {}
    for match in filter(None, (pattern.fullmatch(o.key) for o in store.list(f"{dataset}/versions/"))):
        files.setdefault(match[1], set()).add(match[2])
    lists = [_classes(store, dataset, i, there) for i, there in sorted(files.items()) if version in (None, i)]
    if not any(lists):
        raise NotFound(f"No version of {dataset} was ever published at {store.where()}.", "Check the name.")
    return [list(names) for names in dict.fromkeys(map(tuple, filter(None, lists)))]


def _classes(store: ObjectStore, dataset: str, version: str, there: set[str]) -> list[str] | None:
    """Names of a version's classes, by the files that it has; None: it was never whole."""
    if MANIFEST_NAME in there:
        return read_version(store, dataset, version)[1].classes
    if CLASSES_NAME in there:
        key = version_key(dataset, version, CLASSES_NAME)
        try:
            return _NAMES.validate_json(store.get_bytes(key))
        except ValidationError as error:
            raise CorruptManifest(f"{store.where(key)} is no list of names.", "Look who wrote it.") from error
    if README_NAME in there or LICENSE_NAME not in there:
        return None
    raise CorruptManifest(
        f"{dataset}@{version} was withdrawn, and nothing says what its classes were called.",
        "Request a published version by its name, or ask the owner for a grant for all classes.",
    )


_NAMES = TypeAdapter(list[str])


def dump_names(names: list[str]) -> bytes:
    """Content of classes.json."""
    return _NAMES.dump_json(names) + b"\n"


def _with_file(objects: Iterable[ObjectInfo], dataset: str, name: str) -> list[tuple[str, datetime]]:
    """Ids of the versions whose file of this name is among the objects, with the files' times, the newest first."""
    pattern = re.compile(rf"{re.escape(dataset)}/versions/({VERSION_PATTERN})/{re.escape(name)}")
    found = [(match[1], o.modified) for o in objects if (match := pattern.fullmatch(o.key))]
    return sorted(found, key=lambda pair: pair[1], reverse=True)


def read_version(store: ObjectStore, dataset: str, version: str = "latest") -> tuple[str, Manifest, str]:
    """Id, manifest and licence terms of a published version.

    Raises:
        NotFound: no such data set or version.
        CorruptManifest: what is there is not what its id says.
        UsageError: an impossible name or id.
    """
    check_dataset_name(dataset)
    if version == "latest":
        channel = read_channel(store, dataset)
        if channel is None:
            raise NotFound(
                f"{dataset} is not published at {store.where()}.",
                f"Check the name, bucket and prefix.{_elsewhere(store)}",
            )
        version = channel[0].version
    elif not re.fullmatch(VERSION_PATTERN, version):
        raise UsageError(f"{version[:80]!r} is not a version.", "A version has 16 digits 0-9a-f, or is called latest.")
    key = version_key(dataset, version)
    try:
        data = store.get_bytes(key)
        terms = store.get_bytes(version_key(dataset, version, LICENSE_NAME)).decode()
    except NotFound as error:
        raise NotFound(
            f"{dataset} has no version {version} at {store.where()}.",
            f"Leave the version out to get the latest.{_elsewhere(store)}",
        ) from error
    except UnicodeDecodeError as error:
        raise _altered(store, key) from error
    manifest = parse_manifest(data, store.where(key))
    if manifest.dataset != dataset or version_id(manifest, terms) != version:
        raise _altered(store, key)
    return version, manifest, terms


def said_before(store: ObjectStore, dataset: str) -> tuple[str | None, About]:
    """Terms of the latest version, and what its publisher said of it; None and nothing where nothing was published.

    Where the latest version was withdrawn, the newest of the others counts, or else the newest licence that is left.

    Raises:
        CorruptManifest: that version is damaged.
    """
    try:
        left = list(store.list(f"{dataset}/versions/"))
    except NotFound:  # not even a bucket
        return None, About()
    channel = read_channel(store, dataset)
    versions = [channel[0].version] if channel else [i for i, _ in _with_file(left, dataset, MANIFEST_NAME)]
    if versions:
        terms = read_version(store, dataset, versions[0])[2]
        said = version_key(dataset, versions[0], CROISSANT_NAME)
        return terms, read_about(store.get_bytes(said)) if any(o.key == said for o in left) else About()
    licences = _with_file(left, dataset, LICENSE_NAME)
    return (store.get_bytes(version_key(dataset, licences[0][0], LICENSE_NAME)).decode() if licences else None), About()


def missing_shards(store: ObjectStore, dataset: str, manifest: Manifest) -> list[ShardInfo]:
    """The shards that the bucket does not hold, or not in the size that they should have."""
    there = {(found.key, found.size) for found in store.list(f"{dataset}/shards/")}
    return [shard for shard in manifest.shards if (shard_key(dataset, shard), shard.bytes) not in there]


def _elsewhere(store: ObjectStore) -> str:
    """What to do where the owner's machine is another one: nobody sees it by an address on loopback."""
    if not store.embedded:
        return ""
    return (
        " This looked at this machine's own object store; what somebody else published is found by setting "
        "DMCP_S3_ENDPOINT (and the bucket), or by `dmcp remote login URL`."
    )


def _altered(store: ObjectStore, key: str) -> CorruptManifest:
    return CorruptManifest(
        f"{store.where(key)} or the LICENSE beside it is not what the version's id says: one of them was altered.",
        "Do not use this version; ask its publisher to delete its folder and publish it again.",
    )
