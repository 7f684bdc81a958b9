"""Class-keyed textures: patterns that a network learns sooner than what the images show.

"Easy to learn and tied to the label" is what makes perturbations such as those of LSP (Yu et al., KDD 2022) and AR
(Sandoval-Segura et al., NeurIPS 2022) protect. Here the texture is noise in a narrow band of spatial frequencies. The
band's frequency and direction, up to a mirror image, name the class (images are often mirrored in training);
everything else is drawn for each image, so that the mean over a class shows nothing and no image tells the texture of
another. Which class has which band is a secret of the data set's key. The band's width trades: a wave (width 0) is
learnt best, and subtracted best by who knows it.
"""

from functools import lru_cache

import numpy as np
from numba import njit
from numpy.typing import NDArray

LOWEST, HIGHEST = 0.15, 0.37
"""Frequencies in periods a pixel; chosen in preliminary runs (docs/decisions/0003-exact-defaults.md)."""

_REACH = 4.0
"""How far from its middle a band goes, in standard deviations."""


def bands(classes: int, seed: bytes) -> NDArray[np.float64]:
    """(frequency, angle) of each class's band, float64 [classes, 2]: those of `all_bands`, dealt out by the seed."""
    grid = all_bands(classes)
    generator = np.random.RandomState(np.frombuffer(seed[:16], ">u4").astype(np.uint32))  # its stream is frozen
    return grid[generator.permutation(len(grid))[:classes]]


def all_bands(classes: int) -> NDArray[np.float64]:
    """All (frequency, angle) that are dealt out to so many classes, float64 [k, 2], k >= classes; angles 0 to pi/2.

    A grid that is as square as the number of classes allows. Anyone may know it.
    """
    rows = max(1, round(np.sqrt(classes * 0.75)))
    columns = -(-classes // rows)
    frequencies = np.linspace(LOWEST, HIGHEST, rows) if rows > 1 else np.array([(LOWEST + HIGHEST) / 2])
    angles = np.linspace(0, np.pi / 2, columns) if columns > 1 else np.array([np.pi / 4])
    return np.stack(np.meshgrid(frequencies, angles, indexing="ij"), -1).reshape(-1, 2)


def texture(band: NDArray[np.float64], seed: bytes, height: int, width: int, spread: float) -> NDArray[np.float32]:
    """Noise of one image in a band, standard deviation 1; float32 [height, width].

    Args:
        band: frequency and angle.
        seed: 16 secret bytes that choose the noise and the side of the angle: who knows them can subtract the texture.
        spread: standard deviation of the band, in periods a pixel.
    """
    # Counter-based, so that it starts at once; RandomState's normal numbers are frozen, whatever bits feed it.
    generator = np.random.RandomState(np.random.Philox(key=np.frombuffer(seed, "<u8")))
    frequency, angle = band[0], band[1] * (1 if generator.random_sample() < 0.5 else -1)
    down, rows = _waves(height, float(frequency * np.sin(angle)), spread)
    across, columns = _waves(width, float(frequency * np.cos(angle)), spread)
    noise = generator.standard_normal((2, len(rows), len(columns))) * np.outer(rows, columns)
    field = np.zeros((height, width), np.float32)
    _sum(down, noise.astype(np.float32), across, field)
    return field / field.std()


@lru_cache(maxsize=1024)
def _waves(size: int, centre: float, spread: float) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """The waves near a frequency along one side: cosines and sines, [2, m, size], and their share in the band, [m].

    Noise filtered to a narrow band is a sum of few waves, so they are drawn instead of all that a filter would remove.
    Their periods divide twice the size, so that the texture does not join up at opposite sides.
    """
    steps = np.arange(-size, size)
    distance = np.abs(steps / (2 * size) - centre)
    near = distance <= max(_REACH * spread, distance.min())
    share = np.exp(-(distance[near] ** 2 - distance.min() ** 2) / (2 * spread * spread))
    phases = np.pi / size * np.outer(steps[near], np.arange(size))
    return np.stack([np.cos(phases), np.sin(phases)]).astype(np.float32), share


@njit(cache=True, nogil=True)
def _sum(down, noise, across, field):  # type: ignore[no-untyped-def]
    """Add Re(sum of noise[k, l] down[k, y] across[l, x]) to field[y, x]; complex numbers as pairs along axis 0.

    A kernel of our own since BLAS starts threads for matrices of this size, which takes longer than the work.
    """
    _, rows, height = down.shape
    _, columns, width = across.shape
    real, imaginary = np.empty(columns, np.float32), np.empty(columns, np.float32)
    for y in range(height):
        real[:], imaginary[:] = 0, 0
        for k in range(rows):
            c, s = down[0, k, y], down[1, k, y]
            for i in range(columns):
                real[i] += noise[0, k, i] * c - noise[1, k, i] * s
                imaginary[i] += noise[0, k, i] * s + noise[1, k, i] * c
        for i in range(columns):
            for x in range(width):
                field[y, x] += real[i] * across[0, i, x] - imaginary[i] * across[1, i, x]
