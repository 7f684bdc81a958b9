"""What the accuracies say, in words that are computed: nothing here is phrased in advance.

Two variants are told apart by the difference of their mean last test accuracies and its 95 % interval (`tasks.noise`).
"""

from tasks.metrics import Evaluation, VariantAccuracy
from tasks.noise import Difference, contrast


def difference(first: VariantAccuracy, second: VariantAccuracy, n_test: int) -> Difference:
    """Compare the last test accuracies of two variants: second minus first."""
    return contrast([(-1, first.last_by_seed), (1, second.last_by_seed)], n_test)


def verdict(evaluation: Evaluation) -> list[str]:
    """The headline: what protection did to an unauthorised user's model, and what restoration gave back."""
    return [_protection(evaluation), _restoration(evaluation), _pixels(evaluation)]


def _protection(evaluation: Evaluation) -> str:
    clean, protected = evaluation.accuracy["clean"], evaluation.accuracy["protected"]
    change = difference(clean, protected, evaluation.setting.n_test)
    levels = f"{percent(protected.last.mean)}, against {percent(clean.last.mean)} on clean images"
    if change.within_noise:
        return f"An effect of protection is not shown: trained on protected images, {levels} ({interval(change)})."
    if change.value > 0:
        return f"Protection fails: trained on protected images, models do better, {levels} ({interval(change)})."
    chance = 1 / evaluation.classes
    kept = (protected.last.mean - chance) / (clean.last.mean - chance) if clean.last.mean > chance else 1.0
    text = f"Trained on protected images, test accuracy falls to {levels} ({interval(change)})."
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
        within = "test accuracy is that of clean ones within noise"
        return f"Trained on recovered images, {within}: {levels} ({interval(change)})."
    side = "above" if change.value > 0 else "below"
    return f"Trained on recovered images, test accuracy is {side} that of clean ones: {levels} ({interval(change)})."


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


def interval(change: Difference) -> str:
    """A difference in words: its value in points, the 95 % interval, and what that rests on."""
    value, low, high = (f"{100 * share:+.1f}".replace("-", "−") for share in (change.value, change.low, change.high))
    return f"difference {value} points, 95\N{NO-BREAK SPACE}% interval {low} to {high}, from {change.basis}"


def percent(share: float | None, digits: int = 1) -> str:
    """A share as percent, with a space that does not break: 0.8621 -> "86.2 %"; None -> "–"."""
    return "–" if share is None else f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"
