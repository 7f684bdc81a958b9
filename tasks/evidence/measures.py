"""How far protected and restored images are from the clean ones: PSNR, SSIM, sample errors, for `ProtectionFacts`."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.evidence.records import Histogram
from tasks.quality import ErrorTally, QualityTally, spread

BINS = 40


class Rows(NamedTuple):
    """uint8 [M, H, W, 3], and the places of the clean images they belong to, int64 [M]."""

    images: NDArray[np.uint8]
    rows: NDArray[np.int64]


def measured(clean: NDArray[np.uint8], shown: Rows, restored: Rows, quality_images: int) -> dict[str, Any]:
    """The figures of `ProtectionFacts`.

    Args:
        clean: uint8 [N, H, W, 3].
        quality_images: protected images, evenly spread over all, whose PSNR and SSIM are measured.
    """
    errors = ErrorTally()
    errors.add(clean[restored.rows], restored.images)
    tally = QualityTally()
    count = min(quality_images, len(shown.rows))
    for place in np.linspace(0, len(shown.rows) - 1, count).astype(np.int64) if count else ():
        tally.add(clean[shown.rows[place]], shown.images[place])
    return {
        "identical": errors.exact,
        "max_error": errors.max_error or 0,
        **_figures("psnr", tally.psnr),
        **_figures("ssim", tally.ssim),
    }


def _figures(name: str, values: Sequence[float]) -> dict[str, Any]:
    found = spread(values)
    finite = np.array([value for value in values if np.isfinite(value)])
    counts, edges = np.histogram(finite, BINS) if finite.size else (np.zeros(1, np.int64), np.array([0.0, 1.0]))
    histogram = Histogram(edges=[round(float(e), 6) for e in edges], counts=[int(c) for c in counts])
    return {f"{name}_mean": found.mean or 0.0, f"{name}_std": found.std or 0.0, name: histogram}
