"""Cutting mixed images into what is done at once: so many pixels, and of these images of one shape at a time."""

import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import numpy as np
from numpy.typing import NDArray

from storage.png import MAX_PIXELS
from storage.shards import Sample

PORTION_BYTES = 192 << 20
"""Pixels that are decoded at once, unless one image has more."""


RESTORED_BYTES = 32 << 20
"""The same for restoring, which takes some eleven times as much memory, and gives the same bytes however it is cut."""

_LARGE = threading.Lock()


@contextmanager
def room_for(portion: Sequence[Sample]) -> Iterator[None]:
    """Wait until this portion may be restored: one that is larger than `RESTORED_BYTES` (an image) at a time.

    So that nobody who hands in a large image for each worker, which takes no key, can use up the memory.
    """
    with _LARGE if _decoded_bytes(portion[0].png) > RESTORED_BYTES else nullcontext():
        yield


def portions(samples: Sequence[Sample], most: int | None = None) -> Iterator[Sequence[Sample]]:
    """The samples in order, as many at a time as so many bytes of pixels allow; by default `PORTION_BYTES`."""
    most = PORTION_BYTES if most is None else most
    start, size = 0, 0
    for i, sample in enumerate(samples):
        mine = _decoded_bytes(sample.png)
        if i > start and size + mine > most:
            yield samples[start:i]
            start, size = i, 0
        size += mine
    if start < len(samples):
        yield samples[start:]


def _decoded_bytes(png: bytes) -> int:
    """Size of a PNG's pixels, as its header says; 0 where it will be refused without being decoded."""
    width, height = struct.unpack_from(">16xII", png) if len(png) >= 24 else (0, 0)
    return 3 * width * height if width * height <= MAX_PIXELS else 0


def by_shape(images: list[NDArray[np.uint8]]) -> Iterator[list[int]]:
    """Indices of images of the same shape, shapes in order of first appearance."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, image in enumerate(images):
        groups.setdefault(image.shape, []).append(i)
    yield from groups.values()
