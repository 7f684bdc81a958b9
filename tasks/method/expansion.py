"""Reversible carrier: prediction-error expansion, after which every sample can be had back exactly.

Reversible data hiding after Thodi and Rodriguez (IEEE Transactions on Image Processing, 2007), laid out so that no
location map is needed. Pixels are visited in raster order and, in a pixel, its samples in the order R, B, G. A sample v
is predicted (q) from samples that come later in that order, so the decoder, which walks backwards, predicts from what
it has already restored. With e = v - q and threshold T:

* q < 3T or q > 256 - 3T: the sample is skipped;
* -T <= e < T: it is expanded, e' = 2e + bit; thanks to the first rule q + e' stays inside 0..255;
* otherwise it is shifted out of the way, e' = e + T or e - T. Where that would leave 0..255 it stays as it is (by the
  first rule still outside the expanded range), and a flag tells the two apart. A flag is owed only where v' lies within
  T of an end (`_in_doubt`), and travels like a payload bit, in the next expanded sample: last in, first out, so that
  the decoder meets it before it needs it.

G is predicted from its right, lower and lower right neighbours (the median edge predictor, as in LOCO-I, turned
round); R and B from G of their own pixel plus the same predictor of the differences R-G and B-G: what is added to all
three channels alike does not disturb them. The first `RESERVED` pixels are never visited: there the header lies.

A carrier stream fills the visited part of an image, its *extent*: bits past the payload are zeros.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from tasks.method.prediction import median_edge

RESERVED = 72
"""Pixels at the start whose 216 samples hold the header in their lowest bits."""

EXTENT_UNITS = 65535
"""The extent is told in so many parts of the pixels that are not reserved."""

MAX_THRESHOLD = 42
"""With a larger one every prediction would be skipped."""

_NEVER = -1


@njit(cache=True, nogil=True)
def _planes(image):  # type: ignore[no-untyped-def]
    """R-G, G and B-G, int32 [3, (h + 1) * (w + 1)], with zeros right of each row and below: y, x is at y * (w + 1) + x.

    The zeros are all alike, so that the edge predictor takes the neighbour that there is; of the differences it makes
    nothing where there is none.
    """
    height, width, _ = image.shape
    planes = np.zeros((3, (height + 1) * (width + 1)), np.int32)
    for y in range(height):
        for x in range(width):
            at, green = y * (width + 1) + x, np.int32(image[y, x, 1])
            planes[0, at] = np.int32(image[y, x, 0]) - green
            planes[1, at] = green
            planes[2, at] = np.int32(image[y, x, 2]) - green
    return planes


@njit(cache=True, nogil=True, inline="always")
def _predict(plane, at, stride, green):  # type: ignore[no-untyped-def]
    """Prediction from later samples, 0..255; `green` is the pixel's own G for R and B, and 0 for G."""
    right, below, between = plane[at + 1], plane[at + stride], plane[at + stride + 1]
    return min(max(green + median_edge(np.int64(right), np.int64(below), np.int64(between)), 0), 255)


@njit(cache=True, nogil=True, inline="always")
def _skipped(q, t):  # type: ignore[no-untyped-def]
    return q < 3 * t or q > 256 - 3 * t


@njit(cache=True, nogil=True, inline="always")
def _in_doubt(v, q, t):  # type: ignore[no-untyped-def]
    """Whether a sample with this value after embedding, outside the expanded range, may be shifted or not."""
    return v > 255 - t if v >= q else v < t


@njit(cache=True, nogil=True, inline="always")
def _channel(k):  # type: ignore[no-untyped-def]
    """R, B, G."""
    return 0 if k == 0 else (2 if k == 1 else 1)


@njit(cache=True, nogil=True)
def pixels_of_extent(pixels, extent):  # type: ignore[no-untyped-def]
    """Where the visited part ends, as a pixel number; `extent` in `EXTENT_UNITS`, rounded up where it was made."""
    return RESERVED + (pixels - RESERVED) * extent // EXTENT_UNITS


@njit(cache=True, nogil=True)
def _room(image, counts, predictions):  # type: ignore[no-untyped-def]
    """For each threshold, how many samples it expands, int64 [MAX_THRESHOLD + 1]; keeps predictions, int16 [3hw]."""
    height, width, _ = image.shape
    counts[:] = 0
    planes, stride = _planes(image), width + 1
    y, x = RESERVED // width, RESERVED % width - 1
    for i in range(RESERVED, height * width):
        x += 1
        if x == width:
            y, x = y + 1, 0
        at = y * stride + x
        for channel in range(3):
            green = np.int64(0) if channel == 1 else np.int64(image[y, x, 1])
            q = _predict(planes[channel], at, stride, green)
            if channel == 1 and i == height * width - 1:
                q = np.int64(_NEVER)
            predictions[3 * i + channel] = q
            if q == _NEVER:
                continue
            e = np.int64(image[y, x, channel]) - q
            first = e + 1 if e >= 0 else -e
            last = min(min(q, 256 - q) // 3, MAX_THRESHOLD)
            if first <= last:
                counts[first] += 1
                if last < MAX_THRESHOLD:
                    counts[last + 1] -= 1
    for t in range(1, MAX_THRESHOLD + 1):
        counts[t] += counts[t - 1]


@njit(cache=True, nogil=True)
def _embed(image, predictions, t, bits, out, flags):  # type: ignore[no-untyped-def]
    """Write `bits` (uint8, 0 or 1) into `out`, a copy of `image`. Returns the extent, or -1 when they do not fit.

    `predictions` are those of `_room`; `flags` is a scratch of at least as many entries as samples.
    """
    height, width, _ = image.shape
    pixels = height * width
    owed, done = 0, 0
    end, extent = pixels, -1
    y, x = RESERVED // width, RESERVED % width - 1
    for i in range(RESERVED, pixels):
        if i >= end:
            break
        x += 1
        if x == width:
            y, x = y + 1, 0
        for k in range(3):
            channel = _channel(k)
            q = np.int64(predictions[3 * i + channel])
            if q == _NEVER or _skipped(q, t):
                continue
            v = np.int64(image[y, x, channel])
            e = v - q
            if -t <= e < t:
                bit = 0
                if owed > 0:
                    owed -= 1
                    bit = flags[owed]
                elif done < bits.size:
                    bit = bits[done]
                    done += 1
                out[y, x, channel] = q + 2 * e + bit
                continue
            moved = v + t if e >= t else v - t
            shifted = 0 <= moved <= 255
            if not shifted:
                moved = v
            out[y, x, channel] = moved
            if _in_doubt(moved, q, t):
                flags[owed] = 1 if shifted else 0
                owed += 1
        if done == bits.size and owed == 0 and (extent < 0 or i + 1 == end):
            extent = -(-(i + 1 - RESERVED) * EXTENT_UNITS // (pixels - RESERVED))
            end = pixels_of_extent(pixels, extent)
        elif i + 1 == end:  # a flag is owed at the very end: go on to where none is
            extent, end = -1, pixels
    return extent if done == bits.size and owed == 0 else -1


@njit(cache=True, nogil=True, inline="always")
def _taken_back(v, q, t, stack, held):  # type: ignore[no-untyped-def]
    """A sample as it was, and how many bits lie on the stack then; -1: one that was needed was not there."""
    if held < 0 or _skipped(q, t):
        return v, held
    e = v - q
    expanded = (e >= -2 * t) & (e < 2 * t)
    if not expanded and _in_doubt(v, q, t):
        held -= 1
        if held < 0 or stack[held] == 0:
            return v, held
    # Both cases are computed and one is chosen: which it is no processor guesses.
    stack[held] = e & 1
    change = e - (e >> 1) if expanded else (t if e > 0 else -t)
    return v - change, held + expanded


@njit(cache=True, nogil=True)
def _extract(image, t, extent, stack):  # type: ignore[no-untyped-def]
    """Restore `image` in place. Returns how many bits lie on `stack` (uint8), the first one on top; -1: impossible.

    `stack` has an entry more than there are samples.
    """
    height, width, _ = image.shape
    planes, stride = _planes(image), width + 1
    red, green, blue = planes[0], planes[1], planes[2]
    end = pixels_of_extent(height * width, extent)
    held = np.int64(0)
    y, x = end // width, end % width
    for i in range(end - 1, RESERVED - 1, -1):
        x -= 1
        if x < 0:
            y, x = y - 1, width - 1
        at = y * stride + x
        r, g, b = np.int64(image[y, x, 0]), np.int64(image[y, x, 1]), np.int64(image[y, x, 2])
        if i < height * width - 1:  # the last G has nothing to be predicted from
            g, held = _taken_back(g, _predict(green, at, stride, 0), t, stack, held)
        b, held = _taken_back(b, _predict(blue, at, stride, g), t, stack, held)
        r, held = _taken_back(r, _predict(red, at, stride, g), t, stack, held)
        if held < 0:
            return held
        image[y, x, 0], image[y, x, 1], image[y, x, 2] = r, g, b
        red[at], green[at], blue[at] = r - g, g, b - g
    return held


@njit(cache=True, nogil=True)
def expand_batch(images, payloads, sizes, out, thresholds, extents):  # type: ignore[no-untyped-def]
    """Embed the first `sizes[i]` bytes of `payloads[i]` into each image, at the smallest threshold that takes them.

    images, out uint8 [n, h, w, 3]; payloads uint8 [n, m]; thresholds, extents int64 [n], threshold 0: does not fit.
    """
    samples = images[0].size
    flags = np.empty(samples, np.uint8)
    counts = np.empty(MAX_THRESHOLD + 1, np.int64)
    predictions = np.empty(samples, np.int16)
    for i in range(images.shape[0]):
        bits = np.empty(8 * sizes[i], np.uint8)
        for j in range(bits.size):
            bits[j] = (payloads[i, j >> 3] >> (7 - (j & 7))) & 1
        thresholds[i], extents[i] = 0, 0
        _room(images[i], counts, predictions)
        for t in range(1, MAX_THRESHOLD + 1):
            if counts[t] < bits.size:
                continue
            out[i] = images[i]
            extent = _embed(images[i], predictions, t, bits, out[i], flags)
            if extent >= 0:
                thresholds[i], extents[i] = t, extent
                break
        if thresholds[i] == 0:
            out[i] = images[i]


@njit(cache=True, nogil=True)
def contract_batch(images, thresholds, extents, sizes, payloads, sound):  # type: ignore[no-untyped-def]
    """Undo `expand_batch` in place: fills `payloads` uint8 [n, m]; `sound[i]` False where no encoder made this."""
    stack = np.empty(images[0].size + 1, np.uint8)
    for i in range(images.shape[0]):
        held = _extract(images[i], thresholds[i], extents[i], stack)
        sound[i] = held >= 8 * sizes[i]
        if sound[i]:
            for j in range(8 * sizes[i]):
                payloads[i, j >> 3] |= stack[held - 1 - j] << (7 - (j & 7))


def expand(
    images: NDArray[np.uint8], payloads: NDArray[np.uint8], sizes: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """Carry payloads in images of one shape; see `expand_batch`. Returns the images, thresholds and extents."""
    out = np.empty_like(images)
    thresholds, extents = np.zeros(len(images), np.int64), np.zeros(len(images), np.int64)
    if len(images):
        expand_batch(np.ascontiguousarray(images), payloads, sizes, out, thresholds, extents)
    return out, thresholds, extents


def contract(
    images: NDArray[np.uint8], thresholds: NDArray[np.int64], extents: NDArray[np.int64], sizes: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], list[bytes | None]]:
    """The images as they were before `expand`, and their payloads; None where no encoder made this."""
    restored = np.array(images, order="C")
    payloads = np.zeros((len(images), max(1, int(sizes.max(initial=1)))), np.uint8)
    sound = np.zeros(len(images), np.bool_)
    if len(images):
        contract_batch(restored, thresholds, extents, sizes, payloads, sound)
    return restored, [
        row[:size].tobytes() if ok else None for row, size, ok in zip(payloads, sizes, sound, strict=True)
    ]
