import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage.metrics import peak_signal_noise_ratio

from tasks.quality import ErrorTally, QualityTally, psnr, spread, ssim


def image(seed: int = 0, height: int = 16, width: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(60, 190, (height, width, 3), dtype=np.uint8)


def test_psnr_of_a_known_error() -> None:
    clean = image()
    # Every sample off by 5: MSE 25, 10 log10(255^2 / 25).
    assert psnr(clean, clean + np.uint8(5)) == pytest.approx(34.1514, abs=1e-4)
    # One sample of 768 off by one.
    other = clean.copy()
    other[3, 4, 1] += 1
    assert psnr(clean, other) == pytest.approx(10 * np.log10(255**2 * 768))


def test_psnr_agrees_with_scikit_image() -> None:
    assert psnr(image(0), image(1)) == pytest.approx(peak_signal_noise_ratio(image(0), image(1), data_range=255))


def test_identical_images() -> None:
    assert psnr(image(), image()) == float("inf")
    assert ssim(image(), image()) == pytest.approx(1.0)


@pytest.mark.parametrize("size", [(16, 16), (16, 40), (33, 17)])
def test_ssim_works_on_the_smallest_images_and_falls_with_the_error(size: tuple[int, int]) -> None:
    clean = image(0, *size)
    noise = np.random.default_rng(2).integers(-1, 2, clean.shape)
    values = [ssim(clean, (clean + strength * noise).astype(np.uint8)) for strength in (1, 10, 40)]
    assert 1 > values[0] > values[1] > values[2] > 0


def test_ssim_of_colour_is_the_mean_over_channels() -> None:
    clean, other = image(0), image(0)
    other[..., 0] = image(1)[..., 0]
    grey = [np.repeat(x[..., :1], 3, axis=2) for x in (clean, other)]
    assert ssim(clean, other) == pytest.approx((ssim(*grey) + 2) / 3)


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_pairs_of_different_kind_are_refused(measure) -> None:
    with pytest.raises(ValueError, match="not a pair"):
        measure(image(), image(0, 16, 20))
    with pytest.raises(ValueError, match="not a pair"):
        measure(image(), image().astype(np.float64))


def test_quality_tally_keeps_order_and_counts_identical() -> None:
    tally = QualityTally()
    tally.add(image(), image())
    tally.add(image(), image() + np.uint8(5))
    assert tally.identical == 1
    assert tally.psnr[0] == float("inf")
    assert tally.psnr[1] == pytest.approx(34.1514, abs=1e-4)


def test_spread_leaves_infinite_values_out() -> None:
    found = spread([1.0, float("inf"), 3.0])
    assert (found.n, found.mean, found.min, found.max) == (2, 2.0, 1.0, 3.0)
    assert found.std == pytest.approx(2**0.5)
    assert spread([float("inf")]).mean is None
    assert spread([4.0]).std is None


@given(
    hnp.arrays(np.uint8, st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.just(3))),
    st.integers(0, 2**32 - 1),
)
def test_error_tally_is_the_plain_count(clean: np.ndarray, seed: int) -> None:
    other = np.random.default_rng(seed).integers(0, 256, clean.shape, dtype=np.uint8)
    other[0] = clean[0]
    tally = ErrorTally()
    largest = tally.add(clean, other)
    errors = np.abs(clean.astype(int) - other.astype(int))
    assert largest.tolist() == errors.max(axis=(1, 2, 3)).tolist()
    assert tally.max_error == errors.max()
    assert tally.mean_error == pytest.approx(errors.mean())
    assert tally.samples.tolist() == [int((errors == value).sum()) for value in range(256)]
    assert tally.images == len(clean)
    assert tally.exact == int((errors.max(axis=(1, 2, 3)) == 0).sum())


def test_error_tally_adds_up_over_batches_of_different_size() -> None:
    tally = ErrorTally()
    assert tally.max_error is None
    assert tally.mean_error is None
    tally.add(image()[None], image()[None] + np.uint8(3))
    tally.add(image(0, 20, 30)[None], image(0, 20, 30)[None])
    tally.add_identical([768])
    assert (tally.images, tally.exact, tally.max_error) == (3, 2, 3)
    assert tally.samples[0] == 20 * 30 * 3 + 768
    assert tally.add(np.empty((0, 16, 16, 3), np.uint8), np.empty((0, 16, 16, 3), np.uint8)).size == 0


def test_error_tally_refuses_other_types() -> None:
    with pytest.raises(ValueError, match="not a batch"):
        ErrorTally().add(image()[None], image()[None].astype(np.int16))
