"""How close two images are: PSNR, SSIM and exact sample errors.

Definitions, the same wherever the project prints such a figure:

* **PSNR** of an image pair, in dB: 10 log10(255^2 / MSE), the mean squared error taken over all samples of the 8-bit
  RGB image (height x width x 3), peak 255. Identical images have no finite PSNR; a mean PSNR is the mean over the
  images that differ, and the share of identical images stands beside it.
* **SSIM** after Wang et al. 2004: Gaussian window, sigma 1.5, 11 x 11 pixels (it fits the smallest image allowed,
  16 x 16), data range 255, computed for R, G and B and averaged. scikit-image computes it.
* **Sample error**: absolute difference of one 8-bit sample. **Bit-exact**: no sample of the image differs.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]

LEVELS = 256


def psnr(reference: Image, image: Image) -> float:
    """PSNR in dB of one pair of uint8 [H, W, 3] images; `inf` where they are identical.

    Raises:
        ValueError: shapes or dtypes differ.
    """
    from skimage.metrics import mean_squared_error

    _check_pair(reference, image)
    mse = float(mean_squared_error(reference, image))
    return float("inf") if mse == 0 else 10.0 * float(np.log10(255.0**2 / mse))


def ssim(reference: Image, image: Image) -> float:
    """SSIM (-1 to 1) of one pair of uint8 [H, W, 3] images with sides of at least 11 pixels.

    Raises:
        ValueError: shapes or dtypes differ, or a side is below 11 pixels.
    """
    from skimage.metrics import structural_similarity

    _check_pair(reference, image)
    value = structural_similarity(
        reference,
        image,
        channel_axis=2,
        data_range=255,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    return float(value)


def _check_pair(reference: Image, image: Image) -> None:
    if reference.dtype != np.uint8 or image.dtype != np.uint8 or reference.shape != image.shape or reference.ndim != 3:
        raise ValueError(f"not a pair: {reference.dtype} {reference.shape} and {image.dtype} {image.shape}")


@dataclass(frozen=True)
class Spread:
    """Mean, standard deviation (of a sample: n - 1; None below two values), smallest and largest of n finite values."""

    n: int
    mean: float | None
    std: float | None
    min: float | None
    max: float | None


def spread(values: Iterable[float]) -> Spread:
    """Summarise the finite values among `values` (identical images' infinite PSNR is left out)."""
    finite = np.array([value for value in values if np.isfinite(value)], dtype=np.float64)
    if finite.size == 0:
        return Spread(0, None, None, None, None)
    std = float(finite.std(ddof=1)) if finite.size > 1 else None
    return Spread(int(finite.size), float(finite.mean()), std, float(finite.min()), float(finite.max()))


@dataclass
class QualityTally:
    """PSNR and SSIM of many pairs, in the order they were added."""

    psnr: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)

    def add(self, reference: Image, image: Image) -> None:
        """Measure one pair of uint8 [H, W, 3] images."""
        self.psnr.append(psnr(reference, image))
        self.ssim.append(ssim(reference, image))

    @property
    def identical(self) -> int:
        """Pairs without any difference."""
        return sum(value == float("inf") for value in self.psnr)


@dataclass
class ErrorTally:
    """Sample errors of many pairs, without keeping any image: memory does not grow with the number of pairs.

    Attributes:
        samples: int64 [256], samples by their absolute error.
        worst: int64 [256], images by the largest absolute error among their samples.
    """

    samples: NDArray[np.int64] = field(default_factory=lambda: np.zeros(LEVELS, np.int64))
    worst: NDArray[np.int64] = field(default_factory=lambda: np.zeros(LEVELS, np.int64))

    def add(self, reference: Image, images: Image) -> NDArray[np.uint8]:
        """Count a batch: two uint8 [N, H, W, 3] arrays of the same shape.

        Returns:
            uint8 [N], the largest absolute error of each image.

        Raises:
            ValueError: shapes or dtypes differ.
        """
        if reference.dtype != np.uint8 or images.dtype != np.uint8 or reference.shape != images.shape:
            raise ValueError(f"not a batch of pairs: {reference.shape} and {images.shape}")
        if len(reference) == 0:
            return np.zeros(0, np.uint8)
        # uint8 throughout: the difference of the larger and the smaller never leaves 0..255.
        errors = np.maximum(reference, images) - np.minimum(reference, images)
        self.samples += np.bincount(errors.ravel(), minlength=LEVELS)
        largest: NDArray[np.uint8] = errors.reshape(len(errors), -1).max(axis=1)
        self.worst += np.bincount(largest, minlength=LEVELS)
        return largest

    def add_identical(self, image_sizes: Iterable[int]) -> None:
        """Count images known to be bit-exact (their files are the same) by their number of samples."""
        for size in image_sizes:
            self.samples[0] += size
            self.worst[0] += 1

    @property
    def images(self) -> int:
        """Pairs counted."""
        return int(self.worst.sum())

    @property
    def exact(self) -> int:
        """Pairs that are bit-exact."""
        return int(self.worst[0])

    @property
    def max_error(self) -> int | None:
        """The largest error of any sample, or None when nothing was counted."""
        used = np.flatnonzero(self.worst)
        return int(used[-1]) if used.size else None

    @property
    def mean_error(self) -> float | None:
        """The mean absolute error of a sample, or None when nothing was counted."""
        total = int(self.samples.sum())
        return float((self.samples * np.arange(LEVELS)).sum() / total) if total else None
