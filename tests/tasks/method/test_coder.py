"""The range coder is exact for every string of decisions, never overruns, and is worth its trouble."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tasks.method import coder


def run_encode(bits: list[int], contexts: list[int], size: int) -> tuple[np.ndarray, int]:
    buffer, state = np.zeros(size, np.uint8), coder.new_state()
    probs, counts = coder.new_contexts(8)
    for bit, context in zip(bits, contexts, strict=True):
        coder.encode_bit(buffer, state, probs, counts, context, bit)
    return buffer, coder.finish(buffer, state)


def run_decode(buffer: np.ndarray, contexts: list[int]) -> list[int]:
    state = coder.new_state()
    probs, counts = coder.new_contexts(8)
    coder.start_decoding(buffer, state)
    return [int(coder.decode_bit(buffer, state, probs, counts, context)) for context in contexts]


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 7)), max_size=600))
def test_decodes_what_was_encoded(decisions: list[tuple[int, int]]) -> None:
    bits, contexts = [b for b, _ in decisions], [c for _, c in decisions]
    buffer, used = run_encode(bits, contexts, 200)
    assert 0 <= used <= 200
    assert run_decode(buffer[:used], contexts) == bits


@given(st.integers(0, 30), st.integers(0, 2**32 - 1))
def test_small_buffer_is_reported_not_overrun(size: int, seed: int) -> None:
    bits = np.random.default_rng(seed).integers(0, 2, 400).tolist()
    assert run_encode(bits, [0] * 400, size)[1] == -1


def test_skewed_decisions_cost_little() -> None:
    bits = (np.random.default_rng(0).random(4000) < 0.05).astype(int).tolist()
    _, used = run_encode(bits, [0] * 4000, 1000)
    entropy = 4000 * -(0.05 * np.log2(0.05) + 0.95 * np.log2(0.95)) / 8
    assert used < 1.15 * entropy


@given(st.binary(max_size=40))
def test_any_bytes_decode_to_something(data: bytes) -> None:
    assert set(run_decode(np.frombuffer(bytearray(data), np.uint8), [0] * 300)) <= {0, 1}
