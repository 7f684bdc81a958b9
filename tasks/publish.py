"""Publish a protected variant, and nothing else: every image's header is read before anything is sent."""

from pathlib import Path

from storage.files import Progress
from storage.objects import ObjectStore
from storage.publication import PublishedVersion, publish
from tasks.restore import read_header


def check_protected(png: bytes) -> None:
    """Raise unless a PNG carries a protection header.

    Raises:
        NotProtected, UnsupportedFormat, UnsupportedImage.
    """
    read_header(png, "the image")


def publish_variant(
    variant: Path,
    store: ObjectStore,
    dataset: str,
    terms: str | None = None,
    progress: Progress | None = None,
    *,
    contact: str | None = None,
    workers: int = 4,
) -> PublishedVersion:
    """`storage.publication.publish`, with `check_protected` on every image.

    Raises:
        NotProtected: an image is not protected; nothing was sent.
        PublicationConflict, ObjectStoreError, CorruptShard, UsageError: as `storage.publication.publish`.
    """
    return publish(variant, store, dataset, terms, progress, check=check_protected, contact=contact, workers=workers)
