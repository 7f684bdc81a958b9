"""Carriers: how header and payload travel in the samples of an image.

`LsbCarrier` replaces least significant bits (the paper, section 2.2): plane 0 of all samples in raster order, the
header first, then plane 1, then plane 2. What it replaces is lost; what it does not reach keeps its bits.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from tasks.method import header as hdr

Images = NDArray[np.uint8]


@njit(cache=True, nogil=True)
def _put(flat, start, data):  # type: ignore[no-untyped-def]
    """Write the bits of `data` (uint8) at carrier positions from `start` on; position = plane * samples + sample."""
    n = flat.size
    for i in range(8 * data.size):
        plane, sample = (start + i) // n, (start + i) % n
        bit = (data[i >> 3] >> (7 - (i & 7))) & 1
        flat[sample] = (flat[sample] & ~np.uint8(1 << plane)) | np.uint8(bit << plane)


@njit(cache=True, nogil=True)
def _take(flat, start, size):  # type: ignore[no-untyped-def]
    n = flat.size
    data = np.zeros(size, np.uint8)
    for i in range(8 * size):
        plane, sample = (start + i) // n, (start + i) % n
        data[i >> 3] |= ((flat[sample] >> plane) & 1) << (7 - (i & 7))
    return data


@njit(cache=True, nogil=True)
def _wipe(flat, bits, middle):  # type: ignore[no-untyped-def]
    """Set the first `bits` carrier positions to zero, or each sample's replaced bits to the middle of their range."""
    n = flat.size
    for sample in range(min(n, bits)):
        replaced = (bits - sample + n - 1) // n
        flat[sample] &= ~np.uint8((1 << replaced) - 1)
        if middle:
            flat[sample] |= np.uint8(1 << (replaced - 1))


@njit(cache=True, nogil=True)
def _take_headers(images, size):  # type: ignore[no-untyped-def]
    result = np.empty((images.shape[0], size), np.uint8)
    for i in range(images.shape[0]):
        result[i] = _take(images[i].reshape(-1), 0, size)
    return result


def read_headers(images: Images) -> list[bytes]:
    """The 27 bytes where a header lies, of each image; the place is the same for every carrier and version."""
    return [row.tobytes() for row in _take_headers(np.ascontiguousarray(images), hdr.SIZE)]


class LsbCarrier:
    """Replacement of the `planes` lowest bit planes."""

    def __init__(self, planes: int) -> None:
        self.planes = planes

    def capacity(self, height: int, width: int) -> int:
        """Payload bytes that fit beside the header."""
        return max(0, (3 * height * width * self.planes - hdr.BITS) // 8)

    def embed(self, images: Images, headers: list[bytes], payloads: list[bytes]) -> None:
        """Write header and payload of each image, in place."""
        for image, head, payload in zip(images, headers, payloads, strict=True):
            _put(image.reshape(-1), 0, np.frombuffer(head + payload, np.uint8))

    def clear(self, images: Images, sizes: NDArray[np.int64], middle: bool) -> Images:
        """Copies with the carrying bits at zero, or (`middle`) where the expected error is least."""
        result = np.ascontiguousarray(images).copy()
        for image, size in zip(result, sizes, strict=True):
            _wipe(image.reshape(-1), hdr.BITS + 8 * int(size), middle)
        return result

    def extract(self, images: Images, sizes: NDArray[np.int64]) -> list[bytes]:
        """Payloads of these sizes."""
        rows = np.ascontiguousarray(images)
        return [_take(row.reshape(-1), hdr.BITS, int(size)).tobytes() for row, size in zip(rows, sizes, strict=True)]
