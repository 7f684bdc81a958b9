"""Whether a difference of accuracies is more than noise: differences with 95 % intervals.

With two seeds or more everywhere the interval is Welch's over the seeds. Where a setting has one seed, all are taken to
spread alike, by the pooled variance of those that have two or more (Student's interval). Where none has, there is only
the sampling error of the test set (the models taken as independent), which knows nothing of the spread between training
runs. `basis` says which.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Term = tuple[float, Sequence[float]]
"""A weight, and the accuracies of one setting, a value a seed."""


@dataclass(frozen=True)
class Difference:
    """`value` with the ends of its 95 % interval, all as shares; `basis`: what the interval rests on."""

    value: float
    low: float
    high: float
    basis: str

    @property
    def within_noise(self) -> bool:
        """Whether the interval holds zero."""
        return self.low <= 0.0 <= self.high


def contrast(terms: Sequence[Term], n_test: int, settings: Sequence[Sequence[float]] = ()) -> Difference:
    """The weighted sum of mean accuracies: `[(-1, first), (1, second)]` is second minus first.

    Args:
        terms: no two of them are of the same models.
        n_test: test images that an accuracy rests on.
        settings: accuracies of all that was measured beside each other, no models twice: where a term has one seed,
            they say how far seeds spread. Default: the terms.
    """
    values = [np.asarray(accuracies, np.float64) for _, accuracies in terms]
    weights = [weight for weight, _ in terms]
    value = float(sum(w * v.mean() for w, v in zip(weights, values, strict=True)))
    half, basis = _by_seeds(weights, values, settings) or _by_sampling(weights, values, n_test)
    return Difference(value, value - half, value + half, basis)


def welch(squared_errors: Sequence[float], seeds: Sequence[int]) -> float:
    """Half the width of Welch's 95 % interval, from the squared standard errors of means over so many seeds (>= 2)."""
    total = sum(squared_errors)
    if not total:
        return 0.0
    freedom = total**2 / sum(e**2 / (n - 1) for e, n in zip(squared_errors, seeds, strict=True))
    return _quantile(freedom) * sqrt(total)


def _by_seeds(
    weights: Sequence[float], values: Sequence[Values], settings: Sequence[Sequence[float]]
) -> tuple[float, str] | None:
    """Half the interval's width by the spread between seeds, and its basis; None where no spread was measured."""
    seeds = [v.size for v in values]
    several = values if min(seeds) > 1 else [np.asarray(s, np.float64) for s in (settings or values) if len(s) > 1]
    if not any(np.ptp(s) for s in several):  # a variance would hold what rounding left
        return None
    if min(seeds) > 1:
        errors = [w * w * float(v.var(ddof=1)) / v.size for w, v in zip(weights, values, strict=True)]
        return welch(errors, seeds), _seeds(seeds)
    freedom = sum(s.size - 1 for s in several)
    variance = sum(float(s.var()) * s.size for s in several) / freedom
    half = _quantile(freedom) * sqrt(variance * sum(w * w / n for w, n in zip(weights, seeds, strict=True)))
    return half, f"{_seeds(seeds)}; the spread of one is taken from the settings that have several"


def _by_sampling(weights: Sequence[float], values: Sequence[Values], n_test: int) -> tuple[float, str]:
    """Half the interval's width by the test images that happened to be drawn, and its basis."""
    spread = sum(w * w * v.mean() * (1 - v.mean()) for w, v in zip(weights, values, strict=True))
    half = 1.96 * sqrt(max(0.0, float(spread)) / n_test)
    return half, f"the sampling error of {n_test:,} test images only; {_few(min(v.size for v in values))}"


def _quantile(freedom: float) -> float:
    """Of the t distribution, for 95 % on both sides together."""
    from scipy.special import stdtrit  # scipy.stats would take seconds to import

    return float(stdtrit(freedom, 0.975))


def _seeds(seeds: Sequence[int]) -> str:
    if len(set(seeds)) > 1:
        return f"{' and '.join(map(str, seeds))} seeds"
    return "one seed each" if seeds[0] == 1 else f"{seeds[0]} seeds each"


def _few(seeds: int) -> str:
    if seeds == 1:
        return "one seed tells nothing of the spread between runs"
    return f"{seeds} seeds agreed to the last image"
