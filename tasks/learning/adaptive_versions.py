"""What two published versions tell of the images that they share, without any key.

Not one of the attacks of the evidence suite, which have one version: it is why no two may be public
(storage/overlaps.py). With the carrier undone, a sample of profile `exact` is x + s A in one version and x + t B in the
other, s and t either 1 or -1. Where A and B differ, the difference of the two has four values, and each names s and t.
Where they are the same it names them only where s and t differ.
"""

from itertools import product

import numpy as np
from numpy.typing import NDArray

from tasks.learning.adaptive_carrier import strip_carrier

Images = NDArray[np.uint8]


def combine_versions(first: Images, second: Images, amplitudes: tuple[int, int]) -> Images:
    """The clean images as two protections of them by profile `exact` tell, uint8 [n, h, w, 3].

    Args:
        first, second: uint8 [n, h, w, 3], as published, one sign a pixel.
        amplitudes: of the two. No header tells them, but there are few to try, and most pixels fit the right ones only.
    """
    mine, other = (strip_carrier(images).astype(np.int16) for images in (first, second))
    a, b = amplitudes
    pixels = mine.shape[:3]
    fewest, total, ways = np.full(pixels, 4), np.zeros(mine.shape), np.zeros(pixels)
    for s, t in product((1, -1), repeat=2):
        guess, fits = _fitting(mine, other, s * a, t * b)
        unfit = (~fits).sum(3)
        better = unfit < fewest
        total[better], ways[better] = 0, 0
        fewest = np.minimum(fewest, unfit)
        take = unfit == fewest
        total[take] += guess[take]
        ways[take] += 1
    return np.rint(total / ways[..., None]).astype(np.uint8)


def _fitting(
    mine: NDArray[np.int16], other: NDArray[np.int16], change: int, others: int
) -> tuple[NDArray[np.int16], NDArray[np.bool_]]:
    """The samples that these changes lead from to both looks, and where there is one; else what the first look says."""
    best, found = np.clip(mine - change, 0, 255), np.zeros(mine.shape, np.bool_)
    for guess in (mine - change, mine, other):
        fits = (guess >= 0) & (guess <= 255) & (_moved(guess, change) == mine) & (_moved(guess, others) == other)
        best = np.where(fits & ~found, guess, best)
        found |= fits
    return best, found


def _moved(samples: NDArray[np.int16], change: int) -> NDArray[np.int16]:
    """As `tasks.method.signs.perturb` moves them: not at all where they would leave 0..255."""
    moved = samples + change
    return np.where((moved < 0) | (moved > 255), samples, moved)
