"""Whether a difference of accuracies is more than noise: differences with 95 % intervals.

With two seeds or more everywhere the interval is Welch's over the seeds; with one seed it is the sampling error of the
test set alone (the models taken as independent), which knows nothing of the spread between training runs, and `basis`
says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np

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


def contrast(terms: Sequence[Term], n_test: int) -> Difference:
    """The weighted sum of mean accuracies: `[(-1, first), (1, second)]` is second minus first.

    Args:
        terms: no two of them are of the same models.
        n_test: test images that an accuracy rests on.
    """
    values = [np.asarray(accuracies, np.float64) for _, accuracies in terms]
    weights = [weight for weight, _ in terms]
    value = float(sum(w * v.mean() for w, v in zip(weights, values, strict=True)))
    seeds = [v.size for v in values]
    if min(seeds) > 1 and sum(v.var() for v in values) > 0:
        half = _welch([w * w * v.var(ddof=1) / v.size for w, v in zip(weights, values, strict=True)], seeds)
        return Difference(value, value - half, value + half, _seeds(seeds))
    spread = sum(w * w * v.mean() * (1 - v.mean()) for w, v in zip(weights, values, strict=True))
    half = 1.96 * sqrt(max(0.0, float(spread)) / n_test)
    basis = f"the sampling error of {n_test:,} test images only; {_few(min(seeds))}"
    return Difference(value, value - half, value + half, basis)


def _welch(squared_errors: Sequence[float], seeds: Sequence[int]) -> float:
    """Half the width of Welch's 95 % interval, from the squared standard errors of means over so many seeds."""
    from scipy.special import stdtrit  # the t distribution's quantile; scipy.stats would take seconds to import

    total = sum(squared_errors)
    freedom = total**2 / sum(e**2 / (n - 1) for e, n in zip(squared_errors, seeds, strict=True))
    return float(stdtrit(freedom, 0.975)) * sqrt(total)


def _seeds(seeds: Sequence[int]) -> str:
    return f"{seeds[0]} seeds each" if len(set(seeds)) == 1 else f"{' and '.join(map(str, seeds))} seeds"


def _few(seeds: int) -> str:
    if seeds == 1:
        return "one seed tells nothing of the spread between runs"
    return f"{seeds} seeds agreed to the last image"
