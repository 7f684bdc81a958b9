"""What the accuracies say, in words that are computed: nothing here is phrased in advance.

Two variants are told apart by the difference of their mean last test accuracies and its 95 % interval: with two seeds
or more on both sides Welch's interval over the seeds; with one seed the sampling error of the test set alone (both
models taken as independent), which knows nothing of the spread between training runs, and the sentence says so.
"""

from dataclasses import dataclass
from math import sqrt

import numpy as np

from tasks.metrics import Evaluation, VariantAccuracy


@dataclass(frozen=True)
class Difference:
    """`value` = second minus first, with the ends of its 95 % interval, all as shares; `basis`: what it rests on."""

    value: float
    low: float
    high: float
    basis: str

    @property
    def within_noise(self) -> bool:
        """Whether the interval holds zero."""
        return self.low <= 0.0 <= self.high


def difference(first: VariantAccuracy, second: VariantAccuracy, n_test: int) -> Difference:
    """Compare the last test accuracies of two variants."""
    a, b = np.asarray(first.last_by_seed), np.asarray(second.last_by_seed)
    value = float(b.mean() - a.mean())
    if min(a.size, b.size) > 1 and a.var() + b.var() > 0:
        half = _welch(a.var(ddof=1) / a.size, a.size, b.var(ddof=1) / b.size, b.size)
        return Difference(value, value - half, value + half, _seeds(a.size, b.size))
    p, q = float(a.mean()), float(b.mean())
    half = 1.96 * sqrt((p * (1 - p) + q * (1 - q)) / n_test)
    basis = f"the sampling error of {n_test:,} test images only; {_few(min(a.size, b.size))}"
    return Difference(value, value - half, value + half, basis)


def _welch(first: float, n: int, second: float, m: int) -> float:
    """Half the width of Welch's 95 % interval, from the squared standard errors of two means over n and m values."""
    from scipy.special import stdtrit  # the t distribution's quantile; scipy.stats would take seconds to import

    freedom = (first + second) ** 2 / (first**2 / (n - 1) + second**2 / (m - 1))
    return float(stdtrit(freedom, 0.975)) * sqrt(first + second)


def _seeds(first: int, second: int) -> str:
    return f"{first} seeds each" if first == second else f"{first} and {second} seeds"


def _few(seeds: int) -> str:
    if seeds == 1:
        return "one seed tells nothing of the spread between runs"
    return f"{seeds} seeds agreed to the last image"


def verdict(evaluation: Evaluation) -> list[str]:
    """The headline: what protection did to an unauthorised user's model, and what restoration gave back."""
    return [_protection(evaluation), _restoration(evaluation), _pixels(evaluation)]


def _protection(evaluation: Evaluation) -> str:
    clean, protected = evaluation.accuracy["clean"], evaluation.accuracy["protected"]
    change = difference(clean, protected, evaluation.setting.n_test)
    levels = f"{percent(protected.last.mean)}, against {percent(clean.last.mean)} on clean images"
    if change.within_noise:
        return f"An effect of protection is not shown: trained on protected images, {levels} ({_ci(change)})."
    if change.value > 0:
        return f"Protection fails: trained on protected images, models do better, {levels} ({_ci(change)})."
    chance = 1 / evaluation.classes
    kept = (protected.last.mean - chance) / (clean.last.mean - chance) if clean.last.mean > chance else 1.0
    text = f"Trained on protected images, test accuracy falls to {levels} ({_ci(change)})."
    if kept <= 0:
        return f"{text} That is no better than guessing among {evaluation.classes} classes ({percent(chance)})."
    share = f"{percent(kept, 0)} of what clean training gains over guessing ({percent(chance)})"
    return f"{text} The protected model keeps {share}" + (": the protection is weak here." if kept > 0.5 else ".")


def _restoration(evaluation: Evaluation) -> str:
    clean, recovered = evaluation.accuracy["clean"], evaluation.accuracy["recovered"]
    change = difference(clean, recovered, evaluation.setting.n_test)
    levels = f"{percent(recovered.last.mean)} against {percent(clean.last.mean)}"
    if evaluation.identical and clean.last_by_seed == recovered.last_by_seed:
        return f"The recovered data set is the clean one, byte for byte, and trains the same models: {levels}."
    if change.within_noise:
        return (
            f"Trained on recovered images, test accuracy is that of clean ones within noise: {levels} ({_ci(change)})."
        )
    side = "above" if change.value > 0 else "below"
    return f"Trained on recovered images, test accuracy is {side} that of clean ones: {levels} ({_ci(change)})."


def _pixels(evaluation: Evaluation) -> str:
    fidelity = evaluation.fidelity["recovered"]
    counts, bounds = evaluation.counts, evaluation.bounds
    text = f"{counts.recovered:,} of {counts.protected:,} protected images were restored"
    if fidelity.max_sample_error is None:
        return f"{text}."
    if fidelity.bit_exact == fidelity.images:
        return f"{text}, every one bit for bit."
    text += f"; no sample is off by more than {fidelity.max_sample_error} of 255"
    if bounds.images:
        kept = "held by every image" if bounds.broken == 0 else f"broken by {bounds.broken:,} images"
        text += f" (bound of the bit planes: {bounds.largest}, {kept})"
    return f"{text}, {percent(fidelity.bit_exact_share)} are bit-exact."


def _ci(change: Difference) -> str:
    value, low, high = (f"{100 * share:+.1f}".replace("-", "−") for share in (change.value, change.low, change.high))
    return f"difference {value} points, 95\N{NO-BREAK SPACE}% interval {low} to {high}, from {change.basis}"


def percent(share: float | None, digits: int = 1) -> str:
    """A share as percent, with a space that does not break: 0.8621 -> "86.2 %"; None -> "–"."""
    return "–" if share is None else f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"
