"""Publish a protected variant, and nothing else: every image's header is read before anything is sent."""

import threading
from collections.abc import Callable
from pathlib import Path

from storage.errors import PayloadMissing
from storage.files import Progress
from storage.objects import ObjectStore
from storage.png import read_payload
from storage.publication import About, PublishedVersion, publish
from tasks.method.known import profile_of
from tasks.payloads import dump_payloads
from tasks.restore import read_header


class Inspection:
    """Looks at every image of a variant, from several threads, and keeps the payloads that travel beside the pixels.

    `found` are those payloads, each with the id of its image.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.found: set[tuple[bytes, bytes]] = set()

    def check(self, png: bytes) -> None:
        """Raise unless a PNG carries a protection header, and its payload where that does not travel in the pixels.

        Raises:
            NotProtected, UnsupportedFormat, UnsupportedImage.
            PayloadMissing: nobody could restore the image.
        """
        header = read_header(png, "the image")
        if not profile_of(header).spills(header):
            return
        payload = read_payload(png)
        if payload is None:
            raise PayloadMissing("its payload travels beside the pixels, and the PNG does not hold it.")
        if len(payload) != header.payload_bytes:
            raise PayloadMissing(
                f"its payload travels beside the pixels and should have {header.payload_bytes} bytes; "
                f"the PNG holds one of {len(payload)}."
            )
        with self._lock:
            self.found.add((header.image_id, payload))

    def payloads(self) -> bytes:
        """Content of payloads.jsonl, whatever the order of the checks; empty when everything travels in the pixels."""
        return dump_payloads(self.found)


def publish_variant(
    variant: Path,
    store: ObjectStore,
    dataset: str,
    terms: str | None = None,
    progress: Progress | None = None,
    *,
    about: About | None = None,
    before_sending: Callable[[], None] | None = None,
    workers: int = 4,
) -> PublishedVersion:
    """`storage.publication.publish`, with an `Inspection` of every image.

    Raises:
        NotProtected: an image is not protected; nothing was sent.
        PayloadMissing: a PNG was saved anew and lost what travels beside its pixels; nothing was sent.
        PublicationConflict, ObjectStoreError, CorruptShard, UsageError: as `storage.publication.publish`.
    """
    seen = Inspection()
    return publish(
        variant,
        store,
        dataset,
        terms,
        progress,
        check=seen.check,
        payloads=seen.payloads,
        before_sending=before_sending,
        about=about,
        workers=workers,
    )
