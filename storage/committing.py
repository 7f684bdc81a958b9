"""The steps of a publication: what is there already, one shard after the other, at the end the index.

    opened = open_publication(store, dataset)
    for shard in shards:
        send_shard(path, store, shard_key(dataset, shard), digest_file(path))   # in any order, side by side
    version = complete(opened, manifest, terms, about, payloads, send=again)

`storage/publication.py` is the manual, and publishes a folder by these steps; `tasks/stream.py` sends shards as they
are made and keeps none.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from storage.croissant import About, croissant
from storage.datacard import data_card
from storage.errors import NotFound, ObjectStoreError, PublicationConflict
from storage.guarantee import Guarantee, probe_conditional_puts
from storage.manifest import Manifest, dump_manifest
from storage.objects import Advance, ObjectStore
from storage.s3_client import FileDigest, digest_bytes, digest_file
from storage.shards import ShardInfo
from storage.versions import (
    CROISSANT_NAME,
    LICENSE_NAME,
    PAYLOADS_NAME,
    README_NAME,
    Channel,
    channel_key,
    missing_shards,
    read_channel,
    version_id,
    version_key,
)


@dataclass(frozen=True)
class Opened:
    """A data set's place in a bucket, with what its channel said before anything was sent."""

    store: ObjectStore
    dataset: str
    guarantee: Guarantee
    before: tuple[Channel, str] | None


def open_publication(store: ObjectStore, dataset: str) -> Opened:
    """Make the bucket where it is missing, find out what the server guarantees, and remember the channel.

    Raises:
        ObjectStoreError: the server failed, or nothing can be written there.
    """
    store.ensure_bucket()
    return Opened(store, dataset, probe_conditional_puts(store), read_channel(store, dataset))


def send_shard(path: Path, store: ObjectStore, key: str, digest: FileDigest, advance: Advance | None = None) -> bool:
    """Upload a shard unless it is there already; whether it was sent. Afterwards the bucket holds it for certain."""
    if store.holds(key, digest):
        if advance is not None:
            advance(digest.size)
        return False
    store.put_file(path, key, digest.sha256, "application/x-tar", advance)
    if not store.holds(key, digest):
        raise ObjectStoreError(f"{store.where(key)} is not what was uploaded.", "Publish again; check the server.")
    return True


def complete(
    opened: Opened,
    manifest: Manifest,
    terms: str,
    about: About,
    payloads: bytes | Path = b"",
    *,
    send: Callable[[ShardInfo], object],
) -> str:
    """Write what lies beside the shards, the manifest last, and make the version the latest; its id.

    A shard that was there when this publication looked, and that somebody's withdrawal took since, is sent again: who
    looks after the manifest is there does not take it.

    Args:
        opened: as it was before the shards were sent.
        manifest: names shards that the bucket holds.
        terms: the text of LICENSE.
        about: for the data card and croissant.json.
        payloads: content of payloads.jsonl, or a file that holds it; empty when there is none.
        send: sends a shard, or raises what says that it can not be had.

    Raises:
        PublicationConflict: another publisher moved the channel meanwhile; the version itself is complete.
        ObjectStoreError: the server failed.
    """
    store, dataset = opened.store, opened.dataset
    version = version_id(manifest, terms)
    beside = bool(payloads.stat().st_size) if isinstance(payloads, Path) else bool(payloads)
    if beside:
        _send_payloads(store, version_key(dataset, version, PAYLOADS_NAME), payloads)
    texts = _texts(version, manifest, terms, about, beside)
    for shard in missing_shards(store, dataset, manifest):
        send(shard)
    _commit(store, dataset, version, manifest, texts, opened.guarantee)
    for shard in missing_shards(store, dataset, manifest):
        send(shard)
    _move_channel(store, dataset, version, opened.before, opened.guarantee)
    return version


def _send_payloads(store: ObjectStore, key: str, data: bytes | Path) -> None:
    """Write what travels beside the pixels, unless it is there already: publishing again heals a damaged file."""
    if isinstance(data, Path):
        if not store.holds(key, digest_file(data)):
            store.put_file(data, key, content_type="application/jsonl")
    elif not store.holds(key, digest_bytes(data)):
        store.put_bytes(key, data, content_type="application/jsonl")


def _texts(version: str, manifest: Manifest, terms: str, about: About, payloads: bool) -> dict[str, bytes]:
    """The files beside the manifest, in the order in which they are written."""
    return {
        LICENSE_NAME: terms.encode(),
        README_NAME: data_card(version, manifest, about, payloads).encode(),
        CROISSANT_NAME: croissant(version, manifest, about),
    }


_KINDS = {
    LICENSE_NAME: "text/plain; charset=utf-8",
    README_NAME: "text/markdown; charset=utf-8",
    CROISSANT_NAME: "application/ld+json",
}


def _commit(
    store: ObjectStore, dataset: str, version: str, manifest: Manifest, texts: dict[str, bytes], guarantee: Guarantee
) -> None:
    """Write the texts, as far as they are not there or other ones, then the manifest, with which the version exists."""
    key, data = version_key(dataset, version), dump_manifest(manifest)
    there = _is_there(store, key, data)
    for name, text in texts.items():
        path = version_key(dataset, version, name)
        if not store.holds(path, digest_bytes(text)):
            store.put_bytes(path, text, content_type=_KINDS[name])
    if there:
        return
    try:
        store.put_bytes(key, data, guarantee is Guarantee.ATOMIC, content_type="application/json")
    except PublicationConflict:  # another publisher of the same version was faster, or our own retried request
        if not _is_there(store, key, data):
            raise


def _is_there(store: ObjectStore, key: str, data: bytes) -> bool:
    """Whether the version exists already.

    Raises:
        PublicationConflict: something else lies under its name.
    """
    try:
        if store.get_bytes(key) == data:
            return True
    except NotFound:
        return False
    raise PublicationConflict(
        f"{store.where(key)} exists and says something else than its version's id.",
        "Someone altered it: delete that version's folder in the bucket, then publish again.",
    )


def _move_channel(
    store: ObjectStore, dataset: str, version: str, before: tuple[Channel, str] | None, guarantee: Guarantee
) -> None:
    """Point the channel to the version, unless someone else moved it since `before` was read."""
    if before is not None and before[0].version == version:
        _check_latest(store, dataset, version)
        return
    key = channel_key(dataset)
    data = Channel(version=version, published=datetime.now(UTC).replace(microsecond=0)).model_dump_json().encode()
    try:
        if guarantee is Guarantee.ATOMIC:
            etag = before[1] if before else None
            store.put_bytes(key, data, if_none_match=etag is None, if_match=etag, content_type="application/json")
            return
        now = read_channel(store, dataset)
        if (now and now[1]) != (before and before[1]):
            raise PublicationConflict(f"{store.where(key)} was moved meanwhile.")
        store.put_bytes(key, data, content_type="application/json")
    except (PublicationConflict, NotFound) as error:  # AWS answers If-Match on what was deleted meanwhile with 404
        _check_latest(store, dataset, version, error)


def _check_latest(store: ObjectStore, dataset: str, version: str, cause: Exception | None = None) -> None:
    """Raise PublicationConflict unless the channel names this version now."""
    now = read_channel(store, dataset)
    if now is not None and now[0].version == version:
        return
    raise PublicationConflict(
        f"Another publisher made {now[0].version if now else 'nothing'} the latest version of {dataset} meanwhile. "
        f"Version {version} is complete, but not the latest.",
        f"Publish again to make it the latest, or read it by its id {version}.",
    ) from cause
