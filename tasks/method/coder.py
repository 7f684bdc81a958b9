"""Adaptive binary range coder: what makes the Sequence small.

A carry-propagating range coder (G. N. N. Martin, 1979) over binary decisions. Each decision has a context with its own
probability, learnt as it goes with a rate of about 1/n, so that a few hundred symbols are enough to profit. All
arithmetic is on integers: the same bytes on every machine. The tables below belong to format version 1.

State arrays (so that compiled kernels share them without objects):
    state uint64 [3]: low, range, position      probs uint32 [contexts]: P(bit = 0) * 65536      counts uint8 [contexts]
"""

import numpy as np
from numba import njit

LOW, RANGE, POSITION = 0, 1, 2
_TOP = np.uint64(1 << 24)
_MASK = np.uint64(0xFFFFFFFF)
_COUNT_LIMIT = 40
# rate[n] = 65536 / (n + 1.6), in integers.
_RATES = np.array([655360 // (10 * n + 16) for n in range(_COUNT_LIMIT + 1)], dtype=np.int64)
_FLOOR, _CEILING = 384, 65536 - 384


@njit(cache=True, nogil=True, inline="always")
def _learn(probs, counts, context, bit):  # type: ignore[no-untyped-def]
    rate = _RATES[counts[context]]
    p = np.int64(probs[context])
    p = p - ((p * rate) >> 16) if bit else p + (((65536 - p) * rate) >> 16)
    probs[context] = min(max(p, _FLOOR), _CEILING)
    if counts[context] < _COUNT_LIMIT:
        counts[context] += 1


@njit(cache=True, nogil=True)
def new_state():  # type: ignore[no-untyped-def]
    """A coder at the start of a buffer: uint64 [3]."""
    state = np.zeros(3, np.uint64)
    state[RANGE] = _MASK
    return state


@njit(cache=True, nogil=True)
def new_contexts(n):  # type: ignore[no-untyped-def]
    """Probabilities of one half and counts of zero for `n` contexts."""
    return np.full(n, 32768, np.uint32), np.zeros(n, np.uint8)


@njit(cache=True, nogil=True)
def _carry(buffer, position):  # type: ignore[no-untyped-def]
    i = position - 1
    while i >= 0:
        if buffer[i] == 255:
            buffer[i] = 0
            i -= 1
        else:
            buffer[i] += 1
            break


@njit(cache=True, nogil=True)
def encode_bit(buffer, state, probs, counts, context, bit):  # type: ignore[no-untyped-def]
    """Append one decision. A full buffer is noticed by `finish`, so callers need not check each bit."""
    low, span, position = state[LOW], state[RANGE], np.int64(state[POSITION])
    bound = (span >> np.uint64(16)) * np.uint64(probs[context])
    if bit:
        low += bound
        span -= bound
    else:
        span = bound
    if low > _MASK:
        _carry(buffer, min(position, buffer.size))
        low &= _MASK
    while span < _TOP:
        if position < buffer.size:
            buffer[position] = np.uint8(low >> np.uint64(24))
        position += 1
        low = (low << np.uint64(8)) & _MASK
        span <<= np.uint64(8)
    state[LOW], state[RANGE], state[POSITION] = low, span, np.uint64(position)
    _learn(probs, counts, context, bit)


@njit(cache=True, nogil=True)
def finish(buffer, state):  # type: ignore[no-untyped-def]
    """Flush with as few bytes as decide the last interval (the decoder reads zeros past the end).

    Returns the number of bytes used, or -1 when the buffer was too small.
    """
    low, span, position = state[LOW], state[RANGE], np.int64(state[POSITION])
    if position > buffer.size:
        return -1
    for n in range(5):
        mask = (np.uint64(1) << np.uint64(32 - 8 * n)) - np.uint64(1)
        value = (low + mask) & ~mask
        if value < low + span:
            break
    if position + n > buffer.size:
        return -1
    if value > _MASK:
        _carry(buffer, position)
    for i in range(n):
        buffer[position + i] = np.uint8((value >> np.uint64(24 - 8 * i)) & np.uint64(255))
    used = position + n
    while used > 0 and buffer[used - 1] == 0:
        used -= 1
    return used


@njit(cache=True, nogil=True)
def start_decoding(buffer, state):  # type: ignore[no-untyped-def]
    """Load the first four bytes; `state[LOW]` then holds the code value relative to the interval."""
    value = np.uint64(0)
    for i in range(4):
        value = (value << np.uint64(8)) | (np.uint64(buffer[i]) if i < buffer.size else np.uint64(0))
    state[LOW], state[RANGE], state[POSITION] = value, _MASK, np.uint64(4)


@njit(cache=True, nogil=True)
def decode_bit(buffer, state, probs, counts, context):  # type: ignore[no-untyped-def]
    """The next decision, 0 or 1. Bytes past the end read as zero, so no input can make it fail."""
    value, span = state[LOW], state[RANGE]
    bound = (span >> np.uint64(16)) * np.uint64(probs[context])
    if value < bound:
        span, bit = bound, 0
    else:
        value -= bound
        span -= bound
        bit = 1
    while span < _TOP:
        i = np.int64(state[POSITION])
        byte = np.uint64(buffer[i]) if i < buffer.size else np.uint64(0)
        value = ((value << np.uint64(8)) | byte) & _MASK
        span <<= np.uint64(8)
        state[POSITION] += np.uint64(1)
    state[LOW], state[RANGE] = value, span
    _learn(probs, counts, context, bit)
    return bit
