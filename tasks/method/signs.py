"""The set of perturbations that profile `exact` can take back, and its coded side information.

A perturbation is one sign a pixel, shared by R, G and B, or one a sample, times an amplitude A: a sample x becomes
x + sA, or stays x where that would leave 0..255. To undo it a decoder that holds the perturbed image needs the signs,
and for each sample that both cases can have led to (one within A of the end its sign points to) which case it was.

Coding. A pixel's sign shows in the perturbed image: it differs from what its surroundings suggest by about sA. So
signs are coded in raster order by an adaptive binary coder, in the context of that evidence (against clean pixels above
and to the left, which the decoder has by then, and perturbed ones below and to the right) and of the signs around. All
in integers.
"""

import numpy as np
from numba import njit

from tasks.method.coder import decode_bit, encode_bit, finish, new_contexts, new_state, start_decoding
from tasks.method.prediction import median_edge

_EVIDENCE = 13
"""Steps of evidence, in units of A/3 around zero."""

_AROUND = 16
_FIRST_FLAG = 3 * _EVIDENCE * _AROUND
_CONTEXTS = _FIRST_FLAG + 2 * 3 * 3


@njit(cache=True, nogil=True, inline="always")
def _moved(x, sign, amplitude):  # type: ignore[no-untyped-def]
    """Where a sample goes, and whether it moved."""
    v = x + sign * amplitude
    if v < 0 or v > 255:
        return x, False
    return v, True


@njit(cache=True, nogil=True, inline="always")
def _in_doubt(v, sign, amplitude):  # type: ignore[no-untyped-def]
    """Whether this perturbed sample may have moved or not."""
    return v > 255 - amplitude if sign > 0 else v < amplitude


@njit(cache=True, nogil=True)
def _planes(image, per_pixel):  # type: ignore[no-untyped-def]
    """What the samples of each sign add up to, int32 [h, w, per_pixel]."""
    height, width, _ = image.shape
    planes = np.empty((height, width, per_pixel), np.int32)
    for y in range(height):
        for x in range(width):
            if per_pixel == 1:
                planes[y, x, 0] = np.int32(image[y, x, 0]) + np.int32(image[y, x, 1]) + np.int32(image[y, x, 2])
            else:
                for k in range(3):
                    planes[y, x, k] = image[y, x, k]
    return planes


@njit(cache=True, nogil=True, inline="always")
def _earlier(known, y, x, k, middle):  # type: ignore[no-untyped-def]
    """Prediction from clean pixels to the left and above; the middle where there is none."""
    if y == 0:
        return np.int64(known[y, x - 1, k]) if x else middle
    b = np.int64(known[y - 1, x, k])
    if x == 0:
        return b
    return median_edge(np.int64(known[y, x - 1, k]), b, np.int64(known[y - 1, x - 1, k]))


@njit(cache=True, nogil=True, inline="always")
def _later(seen, y, x, k, guess):  # type: ignore[no-untyped-def]
    """Sum of the perturbed neighbours to the right and below; twice the one there is, or the guess."""
    right, below = x + 1 < seen.shape[1], y + 1 < seen.shape[0]
    a = np.int64(seen[y, x + 1, k]) if right else guess
    b = np.int64(seen[y + 1, x, k]) if below else guess
    if right and not below:
        return 2 * a
    if below and not right:
        return 2 * b
    return a + b


@njit(cache=True, nogil=True, inline="always")
def _context(seen, known, signs, y, x, k, samples, amplitude):  # type: ignore[no-untyped-def]
    """Context of the sign k of a pixel, which moves so many samples."""
    guess = _earlier(known, y, x, k, 128 * samples)
    evidence = 6 * np.int64(seen[y, x, k]) - 4 * guess - _later(seen, y, x, k, guess)
    unit, half = amplitude * samples, _EVIDENCE // 2
    step = min(max((evidence + unit) // (2 * unit), -half), half) + half
    left = 1 if x > 0 and signs[y, x - 1, k] > 0 else 0
    above = corner = other = 0
    if y > 0:
        above = 1 if signs[y - 1, x, k] > 0 else 0
        corner = 1 if x > 0 and signs[y - 1, x - 1, k] > 0 else 0
        other = 1 if x + 1 < signs.shape[1] and signs[y - 1, x + 1, k] > 0 else 0
    return (k * _EVIDENCE + step) * _AROUND + (left | above << 1 | corner << 2 | other << 3)


@njit(cache=True, nogil=True)
def perturb(clean, signs, amplitude, out):  # type: ignore[no-untyped-def]
    """Apply signs int8 [h, w, 1 or 3] (-1 or 1) to an image, uint8 [h, w, 3]."""
    height, width, _ = clean.shape
    for y in range(height):
        for x in range(width):
            for channel in range(3):
                sign = np.int64(signs[y, x, channel % signs.shape[2]])
                out[y, x, channel] = _moved(np.int64(clean[y, x, channel]), sign, amplitude)[0]


@njit(cache=True, nogil=True)
def encode(clean, image, signs, amplitude, buffer):  # type: ignore[no-untyped-def]
    """Code what undoes `perturb` (image is its result). Returns bytes used, or -1 when the buffer is too small."""
    height, width, _ = image.shape
    per_pixel = signs.shape[2]
    state = new_state()
    probs, counts = new_contexts(_CONTEXTS)
    last_flag = np.zeros(3, np.int64)
    seen, known = _planes(image, per_pixel), _planes(clean, per_pixel)
    samples = 3 // per_pixel
    for y in range(height):
        for x in range(width):
            for k in range(per_pixel):
                context = _context(seen, known, signs, y, x, k, samples, amplitude)
                encode_bit(buffer, state, probs, counts, context, 1 if signs[y, x, k] > 0 else 0)
            for channel in range(3):
                sign = np.int64(signs[y, x, channel % per_pixel])
                if _in_doubt(np.int64(image[y, x, channel]), sign, amplitude):
                    flag = 1 if image[y, x, channel] != clean[y, x, channel] else 0
                    context = _FIRST_FLAG + 3 * (2 * channel + (1 if sign > 0 else 0)) + last_flag[channel]
                    encode_bit(buffer, state, probs, counts, context, flag)
                    last_flag[channel] = 1 + flag
    return finish(buffer, state)


@njit(cache=True, nogil=True)
def decode(code, image, per_pixel, amplitude, out):  # type: ignore[no-untyped-def]
    """Undo `perturb`: writes the clean image to `out`. Any bytes give an image, inside 0..255."""
    height, width, _ = image.shape
    state = new_state()
    start_decoding(code, state)
    probs, counts = new_contexts(_CONTEXTS)
    signs = np.zeros((height, width, per_pixel), np.int8)
    last_flag = np.zeros(3, np.int64)
    seen, known = _planes(image, per_pixel), np.zeros((height, width, per_pixel), np.int32)
    samples = 3 // per_pixel
    for y in range(height):
        for x in range(width):
            for k in range(per_pixel):
                context = _context(seen, known, signs, y, x, k, samples, amplitude)
                signs[y, x, k] = 1 if decode_bit(code, state, probs, counts, context) else -1
            for channel in range(3):
                sign = np.int64(signs[y, x, channel % per_pixel])
                v = np.int64(image[y, x, channel])
                flag = 1
                if _in_doubt(v, sign, amplitude):
                    context = _FIRST_FLAG + 3 * (2 * channel + (1 if sign > 0 else 0)) + last_flag[channel]
                    flag = decode_bit(code, state, probs, counts, context)
                    last_flag[channel] = 1 + flag
                out[y, x, channel] = (v - sign * amplitude) & 255 if flag else v
                known[y, x, channel % per_pixel] += out[y, x, channel]


@njit(cache=True, nogil=True)
def nearest(clean, wanted, signs):  # type: ignore[no-untyped-def]
    """Write the signs that point to a wanted look to `signs`, int8 [h, w, 1 or 3].

    Where nothing is wanted, the sign that points to the nearer end: it moves a sample at that end not at all.
    """
    height, width, per_pixel = signs.shape
    for y in range(height):
        for x in range(width):
            for k in range(per_pixel):
                difference, level = np.int64(0), np.int64(0)
                for channel in range(k, 3, per_pixel):
                    difference += np.int64(wanted[y, x, channel]) - np.int64(clean[y, x, channel])
                    level += np.int64(clean[y, x, channel]) - 128
                signs[y, x, k] = 1 if (difference if difference else level) >= 0 else -1
