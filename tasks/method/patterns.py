"""Class-keyed textures: patterns that a network learns sooner than what the images show.

"Easy to learn and tied to the label" is what makes perturbations such as those of LSP (Yu et al., KDD 2022) and AR
(Sandoval-Segura et al., NeurIPS 2022) protect. Here the texture is noise in a narrow band of spatial frequencies. The
band's frequency and direction, up to a mirror image, name the class (images are often mirrored in training);
everything else is drawn for each image, so that the mean over a class shows nothing and no image tells the texture of
another. Which class has which band is a secret of the data set's key. The band's width trades: a wave (width 0) is
learnt best, and subtracted best by who knows it.
"""

import numpy as np
from numpy.typing import NDArray

LOWEST, HIGHEST = 0.15, 0.37
"""Frequencies in periods a pixel; chosen in preliminary runs (docs/decisions/0003-exact-defaults.md)."""


def bands(classes: int, seed: bytes) -> NDArray[np.float64]:
    """(frequency, angle) of each class's band, float64 [classes, 2]; angles from 0 to pi/2.

    Frequencies and angles lie on a grid that is as square as the number of classes allows, dealt out by the seed.
    """
    rows = max(1, round(np.sqrt(classes * 0.75)))
    columns = -(-classes // rows)
    frequencies = np.linspace(LOWEST, HIGHEST, rows) if rows > 1 else np.array([(LOWEST + HIGHEST) / 2])
    angles = np.linspace(0, np.pi / 2, columns) if columns > 1 else np.array([np.pi / 4])
    grid = np.stack(np.meshgrid(frequencies, angles, indexing="ij"), -1).reshape(-1, 2)
    generator = np.random.RandomState(np.frombuffer(seed[:16], ">u4").astype(np.uint32))  # its stream is frozen
    return grid[generator.permutation(len(grid))[:classes]]


def texture(band: NDArray[np.float64], seed: bytes, height: int, width: int, spread: float) -> NDArray[np.float32]:
    """Noise of one image in a band, standard deviation 1; float32 [height, width].

    Args:
        band: frequency and angle.
        seed: 16 secret bytes that choose the noise and the side of the angle: who knows them can subtract the texture.
        spread: standard deviation of the band, in periods a pixel.
    """
    generator = np.random.RandomState(np.frombuffer(seed, ">u4").astype(np.uint32))
    frequency, angle = band[0], band[1] * generator.choice([-1, 1])
    # Twice the size, so that the texture does not join up at opposite sides.
    v = np.fft.fftfreq(2 * height)[:, None] - frequency * np.sin(angle)
    u = np.fft.fftfreq(2 * width)[None, :] - frequency * np.cos(angle)
    shape = (2 * height, 2 * width)
    spectrum = np.exp((u * u + v * v) / (-2 * spread * spread)) * np.fft.fft2(generator.standard_normal(shape))
    field = np.fft.ifft2(spectrum).real[:height, :width]
    return (field / field.std()).astype(np.float32)
