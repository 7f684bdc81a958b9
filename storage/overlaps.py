"""Versions that show the same images in another way, and taking a version back.

Whatever protects an image adds something to it, and what only carries the payload can be undone by anyone
(docs/format.md). Who holds two protections of one image holds two such sums, and of profile `exact`, with two
amplitudes, solves them for the clean image (docs/evidence.md has how much). So no two versions that protect the same
images otherwise should ever be public. A data set that grows is safe: what was published stays as it is.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from storage.errors import CorruptManifest, NotFound, PublicationConflict, VersionsOverlap
from storage.manifest import Manifest, parse_manifest
from storage.objects import ObjectStore
from storage.shards import ShardInfo
from storage.versions import (
    CLASSES_NAME,
    CROISSANT_NAME,
    README_NAME,
    channel_key,
    dump_names,
    list_versions,
    read_channel,
    read_version,
    shard_key,
    version_key,
)


@dataclass(frozen=True)
class Withdrawn:
    """What was taken out of the bucket: a version, its images (0: its manifest is unreadable), how many shards."""

    id: str
    images: int
    shards: int


def overlapping(store: ObjectStore, dataset: str, manifest: Manifest) -> list[str]:
    """Ids of the published versions, the newest first, that have a shard of the same name with other content.

    Names count images (`train-000003.tar`), so a shard of the same name shows, as far as anyone can tell from outside,
    the same clean images; one that shows others is taken for such a one.

    Raises:
        CorruptManifest: a version in the bucket is not what its id says, so nobody can tell what it shows.
    """
    mine = {shard.name: shard.sha256 for shard in manifest.shards}
    found = []
    for version, theirs in _versions(store, dataset):
        if any(mine.get(shard.name, shard.sha256) != shard.sha256 for shard in theirs.shards):
            found.append(version)
    return found


def published_shards(store: ObjectStore, dataset: str) -> dict[str, set[str]]:
    """SHA-256 of the shards of all published versions, by their names. Raises as `overlapping`."""
    found: dict[str, set[str]] = {}
    for _, manifest in _versions(store, dataset):
        for shard in manifest.shards:
            found.setdefault(shard.name, set()).add(shard.sha256)
    return found


def refusal(what: str) -> VersionsOverlap:
    """The error for what must not be public beside something (in words, the beginning of a sentence)."""
    return VersionsOverlap(
        f"{what} is public and shows the same images otherwise. Who has an image of both versions can compute most of "
        "the clean one, without any key.",
        "Withdraw the earlier version by publishing with --earlier withdraw (or `dmcp withdraw`), which does not reach "
        "copies that were made; where both may be public all the same: --earlier keep. Without the command: "
        "DMCP_EARLIER_VERSIONS.",
    )


def images_of(store: ObjectStore, dataset: str, version: str) -> int:
    """How many images a version has that may be damaged; 0: its manifest is unreadable. Raises NotFound."""
    manifest = _as_it_is(store, dataset, version)
    return manifest.samples if manifest else 0


def withdraw(store: ObjectStore, dataset: str, version: str) -> Withdrawn:
    """Take a version out of the bucket. Copies that were made of it remain, and remain restorable.

    First the shards that no other version has, then its texts, last its manifest: while that is there, withdrawing
    again goes on. Payloads that travel beside the pixels, the names of the classes and the licence stay for those who
    have a copy. When it was the latest version, there is none until the next one is published. Of one that was altered,
    what its manifest names goes; where that can not be read at all, its shards stay, since they may be others' too. So
    do all shards while another version's manifest can not be read.

    Args:
        version: its id.

    Raises:
        NotFound: there is no such version.
        PublicationConflict: a version that needs the shards was published at this very moment.
        ObjectStoreError: the server failed; calling again goes on.
    """
    manifest = _as_it_is(store, dataset, version)
    unnamed = _unnamed(store, dataset, manifest.shards if manifest else (), but=version)
    channel = read_channel(store, dataset)
    if channel is not None and channel[0].version == version:
        store.delete(channel_key(dataset))
    for shard in unnamed:
        store.delete(shard_key(dataset, shard))
    if manifest:
        store.put_bytes(version_key(dataset, version, CLASSES_NAME), dump_names(manifest.classes))
    for name in (README_NAME, CROISSANT_NAME):
        store.delete(version_key(dataset, version, name))
    store.delete(version_key(dataset, version))
    _check_whole(store, dataset, {shard.sha256 for shard in unnamed})
    return Withdrawn(version, manifest.samples if manifest else 0, len(unnamed))


def remove_leftovers(store: ObjectStore, dataset: str, mine: Iterable[str]) -> int:
    """Remove shards that no version names, and that are not about to be published; how many.

    Publications that were cut off leave such shards, where no check of versions sees them, and they may show the same
    images otherwise. Who publishes them at this moment sends them again (`storage.committing.complete`).

    Args:
        mine: SHA-256 of the shards that are to be published.

    Raises:
        CorruptManifest: as `overlapping`.
        PublicationConflict, ObjectStoreError: as `withdraw`.
    """
    pattern = re.compile(rf"{re.escape(dataset)}/shards/([0-9a-f]{{64}})\.tar")
    try:
        found = [(o.key, pattern.fullmatch(o.key)) for o in store.list(f"{dataset}/shards/")]
    except NotFound:  # not even a bucket
        return 0
    named = {s.sha256 for _, theirs in _versions(store, dataset) for s in theirs.shards} | set(mine)
    left = {match[1]: key for key, match in found if match and match[1] not in named}
    for key in left.values():
        store.delete(key)
    _check_whole(store, dataset, left.keys())
    return len(left)


def remove_unnamed(store: ObjectStore, dataset: str, shards: Iterable[ShardInfo]) -> int:
    """Remove those of the shards that no version names; how many. Raises as `withdraw`."""
    unnamed = _unnamed(store, dataset, shards)
    for shard in unnamed:
        store.delete(shard_key(dataset, shard))
    _check_whole(store, dataset, {shard.sha256 for shard in unnamed})
    return len(unnamed)


def _unnamed(store: ObjectStore, dataset: str, shards: Iterable[ShardInfo], but: str | None = None) -> list[ShardInfo]:
    """Those of the shards that no version names (`but`: no other one), each once; none while one can not be read."""
    named: set[str] = set()
    for version in _ids(store, dataset):
        if version == but:
            continue
        manifest = _as_it_is(store, dataset, version)
        if manifest is None:
            return []
        named |= {shard.sha256 for shard in manifest.shards}
    return list({shard.sha256: shard for shard in shards if shard.sha256 not in named}.values())


def _check_whole(store: ObjectStore, dataset: str, removed: Collection[str]) -> None:
    """Raise PublicationConflict where a version was published meanwhile that needs a shard that was just removed."""
    for version in _ids(store, dataset) if removed else ():
        manifest = _as_it_is(store, dataset, version)
        if manifest is not None and any(shard.sha256 in removed for shard in manifest.shards):
            raise PublicationConflict(
                f"{dataset}@{version} was published while shards that it needs were removed.",
                "Publish it again, from wherever that was done: what is missing is sent.",
            )


def _ids(store: ObjectStore, dataset: str) -> list[str]:
    try:
        return [version.id for version in list_versions(store, dataset)]
    except NotFound:
        return []


def _versions(store: ObjectStore, dataset: str) -> Iterator[tuple[str, Manifest]]:
    """The published versions with their manifests, the newest first; none where nothing is published."""
    for version in _ids(store, dataset):
        try:
            manifest = read_version(store, dataset, version)[1]
        except (CorruptManifest, NotFound) as error:  # the manifest, or the LICENSE beside it
            raise CorruptManifest(
                f"{dataset}@{version} is damaged, so nobody can tell what it shows: {error.what}",
                f"Take it out of the bucket: dmcp withdraw {dataset}@{version}.",
            ) from error
        yield version, manifest


def _as_it_is(store: ObjectStore, dataset: str, version: str) -> Manifest | None:
    """A version's manifest, also one that is not what the version's id says; None: it can not be read."""
    try:
        return read_version(store, dataset, version)[1]
    except (CorruptManifest, NotFound):
        key = version_key(dataset, version)
        if not store.exists(key):
            raise
        with suppress(CorruptManifest):
            return parse_manifest(store.get_bytes(key), store.where(key))
        return None
