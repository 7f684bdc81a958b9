"""Blocks of mRIT (Hou et al., reversible image transformation; the paper, section 2.2): spread, classes, pairs, turns.

Everything here is integer arithmetic on one channel of one image, because the decoder has to repeat it exactly.
Blocks are numbered in raster order; `j` is a block's number and `columns` the number of blocks in a row.
"""

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def spreads(channel, b, columns, n, planes):  # type: ignore[no-untyped-def]
    """Rank key of each block: b^2 * sum(v^2) - (sum v)^2 with v = sample >> planes; int64 [n].

    The low `planes` bits are left out and shifts are multiples of 2^planes, so that neither shifting, turning nor the
    carrier changes the key.
    """
    keys = np.empty(n, np.int64)
    for j in range(n):
        y, x = (j // columns) * b, (j % columns) * b
        total, squares = 0, 0
        for dy in range(b):
            for dx in range(b):
                v = np.int64(channel[y + dy, x + dx]) >> planes
                total += v
                squares += v * v
        keys[j] = b * b * squares - total * total
    return keys


@njit(cache=True, nogil=True)
def classes_of(keys, count):  # type: ignore[no-untyped-def]
    """Class of each block, uint8 [n]: `count` classes of equal volume by rank, ties broken by raster index."""
    n = keys.size
    order = np.argsort(keys * n + np.arange(n))  # distinct keys: the order does not depend on the sort
    result = np.empty(n, np.uint8)
    for rank in range(n):
        result[order[rank]] = rank * count // n
    return result


@njit(cache=True, nogil=True)
def pair(source_class, target_class, count):  # type: ignore[no-untyped-def]
    """For each target position the number of the source block put there: j-th with j-th of each class, int64 [n]."""
    n = source_class.size
    members = np.empty(n, np.int64)
    starts = np.zeros(count + 1, np.int64)
    for j in range(n):
        starts[source_class[j] + 1] += 1
    for c in range(count):
        starts[c + 1] += starts[c]
    filled = starts[:-1].copy()
    for j in range(n):
        members[filled[source_class[j]]] = j
        filled[source_class[j]] += 1
    following = starts[:-1].copy()
    result = np.empty(n, np.int64)
    for j in range(n):
        result[j] = members[following[target_class[j]]]
        following[target_class[j]] += 1
    return result


@njit(cache=True, nogil=True, inline="always")
def turned(b, turn, dy, dx):  # type: ignore[no-untyped-def]
    """Where, in the source block, the sample comes from that a turn by `turn` * 90 degrees puts at (dy, dx)."""
    if turn == 0:
        return dy, dx
    if turn == 1:
        return dx, b - 1 - dy
    if turn == 2:
        return b - 1 - dy, b - 1 - dx
    return b - 1 - dx, dy


@njit(cache=True, nogil=True)
def best_turn(source, sy, sx, target, ty, tx, b):  # type: ignore[no-untyped-def]
    """The turn (0..3) with the largest product with the target block, which is the smallest squared distance."""
    best, best_score = 0, np.int64(-1)
    for turn in range(4 if b > 1 else 1):
        score = np.int64(0)
        for dy in range(b):
            for dx in range(b):
                uy, ux = turned(b, turn, dy, dx)
                score += np.int64(source[sy + uy, sx + ux]) * np.int64(target[ty + dy, tx + dx])
        if score > best_score:
            best, best_score = turn, score
    return best


@njit(cache=True, nogil=True)
def block_range(channel, y, x, b):  # type: ignore[no-untyped-def]
    """Sum, smallest and largest sample of a block."""
    total, low, high = np.int64(0), np.int64(255), np.int64(0)
    for dy in range(b):
        for dx in range(b):
            s = np.int64(channel[y + dy, x + dx])
            total += s
            low = min(low, s)
            high = max(high, s)
    return total, low, high
