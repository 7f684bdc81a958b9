"""Publishing a protected variant: immutable versions in a bucket, whole or not there at all.

    DATASET/shards/SHA256.tar           every shard under its own digest, shared between versions
    DATASET/versions/ID/README.md       data card
    DATASET/versions/ID/LICENSE         terms of use
    DATASET/versions/ID/payloads.jsonl  what travels beside the pixels of images; only where anything does
    DATASET/versions/ID/manifest.json   the variant's manifest; written last: with it the version exists
    DATASET/channels/latest.json        {"published": time, "version": ID}

ID is the first 16 hexadecimal digits of a SHA-256 over manifest and terms. So publishing the same again changes
nothing, a reader can check that a version is what its name says, and a version never changes. A publisher that is
killed leaves shards and texts that no manifest names; the next one goes on from there.

Order: all shards are checked here first (digest, and what the caller's `check` asks of each image); then they are
uploaded, and each is compared with the object in the bucket (`ObjectStore.holds`); then payloads, likewise; then texts,
manifest, channel. The payloads lie in the shards too, so the shards' digests decide them and the ID need not. Two
publishers can not disagree about a version, whose content decides its name, but they may race for the channel. Where
the server honours conditional puts the second one is told; where it does not (`Guarantee.LAST_WRITER_WINS`) the
channel is read again just before it is written, and within that moment the later writer wins. Either way both versions
stay whole and readable by id.

Published are protected shards, their digests, sealed payloads, class names and texts: no key, nothing about clean
images, no model. `storage/pull.py` is the reader's side.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from storage.datacard import data_card, terms_text
from storage.errors import CorruptShard, DmcpError, NotFound, ObjectStoreError, PublicationConflict, UsageError
from storage.files import Progress
from storage.guarantee import Guarantee, probe_conditional_puts
from storage.manifest import Manifest, dump_manifest, read_manifest
from storage.names import check_dataset_name
from storage.objects import ObjectStore
from storage.pull import PulledVersion, pull
from storage.s3_client import FileDigest, digest_bytes, digest_file
from storage.shards import ShardInfo, read_shard
from storage.transfer import Meter, in_parallel
from storage.versions import (
    LICENSE_NAME,
    PAYLOADS_NAME,
    README_NAME,
    Channel,
    VersionInfo,
    channel_key,
    list_versions,
    read_channel,
    read_version,
    shard_key,
    version_id,
    version_key,
)

__all__ = [
    "Check",
    "Guarantee",
    "PublishedVersion",
    "PulledVersion",
    "VersionInfo",
    "list_versions",
    "publish",
    "pull",
    "read_version",
]

Check = Callable[[bytes], None]
"""Takes a PNG file's bytes and raises one of this project's errors when the image is not protected."""

Payloads = Callable[[], bytes]
"""Gives the content of `payloads.jsonl`, a function of the images that were checked; nothing when there is none."""


@dataclass(frozen=True)
class PublishedVersion:
    """What `publish` did: the version, what was sent and what was there, and what the server guarantees."""

    dataset: str
    id: str
    samples: int
    bytes: int
    shards_uploaded: int
    shards_shared: int
    guarantee: Guarantee


def publish(
    variant: Path,
    store: ObjectStore,
    dataset: str,
    terms: str | None = None,
    progress: Progress | None = None,
    *,
    check: Check | None = None,
    payloads: Payloads | None = None,
    contact: str | None = None,
    workers: int = 4,
) -> PublishedVersion:
    """Publish a protected variant and make it the latest version.

    Args:
        variant: its folder.
        store: the public bucket; created when missing.
        dataset: name in the bucket; must be the manifest's.
        terms: licence terms; None: `datacard.DEFAULT_TERMS`.
        progress: told bytes checked, then bytes sent.
        check: called with every image before anything is sent; it raises when one is not protected. None checks
            nothing: only for callers that have just made the variant and checked it themselves. It is called from
            several threads, in no particular order.
        payloads: called once all images passed the check.
        contact: how to ask for access, for the data card.
        workers: shards checked and sent at once.

    Raises:
        CorruptManifest, CorruptShard: the variant is not what its manifest says.
        UsageError: the data set's name is impossible or not the manifest's, or there is nothing to publish.
        PublicationConflict: another publisher moved the channel meanwhile; the version itself is complete.
        ObjectStoreError: the server failed; calling again goes on from there.
        Whatever `check` raises, with the image's name; nothing was sent then.
    """
    manifest = _publishable(variant, check_dataset_name(dataset))
    total = sum(shard.bytes for shard in manifest.shards)
    checked = Meter("check", total, progress)
    digests = in_parallel(lambda s: _inspected(variant / s.name, s, check, checked), manifest.shards, workers)
    license_text = terms_text(terms)
    version = version_id(manifest, license_text)
    beside = payloads() if payloads is not None else b""

    store.ensure_bucket()
    guarantee = probe_conditional_puts(store)
    before = read_channel(store, dataset)
    sent = Meter("upload", total, progress)
    unique = {shard.sha256: (shard, digest) for shard, digest in zip(manifest.shards, digests, strict=True)}
    uploaded = in_parallel(
        lambda pair: _send_shard(variant / pair[0].name, store, shard_key(dataset, pair[0]), pair[1], sent),
        unique.values(),
        workers,
    )
    if beside:
        _send_payloads(store, version_key(dataset, version, PAYLOADS_NAME), beside)
    texts = {LICENSE_NAME: license_text, README_NAME: data_card(version, manifest, contact, bool(beside))}
    _commit(store, dataset, version, manifest, texts, guarantee)
    _move_channel(store, dataset, version, before, guarantee)
    return PublishedVersion(
        dataset, version, manifest.samples, total, sum(uploaded), len(uploaded) - sum(uploaded), guarantee
    )


def _publishable(variant: Path, dataset: str) -> Manifest:
    manifest = read_manifest(variant)
    if manifest.dataset != dataset:
        raise UsageError(
            f"{variant} holds the data set {manifest.dataset}, not {dataset}.", f"Publish it as {manifest.dataset}."
        )
    if not manifest.samples:
        raise UsageError(f"{variant} holds no image.", "Look into the report of `dmcp protect` for what was left out.")
    return manifest


def _inspected(path: Path, shard: ShardInfo, check: Check | None, meter: Meter) -> FileDigest:
    """The digest of a local shard that is what the manifest says and whose images all pass the check."""
    again = "Build the variant again."
    try:
        digest = digest_file(path)
    except FileNotFoundError as error:
        raise CorruptShard(f"The shard {path} is missing.", again) from error
    if (digest.size, digest.sha256) != (shard.bytes, shard.sha256):
        raise CorruptShard(f"The shard {path} is not the one its manifest names: its SHA-256 differs.", again)
    if check is not None:
        _check_images(path, check)
    meter.add(digest.size)
    return digest


def _check_images(path: Path, check: Check) -> None:
    for sample in read_shard(path):
        try:
            check(sample.png)
        except DmcpError as error:
            what = f"Image {sample.key} in {path} must not be published: {error.what}"
            raise type(error)(what, "Nothing was sent. Publish the variant as `dmcp protect` made it.") from error


def _send_shard(path: Path, store: ObjectStore, key: str, digest: FileDigest, meter: Meter) -> bool:
    """Upload a shard unless it is there already; whether it was sent. Afterwards the bucket holds it for certain."""
    if store.holds(key, digest):
        meter.add(digest.size)
        return False
    store.put_file(path, key, digest.sha256, "application/x-tar", meter.add)
    if not store.holds(key, digest):
        raise ObjectStoreError(f"{store.where(key)} is not what was uploaded.", "Publish again; check the server.")
    return True


def _send_payloads(store: ObjectStore, key: str, data: bytes) -> None:
    """Write what travels beside the pixels, unless it is there already: publishing again heals a damaged file."""
    if not store.holds(key, digest_bytes(data)):
        store.put_bytes(key, data, content_type="application/jsonl")


def _commit(
    store: ObjectStore, dataset: str, version: str, manifest: Manifest, texts: dict[str, str], guarantee: Guarantee
) -> None:
    """Write the texts, then the manifest, with which the version exists. Nothing happens when it does already."""
    key, data = version_key(dataset, version), dump_manifest(manifest)
    if _is_there(store, key, data):
        return
    for name, text in texts.items():
        kind = "text/markdown; charset=utf-8" if name == README_NAME else "text/plain; charset=utf-8"
        store.put_bytes(version_key(dataset, version, name), text.encode(), content_type=kind)
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
    except PublicationConflict as error:
        now = read_channel(store, dataset)
        if now is not None and now[0].version == version:
            return
        raise PublicationConflict(
            f"Another publisher made {now[0].version if now else 'nothing'} the latest version of {dataset} meanwhile. "
            f"Version {version} is complete, but not the latest.",
            f"Publish again to make it the latest, or read it by its id {version}.",
        ) from error
