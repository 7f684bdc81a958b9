"""mRIT is a bijection for every image, and its Sequence survives coding."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tasks.method import blocks, sequence, transform
from tests.tasks.method.images import images, make, perturb

PARAMETERS = st.tuples(
    st.sampled_from([1, 2, 4, 8]), st.integers(0, 4), st.sampled_from([8, 16, 32]), st.integers(1, 3)
)


def there_and_back(  # type: ignore[no-untyped-def]
    clean: NDArray[np.uint8], wanted: NDArray[np.uint8], b: int, bits: int, step: int, planes: int, pairing: int
):
    look, back = np.empty_like(clean), np.empty_like(clean)
    used, *parts = transform.transform(clean, wanted, b, 1 << bits, step, planes, pairing, look)
    code = np.zeros(40_000, np.uint8)
    size = sequence.encode(code, b, bits, clean.shape[1] // b, used, *(p.copy() for p in parts))
    source, target, *rest = sequence.decode(code[:size], *clean.shape[:2], b, bits, used)
    # The carrier's noise in the low bits must not change what the decoder sorts.
    noise = np.random.default_rng(0).integers(0, 1 << planes, clean.shape, dtype=np.uint8)
    if used == transform.SORTED:
        target = transform.sorted_classes((look >> planes << planes) | noise, b, 1 << bits, planes)
    assert transform.restore(look, b, 1 << bits, step, source, target, *rest, back)
    return look, back, used, size


@given(images(), PARAMETERS, st.sampled_from([transform.SORTED, transform.IDENTITY, transform.EXPLICIT]))
def test_restores_every_image(clean: NDArray[np.uint8], parameters: tuple[int, int, int, int], pairing: int) -> None:
    b, bits, step, planes = parameters
    if pairing == transform.IDENTITY:
        bits = 0
    _, back, _, _ = there_and_back(clean, perturb(clean, 1), b, bits, step, planes, pairing)
    assert np.array_equal(back, clean)


@pytest.mark.parametrize("b", [1, 2, 4, 8])
def test_sides_that_are_no_multiple_of_the_block_are_not_left_clean(b: int) -> None:
    clean = make("photo", 37, 29, 3)
    wanted = np.clip(clean.astype(int) + 24, 0, 255).astype(np.uint8)
    look, _, _, _ = there_and_back(clean, wanted, b, 0, 8, 1, transform.IDENTITY)
    inner_h, inner_w = 37 // b * b, 29 // b * b
    outside = np.ones((37, 29), bool)
    outside[:inner_h, :inner_w] = False
    moved = np.any(look != clean, axis=2)
    free = np.all(clean <= 255 - 24, axis=2)
    assert moved[outside & free].all()
    assert moved[free].mean() > 0.9


def test_one_by_one_blocks_follow_the_perturbation_to_half_a_step() -> None:
    clean = np.clip(make("photo", 32, 32, 5), 32, 220)
    wanted = perturb(clean, 6)
    look, _, _, _ = there_and_back(clean, wanted, 1, 0, 8, 2, transform.IDENTITY)
    assert np.abs(look.astype(int) - wanted).max() <= 4


def test_ties_between_classes_are_paired_explicitly() -> None:
    """A checkerboard's blocks all have one key, so sorting again can not find the classes."""
    clean, wanted = make("checkerboard", 32, 32, 0), make("photo", 32, 32, 1)
    _, back, used, _ = there_and_back(clean, wanted, 4, 2, 8, 1, transform.SORTED)
    assert used == transform.EXPLICIT
    assert np.array_equal(back, clean)


@given(st.integers(1, 200), st.integers(1, 16), st.integers(0, 2**32 - 1))
def test_pairing_is_a_permutation_within_classes(n: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    source = blocks.classes_of(rng.integers(0, 50, n), count)
    target = blocks.classes_of(rng.integers(0, 50, n), count)
    order = blocks.pair(source, target, count)
    assert np.array_equal(np.sort(order), np.arange(n))
    assert np.array_equal(source[order], target)


@given(images(), st.integers(1, 3), st.integers(1, 20))
def test_rank_key_does_not_see_shifts_nor_carried_bits(image: NDArray[np.uint8], planes: int, by: int) -> None:
    channel = np.clip(image[:, :, 0], 0, 255 - (by << planes))
    n = (channel.shape[0] // 4) * (channel.shape[1] // 4)
    moved = (channel + (by << planes)).astype(np.uint8)
    carried = moved ^ np.random.default_rng(by).integers(0, 1 << planes, moved.shape, dtype=np.uint8)
    expected = blocks.spreads(channel, 4, channel.shape[1] // 4, n, planes)
    assert np.array_equal(blocks.spreads(carried, 4, channel.shape[1] // 4, n, planes), expected)


@given(st.binary(max_size=64), st.sampled_from([1, 2, 4, 8]), st.integers(0, 4), st.integers(0, 2))
def test_any_bytes_decode_and_forged_sequences_are_noticed(data: bytes, b: int, bits: int, pairing: int) -> None:
    image, out = make("photo", 17, 22, 0), np.empty((17, 22, 3), np.uint8)
    parts = sequence.decode(np.frombuffer(bytearray(data + b"\0"), np.uint8), 17, 22, b, bits, pairing)
    assert transform.restore(image, b, 1 << bits, 8, *parts, out) in (True, False)
