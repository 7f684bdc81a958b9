"""The Sequence as bytes: classes, turns and shifts through the adaptive range coder.

Order (format version 1): source classes unless the pairing is IDENTITY; target classes if it is EXPLICIT; turns where
b > 1; shifts; shifts of the edge samples. Channel by channel, blocks in raster order. A decision's context is made of
the same quantity at the same place of the channel before, to the left and above, since perturbations of neighbours
and of channels are alike. Number of contexts and their layout belong to the format.
"""

import numpy as np
from numba import njit

from tasks.method.coder import (
    decode_bit,
    encode_bit,
    finish,
    new_contexts,
    new_state,
    start_decoding,
)
from tasks.method.transform import EXPLICIT, IDENTITY, edge_count

_CLASS, _TURN, _ZERO, _SIGN, _SIZE, _ESCAPE = 0, 64, 80, 160, 240, 272
_CONTEXTS = 288
_UNARY = 14  # larger shifts are rare: unary up to here, then eight plain bits


@njit(cache=True, nogil=True, inline="always")
def _code(encoding, buffer, state, probs, counts, context, bit):  # type: ignore[no-untyped-def]
    """One decision in either direction, so that coder and decoder are one piece of code."""
    if encoding:
        encode_bit(buffer, state, probs, counts, context, bit)
        return bit
    return decode_bit(buffer, state, probs, counts, context)


@njit(cache=True, nogil=True)
def _code_tree(encoding, buffer, state, probs, counts, base, bits, value):  # type: ignore[no-untyped-def]
    """A symbol of `bits` bits, most significant first, each node with a context of its own."""
    node = 1
    for i in range(bits):
        bit = (value >> (bits - 1 - i)) & 1
        node = 2 * node + _code(encoding, buffer, state, probs, counts, base + node, bit)
    return node - (1 << bits)


@njit(cache=True, nogil=True, inline="always")
def _sign(value):  # type: ignore[no-untyped-def]
    return 1 if value == 0 else (2 if value > 0 else 0)


@njit(cache=True, nogil=True)
def _code_shift(encoding, buffer, state, probs, counts, value, before, left, above):  # type: ignore[no-untyped-def]
    """One shift, given the shift at the same place of the channel before and those to the left and above."""
    around = 9 * _sign(before) + 3 * _sign(left) + _sign(above)
    if _code(encoding, buffer, state, probs, counts, _ZERO + around, 1 if value == 0 else 0):
        return 0
    negative = _code(encoding, buffer, state, probs, counts, _SIGN + around, 1 if value < 0 else 0)
    near = 16 if max(abs(before), abs(left), abs(above)) > 1 else 0
    size = abs(value)
    k = 1
    while k < _UNARY and _code(encoding, buffer, state, probs, counts, _SIZE + near + k, 1 if size > k else 0):
        k += 1
    if k == _UNARY:
        rest = 0
        for i in range(8):
            rest = 2 * rest + _code(encoding, buffer, state, probs, counts, _ESCAPE + i, ((size - k) >> (7 - i)) & 1)
        k += rest
    return -k if negative else k


@njit(cache=True, nogil=True)
def _code_classes(encoding, buffer, state, probs, counts, bits, table):  # type: ignore[no-untyped-def]
    for c in range(3):
        for j in range(table.shape[1]):
            table[c, j] = _code_tree(encoding, buffer, state, probs, counts, _CLASS, bits, np.int64(table[c, j]))


@njit(cache=True, nogil=True)
def _code_shifts(encoding, buffer, state, probs, counts, shift, columns):  # type: ignore[no-untyped-def]
    for c in range(3):
        for j in range(shift.shape[1]):
            before = shift[c - 1, j] if c > 0 else 0
            left = shift[c, j - 1] if j % columns > 0 else 0
            above = shift[c, j - columns] if j >= columns else 0
            shift[c, j] = _code_shift(encoding, buffer, state, probs, counts, shift[c, j], before, left, above)


@njit(cache=True, nogil=True)
def _code_edges(encoding, buffer, state, probs, counts, edge):  # type: ignore[no-untyped-def]
    for k in range(edge.size):
        before = edge[k - 1] if k % 3 else 0
        left = edge[k - 3] if k >= 3 else 0
        edge[k] = _code_shift(encoding, buffer, state, probs, counts, edge[k], before, left, 0)


@njit(cache=True, nogil=True)
def _code_all(encoding, buffer, state, b, bits, columns, pairing, source, target, turn, shift, edge):  # type: ignore[no-untyped-def]
    probs, counts = new_contexts(_CONTEXTS)
    if pairing != IDENTITY:
        _code_classes(encoding, buffer, state, probs, counts, bits, source)
    if pairing == EXPLICIT:
        _code_classes(encoding, buffer, state, probs, counts, bits, target)
    if b > 1:
        for c in range(3):
            for j in range(turn.shape[1]):
                turn[c, j] = _code_tree(encoding, buffer, state, probs, counts, _TURN, 2, np.int64(turn[c, j]))
    _code_shifts(encoding, buffer, state, probs, counts, shift, columns)
    _code_edges(encoding, buffer, state, probs, counts, edge)


@njit(cache=True, nogil=True)
def encode(buffer, b, bits, columns, pairing, source, target, turn, shift, edge):  # type: ignore[no-untyped-def]
    """Write the Sequence to `buffer`, uint8 [capacity]; returns the bytes used, or -1 when it does not fit.

    `bits` is log2 of the number of classes, `columns` the number of blocks in a row.
    """
    state = new_state()
    _code_all(True, buffer, state, b, bits, columns, pairing, source, target, turn, shift, edge)
    return finish(buffer, state)


@njit(cache=True, nogil=True)
def decode(buffer, height, width, b, bits, pairing):  # type: ignore[no-untyped-def]
    """Read a Sequence. Any bytes give some Sequence of the right shape (the seal says whether it is the true one).

    Returns (source_class, target_class, turn, shift, edge_shift) as `transform` makes them.
    """
    columns = width // b
    n = (height // b) * columns
    source = np.zeros((3, n), np.uint8)
    target = np.zeros((3, n), np.uint8)
    turn = np.zeros((3, n), np.uint8)
    shift = np.zeros((3, n), np.int16)
    edge = np.zeros(edge_count(height, width, b), np.int16)
    state = new_state()
    start_decoding(buffer, state)
    _code_all(False, buffer, state, b, bits, columns, pairing, source, target, turn, shift, edge)
    return source, target, turn, shift, edge
