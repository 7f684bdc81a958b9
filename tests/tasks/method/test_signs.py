"""The set of perturbations: each can be taken back, from any image, and costs no more than it must."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tasks.method import signs
from tests.tasks.method.images import images, make

Image = NDArray[np.uint8]
AMPLITUDES = st.integers(1, 127)
PER_PIXEL = st.sampled_from([1, 3])
SEEDS = st.integers(0, 2**32 - 1)


def random_signs(clean: Image, per_pixel: int, seed: int) -> NDArray[np.int8]:
    shape = (*clean.shape[:2], per_pixel)
    return (1 - 2 * np.random.default_rng(seed).integers(0, 2, shape)).astype(np.int8)


def nearest(clean: Image, wanted: Image, per_pixel: int) -> NDArray[np.int8]:
    chosen = np.empty((*clean.shape[:2], per_pixel), np.int8)
    signs.nearest(clean, wanted, chosen)
    assert set(np.unique(chosen)) <= {-1, 1}
    return chosen


def perturbed(clean: Image, sign: NDArray[np.int8], amplitude: int) -> Image:
    look = np.empty_like(clean)
    signs.perturb(clean, sign, amplitude, look)
    return look


def encoded(clean: Image, look: Image, sign: NDArray[np.int8], amplitude: int) -> NDArray[np.uint8]:
    buffer = np.empty(2 * clean.size, np.uint8)
    size = signs.encode(clean, look, sign, amplitude, buffer)
    assert size >= 0
    return buffer[: max(size, 1)]


def decoded(code: NDArray[np.uint8], look: Image, per_pixel: int, amplitude: int) -> Image:
    out = np.empty_like(look)
    signs.decode(code, look, per_pixel, amplitude, out)
    return out


@given(images(), AMPLITUDES, PER_PIXEL, SEEDS)
def test_signs_are_taken_back_exactly(clean: Image, amplitude: int, per_pixel: int, seed: int) -> None:
    sign = random_signs(clean, per_pixel, seed)
    look = perturbed(clean, sign, amplitude)
    code = encoded(clean, look, sign, amplitude)
    assert np.array_equal(decoded(code, look, per_pixel, amplitude), clean)


@given(images(), AMPLITUDES, PER_PIXEL, SEEDS)
def test_a_sample_moves_by_the_amplitude_or_where_it_can_not_stays(
    clean: Image, amplitude: int, per_pixel: int, seed: int
) -> None:
    sign = random_signs(clean, per_pixel, seed)
    wanted = clean.astype(int) + amplitude * sign
    inside = (wanted >= 0) & (wanted <= 255)
    assert np.array_equal(perturbed(clean, sign, amplitude), np.where(inside, wanted, clean))


@given(images(), AMPLITUDES, PER_PIXEL, SEEDS)
def test_a_look_of_the_set_is_nearest_to_itself(clean: Image, amplitude: int, per_pixel: int, seed: int) -> None:
    look = perturbed(clean, random_signs(clean, per_pixel, seed), amplitude)
    found = nearest(clean, look, per_pixel)
    assert np.array_equal(perturbed(clean, found, amplitude), look)


@given(images(), images(), AMPLITUDES)
def test_of_two_ways_that_a_sample_can_go_the_nearer_is_taken(clean: Image, wanted: Image, amplitude: int) -> None:
    height, width = (min(sides) for sides in zip(clean.shape[:2], wanted.shape[:2], strict=True))
    clean, wanted = clean[:height, :width].copy(), wanted[:height, :width].copy()
    chosen, goal = nearest(clean, wanted, 3), wanted.astype(int)
    error = np.abs(perturbed(clean, chosen, amplitude) - goal)
    other = np.abs(perturbed(clean, -chosen, amplitude) - goal)
    both = (clean >= amplitude) & (clean <= 255 - amplitude)
    assert (error <= other)[both].all()


@given(images(), AMPLITUDES)
def test_where_nothing_is_wanted_black_and_white_samples_stay(clean: Image, amplitude: int) -> None:
    end = np.where(clean >= 128, 255, 0).astype(np.uint8)
    sign = nearest(end, end, 3)
    assert np.array_equal(perturbed(end, sign, amplitude), end)


@given(images(32), AMPLITUDES, PER_PIXEL, st.binary(min_size=1, max_size=60))
def test_any_bytes_decode_to_an_image_and_the_same_again(
    look: Image, amplitude: int, per_pixel: int, data: bytes
) -> None:
    code, before = np.frombuffer(bytearray(data), np.uint8), look.copy()
    first = decoded(code, look, per_pixel, amplitude)
    assert np.array_equal(first, decoded(code, look, per_pixel, amplitude))
    assert np.array_equal(look, before)
    distance = np.abs(first.astype(int) - look)
    assert set(np.unique(distance)) <= {0, amplitude, 256 - amplitude}


@given(images(32), PER_PIXEL, st.integers(0, 8))
def test_a_small_buffer_is_reported_not_overrun(clean: Image, per_pixel: int, size: int) -> None:
    sign = random_signs(clean, per_pixel, size)
    look = perturbed(clean, sign, 3)
    full = encoded(clean, look, sign, 3)
    guarded = np.full(size + 8, 170, np.uint8)
    found = signs.encode(clean, look, sign, 3, guarded[:size])
    assert found == -1 or np.array_equal(guarded[:found], full[:found])
    assert (guarded[size:] == 170).all()
    assert len(full) <= size or found == -1


@pytest.mark.parametrize(("kind", "share"), [("flat", 0.3), ("gradient", 0.6), ("photo", 0.6), ("noise", 2.4)])
def test_what_the_look_shows_need_not_be_told(kind: str, share: float) -> None:
    """Bits a pixel: random signs show in a smooth image, and cost no more than a bit and their flags in noise."""
    clean = make(kind, 32, 32, 1)
    sign = random_signs(clean, 1, 2)
    code = encoded(clean, perturbed(clean, sign, 13), sign, 13)
    assert 8 * len(code) / 1024 < share


def test_signs_that_repeat_cost_next_to_nothing() -> None:
    clean = np.clip(make("noise", 32, 32, 1), 13, 242)
    sign = np.ones((32, 32, 1), np.int8)
    sign[16:] = -1
    code = encoded(clean, perturbed(clean, sign, 13), sign, 13)
    assert 8 * len(code) / 1024 < 0.4


def test_evidence_is_divided_exactly() -> None:
    """By a multiplication: for every unit there can be, and every dividend."""
    for unit in {samples * amplitude for samples in (1, 3) for amplitude in range(1, 128)}:
        dividends = np.arange(26 * unit, dtype=np.int64)
        assert np.array_equal(dividends * signs._part(unit) >> 32, dividends // (2 * unit))


def test_settled_signs_are_what_their_neighbours_vote() -> None:
    lone = np.ones((5, 5, 1), np.int8)
    lone[2, 2] = lone[0, 0] = -1
    out = np.empty_like(lone)
    signs.settle(lone, 5, out)
    assert (out == np.where(np.arange(25).reshape(5, 5, 1) == 0, -1, 1)).all(), "a corner has three neighbours"
    signs.settle(lone, 1, out)
    assert (out == 1).all()


@given(images(), PER_PIXEL, SEEDS)
def test_settled_signs_cost_no_more_by_much(clean: Image, per_pixel: int, seed: int) -> None:
    sign, amplitude = random_signs(clean, per_pixel, seed), 14
    settled = np.empty_like(sign)
    signs.settle(sign, 1, settled)
    assert set(np.unique(settled)) <= {-1, 1}
    sizes = [len(encoded(clean, perturbed(clean, s, amplitude), s, amplitude)) for s in (sign, settled)]
    assert sizes[1] <= sizes[0] + 16
