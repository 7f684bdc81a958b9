"""Cutting mixed images into batches that kernels take: images of one shape at a time."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray


def by_shape(images: list[NDArray[np.uint8]]) -> Iterator[list[int]]:
    """Indices of images of the same shape, shapes in order of first appearance."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, image in enumerate(images):
        groups.setdefault(image.shape, []).append(i)
    yield from groups.values()
