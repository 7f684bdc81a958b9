"""Attack `band-filter`: the signs of profile `exact`, estimated from what is known of them, and subtracted.

Made against signs that start from textures in a narrow band of frequencies that names the class (`pattern: bands`,
`tasks.method.patterns`); of other signs it takes away what happens to lie in such bands of a class. Which
class has which band is secret, but the bands to choose from are not, and the images of a class show theirs. So, of
images whose carrier is undone (`adaptive_carrier`), at their brightness y = x + A s:

1. *What images look like*: the median over the classes of their mean power spectra, in which no single class's band
   shows, gives the covariance of x.
2. *What signs look like*: covariance exp(-2 (pi spread d)^2) cos(2 pi f d) of a texture at distance d, and by the
   arcsine law that of its signs.
3. *Which band*: for each class the one under which its images are likeliest, x and s taken as Gaussian; none if they
   are likelier without. The same likelihood chooses the amplitude A, which no header tells, for all classes together.
4. *The signs*: their expected value given y (Wiener's filter), averaged by likelihood over what is not known of an
   image, the side of the band's angle and how lively the image is; then bent towards -1 and 1, since they are signs.

All in tiles of at most 32x32 pixels that overlap by half. What the surrogate's steps changed in the signs is not known.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from tasks.learning.device import at_once
from tasks.method.patterns import all_bands

Images = NDArray[np.uint8]
Rows = NDArray[np.int64]

TILE = 32
SPREAD = 0.02
"""Of a band, in periods a pixel: the published default of `SignParameters.spread`."""

AMPLITUDES = (4.0, 6.0, 8.0, 10.0, 13.0, 16.0, 20.0, 26.0)
_LIVELY = (0.03, 0.06, 0.12, 0.25, 0.5, 1.0, 2.0, 4.0)
"""Power of an image, as a share of the average one's."""

_BEND = 2.6
"""Slope of tanh over the expected value; by experiment, where values from 1.5 to 4 differ little."""

_NOISE, _LEVEL = 4.0, 1e4
"""Variances added to that of x: noise of each pixel, and the mean brightness, of which nothing is assumed."""

_SAMPLE, _TRIED = 100, 4
"""Images a class that choose its band, among so many that its spectrum prefers."""

_BATCH, _PIXELS = 1024, 1 << 20
"""Most images and pixels at once; so many images a class show its spectrum."""


@dataclass(frozen=True)
class _Basis:
    """Coordinates without correlation: x has variance 1 in each, As has `power` A^2.

    y @ into gives the coordinates, coordinates @ back gives y; float32 [n, n] for n pixels a tile, power [n].
    """

    into: torch.Tensor
    back: torch.Tensor
    power: torch.Tensor


class BandFilter:
    """The estimate of amplitude, bands and signs.

    Args:
        images: uint8 [N, H, W, 3], their carrier undone.
        labels: int64 [N].
        classes: how many there are; decides which bands there can be.

    Attributes:
        amplitude: how far a sample moves, of 255.
        found: the band of each class, a row of `bands`; None where none is likely.
    """

    def __init__(self, images: Images, labels: NDArray[np.int64], classes: int, device: torch.device) -> None:
        self.images, self.device, self.bands = images, device, all_bands(classes)
        self.members = {c: rows for c in range(classes) if len(rows := np.flatnonzero(labels == c))}
        height, width = images.shape[1:3]
        self.tile = (min(TILE, height), min(TILE, width))
        tops, lefts = _starts(height, self.tile[0]), _starts(width, self.tile[1])
        self.corners = [(top, left) for top in tops for left in lefts]
        self._bases: dict[tuple[int, int], _Basis] = {}
        self.amplitude, self.found = self._choose()

    def signs(self, rows: Rows, band: int) -> torch.Tensor:
        """Expected signs of some images under a band, float32 [m, H, W] on the device, -1 to 1."""
        height, width = self.images.shape[1:3]
        tent = torch.outer(*(torch.hann_window(s + 2, periodic=False, device=self.device)[1:-1] for s in self.tile))
        total = torch.zeros(len(rows), height, width, device=self.device)
        weight = torch.zeros(height, width, device=self.device)
        for top, left in self.corners:
            place = (slice(top, top + self.tile[0]), slice(left, left + self.tile[1]))
            expected = self._expected(self._tiles(rows, (top, left)), band)
            total[:, *place] += expected.view(-1, *self.tile) * tent
            weight[place] += tent
        return torch.tanh(_BEND * total / weight)

    def portions(self) -> Iterator[tuple[Rows, torch.Tensor]]:
        """All images of the classes that show a band, some at a time: their rows and `signs`."""
        batch = at_once(_BATCH, _PIXELS, *self.images.shape[1:3])
        for label, band in self.found.items():
            rows = self.members[label]
            if band is not None:
                for first in range(0, len(rows), batch):
                    part = rows[first : first + batch]
                    yield part, self.signs(part, band)

    def _expected(self, tiles: torch.Tensor, band: int) -> torch.Tensor:
        """Mean of the signs given brightness, float32 [m, n]."""
        bases = [self._basis(band, side) for side in self._sides(band)]
        found = [tiles @ basis.into for basis in bases]
        likelihoods = [self._likelihoods(z, b.power, self.amplitude) for z, b in zip(found, bases, strict=True)]
        weights = torch.stack(likelihoods, 1).flatten(1).softmax(1).view(len(tiles), len(bases), len(_LIVELY))
        result = torch.zeros_like(tiles)
        for k, (z, basis) in enumerate(zip(found, bases, strict=True)):
            power = basis.power * self.amplitude**2
            gain = weights[:, k] @ torch.stack([power / (lively + power) for lively in _LIVELY])
            result += (z * gain) @ basis.back
        return result / self.amplitude

    @staticmethod
    def _likelihoods(found: torch.Tensor, power: torch.Tensor, amplitude: float) -> torch.Tensor:
        """Logarithm of the likelihood of coordinates [m, n] at each liveliness, float32 [m, len(_LIVELY)]."""
        squares, variances = found.square(), torch.tensor(_LIVELY, device=found.device)[:, None] + power * amplitude**2
        return -0.5 * (squares @ (1 / variances).T + variances.log().sum(1))

    def _choose(self) -> tuple[float, dict[int, int | None]]:
        """Amplitude and bands under which a sample of each class is likeliest."""
        amplitudes = (0.0, *AMPLITUDES)
        evidence: dict[int, dict[int, torch.Tensor]] = {}
        preferred = self._preferred()
        for label, rows in self.members.items():
            chosen = rows[np.linspace(0, len(rows) - 1, min(_SAMPLE, len(rows))).astype(np.int64)]
            tiles = self._tiles(chosen, self.corners[len(self.corners) // 2])
            evidence[label] = {band: self._evidence(tiles, band, amplitudes) for band in preferred[label]}
        best = torch.stack([torch.stack([*of.values()]).amax(0) for of in evidence.values()]).sum(0)
        at = 1 + int(best[1:].argmax())
        found: dict[int, int | None] = {}
        for label, of in evidence.items():
            band = max(of, key=lambda b: float(of[b][at]))
            found[label] = band if float(of[band][at]) > float(of[band][0]) else None
        return amplitudes[at], found

    def _evidence(self, tiles: torch.Tensor, band: int, amplitudes: tuple[float, ...]) -> torch.Tensor:
        """Logarithm of the likelihood of all the tiles under a band, by amplitude, float32 [len(amplitudes)]."""
        bases = [self._basis(band, side) for side in self._sides(band)]
        found = [(tiles @ basis.into, basis.power) for basis in bases]
        totals = []
        for amplitude in amplitudes:
            each = torch.cat([self._likelihoods(z, power, amplitude) for z, power in found], 1)
            totals.append((each.logsumexp(1) - np.log(each.shape[1])).sum())
        return torch.stack(totals)

    def _preferred(self) -> dict[int, list[int]]:
        """The bands in which the spectrum of a class stands out most from the median, best first."""
        masks = torch.stack([self._mask(band) for band in range(len(self.bands))]).flatten(1)
        result = {}
        for label, spectrum in self._spectra.items():
            beyond = (spectrum.log() - self._median.log()).flatten()
            result[label] = (masks @ beyond / masks.sum(1)).argsort(descending=True)[:_TRIED].tolist()
        return result

    def _mask(self, band: int) -> torch.Tensor:
        """Where a band lies in a spectrum, on either side, float32 [2h, 2w]."""
        down, across = (torch.fft.fftfreq(2 * s, device=self.device) for s in self.tile)
        frequency, angle = self.bands[band]
        y, x = frequency * np.sin(angle), frequency * np.cos(angle)
        distance = (down.abs()[:, None] - y).square() + (across.abs()[None] - x).square()
        return torch.exp(-distance / (2 * (1.5 * SPREAD) ** 2))

    @cached_property
    def _spectra(self) -> dict[int, torch.Tensor]:
        """Mean power spectrum of the tiles of each class, float32 [2h, 2w]."""
        window = torch.outer(*(torch.hann_window(s + 2, periodic=False, device=self.device)[1:-1] for s in self.tile))
        window = window / window.square().sum().sqrt()
        wide, spectra = [2 * s for s in self.tile], {}
        for label, rows in self.members.items():
            total = torch.zeros(wide, device=self.device)
            for corner in self.corners:  # one at a time: a large image has hundreds
                tiles = self._tiles(rows[:_BATCH], corner).view(-1, *self.tile)
                total += torch.fft.fft2(tiles * window, s=wide).abs().square().mean(0)
            spectra[label] = (total / len(self.corners)).clamp_min(1e-6)
        return spectra

    @cached_property
    def _median(self) -> torch.Tensor:
        return torch.stack([*self._spectra.values()]).median(0).values

    @cached_property
    def _root(self) -> torch.Tensor:
        """Cholesky factor of the covariance of x, float32 [n, n]."""
        down, across = self._distances
        covariance = torch.fft.ifft2(self._median).real[down, across] + _LEVEL
        return torch.linalg.cholesky(covariance + _NOISE * torch.eye(len(covariance), device=self.device))

    @cached_property
    def _distances(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows and columns between each two pixels of a tile, int64 [n, n]."""
        height, width = self.tile
        y = torch.arange(height, device=self.device).repeat_interleave(width)
        x = torch.arange(width, device=self.device).repeat(height)
        return y[:, None] - y, x[:, None] - x

    def _sides(self, band: int) -> tuple[int, ...]:
        """A band along a side of the image is its own mirror image."""
        return (1, -1) if abs(np.sin(2 * self.bands[band][1])) > 1e-6 else (1,)

    def _basis(self, band: int, side: int) -> _Basis:
        if (band, side) not in self._bases:
            self._bases[band, side] = self._make_basis(band, side)
        return self._bases[band, side]

    def _make_basis(self, band: int, side: int) -> _Basis:
        frequency, angle = self.bands[band]
        down, across = self._distances
        phase = 2 * np.pi * frequency * (np.sin(side * angle) * down + np.cos(angle) * across)
        texture = torch.exp(-2 * (np.pi * SPREAD) ** 2 * (down.square() + across.square())) * torch.cos(phase)
        signs = (2 / np.pi * torch.arcsin(texture.clamp(-1, 1))).float()
        half = torch.linalg.solve_triangular(self._root, signs, upper=False)
        whitened = torch.linalg.solve_triangular(self._root, half.T, upper=False)
        power, vectors = torch.linalg.eigh((whitened + whitened.T) / 2)
        into = torch.linalg.solve_triangular(self._root.T, vectors, upper=True)
        return _Basis(into, (self._root @ vectors).T.contiguous(), power.clamp_min(0))

    def _tiles(self, rows: Rows, corner: tuple[int, int]) -> torch.Tensor:
        """Brightness of one tile of each image, less its mean, float32 [m, n] on the device."""
        top, left = corner
        tile = self.images[rows, top : top + self.tile[0], left : left + self.tile[1]]
        flat = torch.from_numpy(tile).to(self.device).float().mean(3).flatten(1)
        return flat - flat.mean(1, keepdim=True)


def remove_bands(images: Images, labels: NDArray[np.int64], classes: int, device: torch.device) -> Images:
    """Images whose carrier is undone, uint8 [N, H, W, 3], without the signs that their class's band suggests.

    Classes that show no band keep their images as they are.
    """
    change = expected_change(images, labels, classes, device)
    return np.clip(np.rint(images - change[..., None]), 0, 255).astype(np.uint8)


def expected_change(
    images: Images, labels: NDArray[np.int64], classes: int, device: torch.device
) -> NDArray[np.float32]:
    """What the class's band suggests that was added to each pixel, float32 [N, H, W]; 0 where it shows no band."""
    estimate, result = BandFilter(images, labels, classes, device), np.zeros(images.shape[:3], np.float32)
    for part, signs in estimate.portions():
        result[part] = estimate.amplitude * signs.cpu().numpy()
    return result


def _starts(side: int, tile: int) -> list[int]:
    """Where tiles begin that cover a side and overlap by half or more."""
    count = 1 + -(-2 * (side - tile) // tile)
    return [round(float(start)) for start in np.linspace(0, side - tile, count)]
