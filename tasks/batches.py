"""Cutting mixed images into what is done at once: so many pixels, and of these images of one shape at a time."""

import struct
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from storage.png import MAX_PIXELS
from storage.shards import Sample

PORTION_BYTES = 192 << 20
"""Pixels that are decoded at once, unless one image has more."""


def portions(samples: Sequence[Sample]) -> Iterator[Sequence[Sample]]:
    """The samples in order, as many at a time as `PORTION_BYTES` allow."""
    start, size = 0, 0
    for i, sample in enumerate(samples):
        mine = _decoded_bytes(sample.png)
        if i > start and size + mine > PORTION_BYTES:
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
