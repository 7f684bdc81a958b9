"""The reversible carrier: whatever image, whatever fits, both come back; and nothing makes the decoder fail."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tasks.method.expansion import EXTENT_UNITS, MAX_THRESHOLD, RESERVED, contract, expand, pixels_of_extent
from tests.tasks.method.images import KINDS, images, make

Image = NDArray[np.uint8]


def embed(image: Image, payload: bytes) -> tuple[Image, int, int]:
    """One payload in one image: the result, its threshold (0: does not fit) and its extent."""
    row = np.frombuffer(payload, np.uint8)[None]
    out, thresholds, extents = expand(image[None], row, np.array([len(payload)]))
    return out[0], int(thresholds[0]), int(extents[0])


def take(image: Image, threshold: int, extent: int, size: int) -> tuple[Image, bytes | None]:
    restored, payloads = contract(image[None], np.array([threshold]), np.array([extent]), np.array([size]))
    return restored[0], payloads[0]


def payload_of(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


@given(images(), st.one_of(st.integers(1, 60), st.integers(1, 900)), st.integers(0, 2**32 - 1))
def test_image_and_payload_come_back_exactly_where_it_fits(image: Image, size: int, seed: int) -> None:
    payload = payload_of(size, seed)
    carrying, threshold, extent = embed(image, payload)
    if not threshold:
        assert extent == 0
        assert np.array_equal(carrying, image)
        return
    assert 1 <= threshold <= MAX_THRESHOLD
    assert 1 <= extent <= EXTENT_UNITS
    assert np.array_equal(carrying.reshape(-1, 3)[:RESERVED], image.reshape(-1, 3)[:RESERVED])
    assert np.abs(carrying.astype(int) - image).max() <= threshold
    restored, found = take(carrying, threshold, extent, size)
    assert np.array_equal(restored, image)
    assert found == payload


@given(images(), st.integers(2, 400))
def test_what_is_shorter_fits_at_a_threshold_no_larger(image: Image, size: int) -> None:
    threshold, shorter = embed(image, payload_of(size))[1], embed(image, payload_of(size - 1))[1]
    assert 0 < shorter <= threshold or not threshold


@given(images(), st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_where_bits_go_does_not_depend_on_what_they_are(image: Image, size: int, seed: int) -> None:
    """The header, which is sealed with the payload, is made before the payload."""
    assert embed(image, payload_of(size, seed))[1:] == embed(image, bytes(size))[1:]


@given(images(), st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_the_reserved_samples_decide_nothing(image: Image, size: int, seed: int) -> None:
    """So that a header can be written there afterwards."""
    payload = payload_of(size, seed)
    carrying, threshold, extent = embed(image, payload)
    if not threshold:
        return
    other = np.random.default_rng(seed).integers(0, 256, (RESERVED, 3), dtype=np.uint8)
    carrying.reshape(-1, 3)[:RESERVED] = other
    restored, found = take(carrying, threshold, extent, size)
    assert found == payload
    assert np.array_equal(restored.reshape(-1, 3)[:RESERVED], other)
    assert np.array_equal(restored.reshape(-1, 3)[RESERVED:], image.reshape(-1, 3)[RESERVED:])


@given(images(), st.integers(0, MAX_THRESHOLD), st.integers(0, EXTENT_UNITS), st.integers(0, 96))
def test_any_image_contracts_to_something(image: Image, threshold: int, extent: int, size: int) -> None:
    before = image.copy()
    restored, payload = take(image, max(threshold, 1), extent, size)
    assert np.array_equal(image, before)
    assert restored.shape == image.shape
    assert payload is None or len(payload) == size


@given(st.integers(RESERVED + 1, 200_000), st.data())
def test_an_extent_leads_to_the_pixel_it_was_made_for(pixels: int, data: st.DataObject) -> None:
    """Rounded up when it is told in units, it reaches that pixel, and none past the next that it can name."""
    visited = data.draw(st.integers(1, pixels - RESERVED))
    extent = -(-visited * EXTENT_UNITS // (pixels - RESERVED))
    end = pixels_of_extent(pixels, extent) - RESERVED
    assert visited <= end <= min(pixels - RESERVED, visited + (pixels - RESERVED) // EXTENT_UNITS)
    assert pixels_of_extent(pixels, EXTENT_UNITS) == pixels
    assert pixels_of_extent(pixels, 0) == RESERVED


@pytest.mark.parametrize(("height", "width"), [(16, 16), (32, 32), (64, 64), (17, 41), (300, 500)])
@pytest.mark.parametrize("size", [1, 4, 40])
def test_no_more_of_an_image_is_touched_than_the_payload_needs(height: int, width: int, size: int) -> None:
    """In a flat image every sample takes a bit, so three bits a pixel."""
    image = make("flat", height, width, 3)
    carrying, threshold, extent = embed(image, bytes(size))
    needed = -(-8 * size // 3)
    units = -(-height * width // EXTENT_UNITS)
    assert threshold == 1
    assert needed <= pixels_of_extent(height * width, extent) - RESERVED < needed + units
    touched = np.flatnonzero((embed(image, b"\xff" * size)[0] != carrying).any(2))
    assert touched.max() < RESERVED + needed


def test_an_extent_told_roughly_is_no_reason_not_to_fit() -> None:
    """In a large image the units are several pixels; a flag may be owed where the extent ends, and is paid after."""
    image = make("flat", 300, 500, 3)
    rng = np.random.default_rng(0)
    image[rng.random((300, 500)) < 0.2] = 255
    for size in range(1, 80):
        carrying, threshold, extent = embed(image, bytes(size))
        assert threshold == 1
        assert pixels_of_extent(150_000, extent) < 2000
    restored, payload = take(carrying, threshold, extent, size)
    assert np.array_equal(restored, image)
    assert payload == bytes(size)


def test_a_payload_fills_a_flat_image_to_the_last_sample() -> None:
    """All but the reserved samples and the G of the last pixel, which nothing predicts."""
    image = make("flat", 20, 20, 3)
    samples = 3 * (400 - RESERVED) - 1
    assert embed(image, bytes(samples // 8))[1] == 1
    assert embed(image, bytes(samples // 8 + 1))[1] == 0


@pytest.mark.parametrize(("kind", "fits"), [("noise", False), ("black", False), ("photo", True), ("gradient", True)])
def test_what_can_be_predicted_carries(kind: str, fits: bool) -> None:
    assert (embed(make(kind, 32, 32, 1), payload_of(60))[1] > 0) == fits


@pytest.mark.parametrize("level", [2, 3, 252, 253, 254])
def test_samples_that_can_not_be_moved_are_told_apart_from_those_that_were(level: int) -> None:
    """Near the ends some are shifted, some stay, and both lead to the same values: flags tell which."""
    rng = np.random.default_rng(level)
    image = np.full((32, 32, 3), level, np.uint8)
    at = rng.random((32, 32)) < 0.1
    image[at] = np.clip(level + rng.integers(-4, 5, (int(at.sum()), 1)), 0, 255)
    payload = payload_of(24)
    carrying, threshold, extent = embed(image, payload)
    if level in (2, 254):
        assert not threshold
        return
    assert threshold == 1
    restored, found = take(carrying, threshold, extent, len(payload))
    assert np.array_equal(restored, image)
    assert found == payload


def test_a_batch_is_what_its_images_are_alone() -> None:
    batch = np.stack([make(kind, 32, 32, i) for i, kind in enumerate(KINDS)])
    sizes = np.array([10 + 7 * i for i in range(len(batch))])
    payloads = np.random.default_rng(0).integers(0, 256, (len(batch), int(sizes.max())), dtype=np.uint8)
    out, thresholds, extents = expand(batch, payloads, sizes)
    assert 0 < (thresholds > 0).sum() < len(batch)
    for i, image in enumerate(batch):
        carrying, threshold, extent = embed(image, payloads[i, : sizes[i]].tobytes())
        assert (threshold, extent) == (thresholds[i], extents[i])
        assert np.array_equal(carrying, out[i])
    inside = np.flatnonzero(thresholds)
    restored, found = contract(out[inside], thresholds[inside], extents[inside], sizes[inside])
    assert np.array_equal(restored, batch[inside])
    assert found == [payloads[i, : sizes[i]].tobytes() for i in inside]


@pytest.mark.parametrize(("kind", "extent"), [("black", EXTENT_UNITS), ("photo", 0), ("photo", 400)])
def test_an_image_that_holds_fewer_bits_than_are_asked_for_has_no_payload(kind: str, extent: int) -> None:
    assert take(make(kind, 32, 32, 1), 2, extent, 50)[1] is None


def test_no_images_are_no_trouble() -> None:
    empty, none = np.empty((0, 16, 16, 3), np.uint8), np.empty(0, np.int64)
    assert expand(empty, np.empty((0, 1), np.uint8), none)[0].shape == empty.shape
    assert contract(empty, none, none, none)[1] == []
