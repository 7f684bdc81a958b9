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
_PLANE = _EVIDENCE * _AROUND
_FIRST_FLAG = 3 * _PLANE
_CONTEXTS = _FIRST_FLAG + 2 * 3 * 3


@njit(cache=True, nogil=True, inline="always")
def _moved(x, sign, amplitude):  # type: ignore[no-untyped-def]
    """Where a sample goes, and whether it moved."""
    v = x + sign * amplitude
    if v < 0 or v > 255:
        return x, False
    return v, True


@njit(cache=True, nogil=True, inline="always")
def _in_doubt(v, up, amplitude):  # type: ignore[no-untyped-def]
    """Whether this perturbed sample, whose sign points up (1) or down (0), may have moved or not."""
    return v > 255 - amplitude if up else v < amplitude


@njit(cache=True, nogil=True)
def _framed(height, width, planes, value):  # type: ignore[no-untyped-def]
    """Planes with a frame of one pixel, so that no neighbour is missing; int32 [planes, (h + 2) * (w + 2)].

    Where y, x lies in a plane: (y + 1) * (w + 2) + x + 1.
    """
    return np.full((planes, (height + 2) * (width + 2)), value, np.int32)


@njit(cache=True, nogil=True)
def _sums(image, per_pixel, value):  # type: ignore[no-untyped-def]
    """What the samples of each sign add up to, framed by a value."""
    height, width, _ = image.shape
    planes = _framed(height, width, per_pixel, value)
    for y in range(height):
        at = (y + 1) * (width + 2) + 1
        for x in range(width):
            if per_pixel == 1:
                planes[0, at + x] = np.int32(image[y, x, 0]) + np.int32(image[y, x, 1]) + np.int32(image[y, x, 2])
            else:
                for k in range(3):
                    planes[k, at + x] = image[y, x, k]
    return planes


@njit(cache=True, nogil=True)
def _seen(image, per_pixel):  # type: ignore[no-untyped-def]
    """The perturbed sums. Below the last row and right of the last column the other neighbour counts twice."""
    height, width, _ = image.shape
    stride = width + 2
    planes = _sums(image, per_pixel, 0)
    for k in range(per_pixel):
        for x in range(width - 1):
            planes[k, (height + 1) * stride + x + 1] = planes[k, height * stride + x + 2]
        for y in range(height - 1):
            planes[k, (y + 1) * stride + width + 1] = planes[k, (y + 2) * stride + width]
    return planes


@njit(cache=True, nogil=True, inline="always")
def _part(unit):  # type: ignore[no-untyped-def]
    """n * part >> 32 is n // (2 * unit) for all n that occur, below 2^14, and ten times as fast."""
    return (1 << 32) // (2 * unit) + 1


@njit(cache=True, nogil=True, inline="always")
def _context(seen, known, signs, at, stride, last, unit, part):  # type: ignore[no-untyped-def]
    """Context, within its plane, of the sign of a pixel: planes as of `_seen`, `_sums` and `_framed`.

    `part` is that of `_part(unit)`. The clean sums in the frame are all the same, so that the edge predictor takes the
    neighbour that there is.
    """
    guess = median_edge(np.int64(known[at - 1]), np.int64(known[at - stride]), np.int64(known[at - stride - 1]))
    later = np.int64(seen[at + 1]) + np.int64(seen[at + stride]) if at != last else 2 * guess
    evidence = 6 * np.int64(seen[at]) - 4 * guess - later
    # To the nearest step, and clamped: divided by 2 * unit.
    step = (min(max(evidence + _EVIDENCE * unit, 0), 2 * _EVIDENCE * unit - 1) * part) >> 32
    around = signs[at - 1] | signs[at - stride] << 1 | signs[at - stride - 1] << 2 | signs[at - stride + 1] << 3
    return step * _AROUND + around


@njit(cache=True, nogil=True)
def perturb(clean, signs, amplitude, out):  # type: ignore[no-untyped-def]
    """Apply signs int8 [h, w, 1 or 3] (-1 or 1) to an image, uint8 [h, w, 3]."""
    height, width, _ = clean.shape
    for y in range(height):
        for x in range(width):
            for channel in range(3):
                sign = np.int64(signs[y, x, channel if signs.shape[2] == 3 else 0])
                out[y, x, channel] = _moved(np.int64(clean[y, x, channel]), sign, amplitude)[0]


@njit(cache=True, nogil=True)
def encode(clean, image, signs, amplitude, buffer):  # type: ignore[no-untyped-def]
    """Code what undoes `perturb` (image is its result). Returns bytes used, or -1 when the buffer is too small."""
    height, width, _ = image.shape
    per_pixel = signs.shape[2]
    state = new_state()
    probs, counts = new_contexts(_CONTEXTS)
    last_flag = np.zeros(3, np.int64)
    samples, stride = 3 // per_pixel, width + 2
    unit, part = amplitude * samples, _part(amplitude * samples)
    seen, known = _seen(image, per_pixel), _sums(clean, per_pixel, 128 * samples)
    told, last = _framed(height, width, per_pixel, 0), height * stride + width
    for y in range(height):
        for x in range(width):
            at = (y + 1) * stride + x + 1
            for k in range(per_pixel):
                context = _context(seen[k], known[k], told[k], at, stride, last, unit, part)
                told[k, at] = 1 if signs[y, x, k] > 0 else 0
                encode_bit(buffer, state, probs, counts, k * _PLANE + context, told[k, at])
            for channel in range(3):
                up = told[channel if per_pixel == 3 else 0, at]
                if _in_doubt(np.int64(image[y, x, channel]), up, amplitude):
                    flag = 1 if image[y, x, channel] != clean[y, x, channel] else 0
                    context = _FIRST_FLAG + 3 * (2 * channel + up) + last_flag[channel]
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
    last_flag = np.zeros(3, np.int64)
    samples, stride = 3 // per_pixel, width + 2
    unit, part = amplitude * samples, _part(amplitude * samples)
    seen, known = _seen(image, per_pixel), _framed(height, width, per_pixel, 128 * samples)
    told, last = _framed(height, width, per_pixel, 0), height * stride + width
    for y in range(height):
        for x in range(width):
            at = (y + 1) * stride + x + 1
            for k in range(per_pixel):
                context = _context(seen[k], known[k], told[k], at, stride, last, unit, part)
                told[k, at] = decode_bit(code, state, probs, counts, k * _PLANE + context)
                known[k, at] = 0
            for channel in range(3):
                k = channel if per_pixel == 3 else 0
                up, v = told[k, at], np.int64(image[y, x, channel])
                change = amplitude if up else -amplitude
                if _in_doubt(v, up, amplitude):
                    context = _FIRST_FLAG + 3 * (2 * channel + up) + last_flag[channel]
                    flag = decode_bit(code, state, probs, counts, context)
                    last_flag[channel] = 1 + flag
                    change *= flag
                out[y, x, channel] = (v - change) & 255
                known[k, at] += out[y, x, channel]


@njit(cache=True, nogil=True)
def settle(signs, weight, out):  # type: ignore[no-untyped-def]
    """Write signs to `out` that cost fewer bits: each takes that of its eight neighbours where they outvote it.

    Both int8 [h, w, 1 or 3]; `weight` is what its own vote counts. On a draw a sign stays.
    """
    height, width, per_pixel = signs.shape
    for y in range(height):
        for x in range(width):
            for k in range(per_pixel):
                votes = (weight - 1) * np.int64(signs[y, x, k])
                for i in range(max(y - 1, 0), min(y + 2, height)):
                    for j in range(max(x - 1, 0), min(x + 2, width)):
                        votes += signs[i, j, k]
                out[y, x, k] = signs[y, x, k] if votes == 0 else (1 if votes > 0 else -1)


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
