"""Publishing a protected variant: immutable versions in a bucket, whole or not there at all.

    DATASET/shards/SHA256.tar           every shard under its own digest, shared between versions
    DATASET/versions/ID/README.md       data card, which Hugging Face `datasets` reads too
    DATASET/versions/ID/croissant.json  the same for machines, in MLCommons Croissant (storage/croissant.py)
    DATASET/versions/ID/LICENSE         terms of use
    DATASET/versions/ID/payloads.jsonl  what travels beside the pixels of images; only where anything does
    DATASET/versions/ID/manifest.json   the variant's manifest; written last: with it the version exists
    DATASET/channels/latest.json        {"published": time, "version": ID}

ID is the first 16 hexadecimal digits of a SHA-256 over manifest and terms. So publishing the same again changes
nothing, a reader can check that a version is what its name says, and a version never changes. A publisher that is
killed leaves shards and texts that no manifest names; the next one goes on from there, and who publishes something else
removes them first (`storage/overlaps.py`).

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
from pathlib import Path

from storage.committing import complete, open_publication, send_shard
from storage.croissant import About
from storage.datacard import terms_text
from storage.errors import CorruptShard, DmcpError, UsageError
from storage.files import Progress
from storage.guarantee import Guarantee
from storage.manifest import Manifest, read_manifest
from storage.names import check_dataset_name
from storage.objects import Advance, ObjectStore
from storage.pull import PulledVersion, pull
from storage.s3_client import FileDigest, digest_file
from storage.shards import ShardInfo, read_shard
from storage.transfer import Meter, in_parallel
from storage.versions import VersionInfo, list_versions, read_version, shard_key

__all__ = [
    "About",
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
    before_sending: Callable[[], None] | None = None,
    about: About | None = None,
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
        before_sending: called then too.
        about: whom to ask, who made it, for the data card and croissant.json.
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
    beside = payloads() if payloads is not None else b""

    if before_sending is not None:
        before_sending()
    opened = open_publication(store, dataset)
    sent = Meter("upload", total, progress)
    unique = {shard.sha256: (shard, digest) for shard, digest in zip(manifest.shards, digests, strict=True)}

    def send(shard: ShardInfo, advance: Advance | None = None) -> bool:
        return send_shard(variant / shard.name, store, shard_key(dataset, shard), unique[shard.sha256][1], advance)

    uploaded = in_parallel(lambda pair: send(pair[0], sent.add), unique.values(), workers)
    version = complete(opened, manifest, license_text, about or About(), beside, send=send)
    return PublishedVersion(
        dataset, version, manifest.samples, total, sum(uploaded), len(uploaded) - sum(uploaded), opened.guarantee
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
