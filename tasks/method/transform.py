"""mRIT: put the blocks of the clean image in the look of the perturbed one, and back (the paper, section 2.2).

Where the paper is silent the choices are ours: channels are transformed apart; the shift is the difference of the block
means in multiples of the shift step (lambda), clamped to the largest multiple that keeps the block inside 0..255, so
that nothing is ever truncated and the transform is a bijection; samples outside whole blocks (sides that are no
multiple of b) are shifted one by one. Shifts are multiples of 2^planes, so that the carrier's bit planes and the shifts
do not meet.

The Sequence of an image, as arrays (n blocks a channel, m samples outside blocks):
    source_class, target_class uint8 [3, n]; turn uint8 [3, n]; shift int16 [3, n]; edge_shift int16 [m]
"""

import numpy as np
from numba import njit

from tasks.method.blocks import best_turn, block_range, classes_of, pair, spreads, turned

SORTED, IDENTITY, EXPLICIT = 0, 1, 2


@njit(cache=True, nogil=True, inline="always")
def _clamped_shift(difference, samples, low, high, step):  # type: ignore[no-untyped-def]
    """Multiple of `step` nearest to difference/samples (half rounds up) that keeps [low, high] inside 0..255."""
    whole = samples * step
    shift = (2 * difference + whole) // (2 * whole)
    return min(max(shift, -(low // step)), (255 - high) // step)


@njit(cache=True, nogil=True)
def edge_count(height, width, b):  # type: ignore[no-untyped-def]
    """Samples (of all three channels) outside whole blocks."""
    return 3 * (height * width - (height // b) * b * (width // b) * b)


@njit(cache=True, nogil=True)
def _shift_edges(clean, target, b, step, out, edge_shift):  # type: ignore[no-untyped-def]
    height, width, _ = clean.shape
    inner_h, inner_w = (height // b) * b, (width // b) * b
    k = 0
    for y in range(height):
        for x in range(inner_w if y < inner_h else 0, width):
            for c in range(3):
                s = np.int64(clean[y, x, c])
                shift = _clamped_shift(np.int64(target[y, x, c]) - s, 1, s, s, step)
                edge_shift[k] = shift
                out[y, x, c] = s + shift * step
                k += 1


@njit(cache=True, nogil=True)
def transform(clean, target, b, classes, step, planes, pairing, out):  # type: ignore[no-untyped-def]
    """Transform one image, uint8 [h, w, 3] each; writes `out`.

    Returns (pairing used, source_class, target_class, turn, shift, edge_shift). A SORTED pairing becomes EXPLICIT when
    a tie between classes would make the decoder, which sorts again, pair otherwise.
    """
    height, width, _ = clean.shape
    rows, columns = height // b, width // b
    n = rows * columns
    source_class = np.zeros((3, n), np.uint8)
    target_class = np.zeros((3, n), np.uint8)
    turn = np.zeros((3, n), np.uint8)
    shift = np.zeros((3, n), np.int16)
    edge_shift = np.zeros(edge_count(height, width, b), np.int16)
    for c in range(3):
        source, wanted, result = clean[:, :, c], target[:, :, c], out[:, :, c]
        if pairing != IDENTITY:
            source_class[c] = classes_of(spreads(source, b, columns, n, planes), classes)
            target_class[c] = classes_of(spreads(wanted, b, columns, n, planes), classes)
        source_of = pair(source_class[c], target_class[c], classes)
        for j in range(n):
            ty, tx = (j // columns) * b, (j % columns) * b
            sy, sx = (source_of[j] // columns) * b, (source_of[j] % columns) * b
            total, low, high = block_range(source, sy, sx, b)
            goal, _, _ = block_range(wanted, ty, tx, b)
            shift[c, j] = _clamped_shift(goal - total, b * b, low, high, step)
            turn[c, j] = best_turn(source, sy, sx, wanted, ty, tx, b)
            for dy in range(b):
                for dx in range(b):
                    uy, ux = turned(b, turn[c, j], dy, dx)
                    result[ty + dy, tx + dx] = np.int64(source[sy + uy, sx + ux]) + shift[c, j] * step
        if pairing == SORTED:
            again = classes_of(spreads(result, b, columns, n, planes), classes)
            if not np.array_equal(again, target_class[c]):
                pairing = EXPLICIT
    _shift_edges(clean, target, b, step, out, edge_shift)
    return pairing, source_class, target_class, turn, shift, edge_shift


@njit(cache=True, nogil=True)
def sorted_classes(image, b, classes, planes):  # type: ignore[no-untyped-def]
    """Target classes as the decoder of a SORTED pairing finds them in the (transformed, carrying) image."""
    height, width, _ = image.shape
    columns = width // b
    n = (height // b) * columns
    result = np.empty((3, n), np.uint8)
    for c in range(3):
        result[c] = classes_of(spreads(image[:, :, c], b, columns, n, planes), classes)
    return result


@njit(cache=True, nogil=True)
def restore(image, b, classes, step, source_class, target_class, turn, shift, edge_shift, out):  # type: ignore[no-untyped-def]
    """Inverse of `transform`: writes the source image to `out`, uint8 [h, w, 3].

    Returns False when the Sequence leads outside 0..255, which no Sequence made by `transform` does.
    """
    height, width, _ = image.shape
    columns = width // b
    n = (height // b) * columns
    inner_h, inner_w = (height // b) * b, columns * b
    sound = True
    for c in range(3):
        for k in range(classes):  # a forged Sequence may not pair at all
            sound = sound and np.sum(source_class[c] == k) == np.sum(target_class[c] == k)
    if not sound:
        return False
    for c in range(3):
        source_of = pair(source_class[c], target_class[c], classes)
        for j in range(n):
            ty, tx = (j // columns) * b, (j % columns) * b
            sy, sx = (source_of[j] // columns) * b, (source_of[j] % columns) * b
            for dy in range(b):
                for dx in range(b):
                    uy, ux = turned(b, turn[c, j], dy, dx)
                    value = np.int64(image[ty + dy, tx + dx, c]) - shift[c, j] * step
                    sound = sound and 0 <= value <= 255
                    out[sy + uy, sx + ux, c] = value & 255
    k = 0
    for y in range(height):
        for x in range(inner_w if y < inner_h else 0, width):
            for c in range(3):
                value = np.int64(image[y, x, c]) - edge_shift[k] * step
                sound = sound and 0 <= value <= 255
                out[y, x, c] = value & 255
                k += 1
    return sound
