"""Restore samples: read each header, find the key it asks for, open the seal, undo the transform.

Nothing about one image touches another: what can not be restored becomes a refusal with its reason, the rest is served.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.errors import DmcpError
from storage.png import decode_png, encode_png
from storage.shards import Sample
from tasks.batches import by_shape
from tasks.method.carriers import read_headers
from tasks.method.header import Header
from tasks.method.paper import PaperProfile
from tasks.method.seal import DataKey

FindKey = Callable[[str], DataKey]
"""Key id (16 hex digits) to key. Raises UnknownKey, ForeignImage or NotAuthorised for keys this request may not use."""


@dataclass(frozen=True)
class Refusal:
    """Why one image was not restored: the class of the error (for machines) and its text (for people)."""

    key: str
    error: str
    reason: str

    @classmethod
    def of(cls, key: str, error: DmcpError) -> "Refusal":
        """From an error of our tree."""
        return cls(key, type(error).__name__, str(error))


@dataclass
class RestoredBatch:
    """Recovered samples in the order of the request, refusals, and seconds by step."""

    samples: list[Sample] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


def restore_samples(samples: Sequence[Sample], find_key: FindKey) -> RestoredBatch:
    """Restore what can be restored of protected samples (any subset, order and names); labels are passed on."""
    batch = RestoredBatch()
    clock = time.perf_counter
    started = clock()
    images: list[NDArray[np.uint8]] = []
    decoded: list[int] = []
    refused: dict[int, DmcpError] = {}
    for i, sample in enumerate(samples):
        try:
            images.append(decode_png(sample.png, sample.key))
            decoded.append(i)
        except DmcpError as error:
            refused[i] = error
    opened = clock()
    recovered: dict[int, NDArray[np.uint8]] = {}
    for group in by_shape(images):
        stack = np.stack([images[i] for i in group])
        for i, result in zip(group, restore_images(stack, find_key), strict=True):
            if isinstance(result, DmcpError):
                refused[decoded[i]] = result
            else:
                recovered[decoded[i]] = result
    undone = clock()
    batch.samples = [Sample(s.key, encode_png(recovered[i]), s.label) for i, s in enumerate(samples) if i in recovered]
    batch.refusals = [Refusal.of(samples[i].key, refused[i]) for i in sorted(refused)]
    batch.seconds = {"decode": opened - started, "restore": undone - opened, "encode": clock() - undone}
    return batch


def restore_images(images: NDArray[np.uint8], find_key: FindKey) -> list[NDArray[np.uint8] | DmcpError]:
    """Recovered images (uint8 [h, w, 3]) of protected ones of one shape (uint8 [n, h, w, 3]), or why not."""
    results: list[NDArray[np.uint8] | DmcpError] = [DmcpError("", "")] * len(images)
    headers: dict[int, Header] = {}
    keys: dict[str, DataKey | DmcpError] = {}
    for i, raw in enumerate(read_headers(images)):
        try:
            headers[i] = Header.unpack(raw)
        except DmcpError as error:
            results[i] = error
    for key_id in {h.key_id.hex() for h in headers.values()}:
        try:
            keys[key_id] = find_key(key_id)
        except DmcpError as error:
            keys[key_id] = error
    for key_id, key in keys.items():
        group = [i for i, h in headers.items() if h.key_id.hex() == key_id]
        found: Sequence[Any] = (
            [key] * len(group)
            if isinstance(key, DmcpError)
            else PaperProfile().recover(images[group], [headers[i] for i in group], key)
        )
        for i, result in zip(group, found, strict=True):
            results[i] = result
    return results


def read_header(png: bytes, name: str) -> Header:
    """The clear header of one protected PNG.

    Raises:
        UnsupportedImage, NotProtected, UnsupportedFormat.
    """
    return Header.unpack(read_headers(decode_png(png, name)[None])[0])


def count_reasons(refusals: Sequence[Refusal]) -> dict[str, int]:
    """How many of each class of error."""
    return dict(Counter(r.error for r in refusals).most_common())
