"""Class-keyed textures: told apart by class and key, and by nothing but their inputs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.method.patterns import HIGHEST, LOWEST, bands, texture

SEED = bytes(range(16))
SEEDS = st.binary(min_size=16, max_size=16)
SEEDS = st.binary(min_size=16, max_size=16)


@given(st.integers(1, 300), SEEDS)
def test_every_class_has_a_band_of_its_own_that_the_seed_decides(classes: int, seed: bytes) -> None:
    table = bands(classes, seed)
    assert table.shape == (classes, 2)
    assert len({tuple(row) for row in table.tolist()}) == classes
    frequency, angle = table.T
    assert np.all((frequency >= LOWEST) & (frequency <= HIGHEST))
    assert np.all((angle >= 0) & (angle <= np.pi / 2))
    assert np.array_equal(table, bands(classes, seed))


def test_another_key_deals_the_bands_out_otherwise() -> None:
    assert len({bands(10, bytes([i]) * 16).tobytes() for i in range(50)}) == 50


@given(st.integers(0, 9), SEEDS, st.integers(16, 40), st.integers(16, 40), st.floats(0.001, 0.5))
def test_a_texture_has_deviation_one_and_depends_on_its_inputs_alone(
    label: int, image_seed: bytes, height: int, width: int, spread: float
) -> None:
    band = bands(10, SEED)[label]
    found = texture(band, image_seed, height, width, spread)
    assert (found.dtype, found.shape) == (np.float32, (height, width))
    assert np.isfinite(found).all()
    assert found.std() == pytest.approx(1, abs=1e-3)
    assert np.array_equal(found, texture(band, image_seed, height, width, spread))
    assert not np.array_equal(found, texture(band, bytes(b ^ 2 for b in image_seed), height, width, spread))


def _textures(label: int, count: int) -> np.ndarray:
    ids = [np.random.default_rng(i).bytes(16) for i in range(count)]
    return np.stack([texture(bands(10, SEED)[label], i, 32, 32, 0.02) for i in ids])


@pytest.mark.parametrize("label", [0, 5, 9])
def test_the_mean_over_a_class_shows_nothing(label: int) -> None:
    assert np.abs(_textures(label, 1000).mean(0)).max() < 0.15


def test_the_energy_lies_at_the_frequency_of_the_band() -> None:
    step = np.hypot(*np.meshgrid(np.fft.fftfreq(32), np.fft.fftfreq(32)))
    for label, (frequency, _) in enumerate(bands(10, SEED)):
        energy = (np.abs(np.fft.fft2(_textures(label, 40))) ** 2).mean(0)
        assert energy[np.abs(step - frequency) < 0.08].sum() > 0.7 * energy.sum()


def test_images_of_a_class_share_their_frequencies_and_others_do_not() -> None:
    spectra = np.stack([np.abs(np.fft.fft2(_textures(label, 40))).mean(0).ravel() for label in range(10)])
    spectra /= np.linalg.norm(spectra, axis=1, keepdims=True)
    likeness = spectra @ spectra.T
    assert likeness[~np.eye(10, dtype=bool)].max() < 0.8
