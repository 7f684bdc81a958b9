"""What the evidence says, in words that are computed: nothing here is phrased in advance.

Each function gives sentences of one section; an empty list where there is nothing to say.
"""

from collections.abc import Sequence

from tasks.evidence import judgement, names, rivals
from tasks.evidence.judgement import Effect
from tasks.evidence.records import CLEAN, Evidence, KeyTrial, ProtectionFacts
from tasks.evidence.tables import Book, Score
from tasks.published import PAPER_EPOCHS, PUBLISHED
from tasks.verdict import interval, percent

# --- plainly trained on ----------------------------------------------------------------------------------------------


def plain(book: Book) -> list[str]:
    """What those get who train on protected images as they are: a sentence a protection."""
    return [sentence for name in book.protections if (sentence := _plain(book, name))]


def _plain(book: Book, name: str) -> str:
    clean, protected = book.get(CLEAN), book.get(name)
    if protected is None:
        return ""
    own = percent(protected.last.mean)
    if clean is None:
        return f"{name}: trained on as published, {own} of the test images are right (best epoch {_peak(protected)})."
    change = book.contrast("last", [(-1, clean), (1, protected)])
    levels = f"{own}, against {percent(clean.last.mean)} on clean images"
    if change.within_noise:
        return f"{name}: no effect is shown. Trained on as published, {levels} ({interval(change)})."
    if change.value > 0:
        return f"{name} fails: trained on as published, models do better than on clean images: {levels}."
    text = f"{name}: trained on as published, test accuracy falls to {levels} ({interval(change)})."
    weak = " Protection is weak here: one of the two keeps more than half." if _is_weak(book, protected, clean) else ""
    return f"{text} {_kept(book, protected, clean)} At its best epoch: {_peak(protected)}.{weak}"


def _kept(book: Book, protected: Score, clean: Score) -> str:
    chance = 1 / max(1, book.evidence.setting.classes)
    if clean.last.mean <= chance:
        return f"Clean images teach no more than guessing here ({percent(chance)})."
    kept = (protected.last.mean - chance) / (clean.last.mean - chance)
    if kept <= 0:
        return f"That is no better than guessing ({percent(chance)})."
    return f"It keeps {percent(kept, 0)} of what clean training gains over guessing ({percent(chance)})."


def _peak(score: Score) -> str:
    return percent(score.peak.mean)


# --- where it fails --------------------------------------------------------------------------------------------------


def failures(book: Book) -> list[str]:
    """Treatments that bring accuracy back, or may: a sentence each, with what the published methods show there."""
    by_treatment: dict[tuple[str, str], list[Effect]] = {}
    for name in book.protections:
        for effect in (*judgement.effects(book, name), *judgement.attacks(book, name)):
            if effect.finding in ("undone", "perhaps"):
                cell = effect.treated.cell
                by_treatment.setdefault((cell.countermeasure, cell.attack), []).append(effect)
    sentences = []
    for (countermeasure, attack), found in by_treatment.items():
        title = names.treatment(countermeasure, attack)
        text = f"Under {title} {'; '.join(_failure(effect) for effect in found)}."
        published = published_line(countermeasure) if attack == "none" else ""
        sentences.append(f"{text} {published}" if published else text)
    return sentences


def _failure(effect: Effect) -> str:
    under = "under the same treatment" if effect.same_treatment else "untreated"
    at = "" if effect.epoch == "last" else " at the best epoch"
    way = f"{percent(effect.way, 0)} of the way"
    if effect.finding == "perhaps":
        way += ", and half of it is within noise"
    elif effect.short.within_noise:
        way += ", all of it within noise"
    return (
        f"{effect.protection} {'fails' if effect.finding == 'undone' else 'may fail'}: accuracy{at} comes back from "
        f"{percent(effect.accuracy(effect.plain))} to {percent(effect.accuracy(effect.treated))}, of "
        f"{percent(effect.accuracy(effect.clean))} that clean images give {under} ({way})"
    )


def published_line(countermeasure: str) -> str:
    """What the published methods show under a countermeasure; empty where nothing was published."""
    back, held = rivals.halfway_back(countermeasure)
    if not back and not held:
        return ""
    clean, same = rivals.clean_published(countermeasure)
    of = f"of {100 * clean:.2f} that clean images give {'under it' if same else 'untreated'} ({rivals.ISS})"
    bounded = [rival for rival in (*back, *held) if rival.name not in rivals.UNBOUNDED]
    if not back:
        said = f"accuracy comes back for none of {len(held)}, {of}: {_list(held, countermeasure)}"
    else:
        every = all(rival in back for rival in bounded)
        which = "every bounded perturbation" if every else f"{len(back)} of {len(back) + len(held)}"
        said = f"accuracy comes back for {which}, {of}: {_list(back, countermeasure)}"
        said += f"; not for {_list(held, countermeasure)}" if held else ""
    return f"Published for others ({rivals.APBENCH}; {rivals.DATASET}): {said}."


def _list(found: Sequence[rivals.Rival], countermeasure: str) -> str:
    first = ("TAP", "LSP", "AR", "EM", "REM")
    ordered = sorted(found, key=lambda rival: first.index(rival.name) if rival.name in first else len(first))
    parts = (f"{r.name} {100 * r.accuracy['none']:.2f} to {100 * r.accuracy[countermeasure]:.2f}" for r in ordered)
    return ", ".join(parts)


def holding(book: Book) -> list[str]:
    """What was tried and does not give back half."""
    sentences = []
    for name in book.protections:
        tried = [*judgement.effects(book, name), *judgement.attacks(book, name)]
        held = sorted((e for e in tried if e.finding == "holds"), key=lambda e: -(e.way or 0.0))
        if held:
            parts = [
                f"{names.treatment(e.treated.cell.countermeasure, e.treated.cell.attack)} "
                f"({percent(e.accuracy(e.treated))}, {percent(max(0.0, e.way or 0.0), 0)} of the way)"
                for e in held
            ]
            sentences.append(f"{name} holds, in that less than half comes back, under {'; '.join(parts)}.")
    return sentences


def owner(book: Book) -> list[str]:
    """What that means for one who publishes."""
    return [sentence for name in book.protections if (sentence := _owner(book, name))]


def _owner(book: Book, name: str) -> str:
    tried = [*judgement.effects(book, name), *judgement.attacks(book, name)]
    undone = [effect for effect in tried if effect.finding == "undone"]
    clean, protected = book.get(CLEAN), book.get(name)
    if not tried or clean is None or protected is None:
        return ""
    if not undone:
        count = f"{len(tried)} treatments" if len(tried) > 1 else "one treatment"
        weak = "it does not stop even those who simply train; " if _is_weak(book, protected, clean) else ""
        text = f"For an owner, {name}: {weak}of the {count} tried here none is shown to give back half of what is lost"
        return f"{text}; that says nothing of what was not tried."
    best = max(undone, key=lambda effect: effect.accuracy(effect.treated))
    title = names.treatment(best.treated.cell.countermeasure, best.treated.cell.attack)
    reached = best.accuracy(best.treated)
    lost = (clean.last if best.epoch == "last" else clean.peak).mean - reached
    gap = f"{100 * lost:.1f} points less than clean images give" if lost > 0 else "no less than clean images give"
    stops = "does not stop even those who" if _is_weak(book, protected, clean) else "stops those who"
    return (
        f"For an owner, {name}: it {stops} simply train on what is published. It does not stop one who tries {title} "
        f"({len(undone)} of {len(tried)} treatments are enough): that gives {percent(reached)}, {gap}. Against those "
        "who try, an owner has the licence and the record of who was granted what, not the pixels."
    )


def _is_weak(book: Book, protected: Score, clean: Score) -> bool:
    """Whether who keeps the last or the best epoch has more than half of what clean images give over guessing."""
    chance = 1 / max(1, book.evidence.setting.classes)
    pairs = ((protected.last, clean.last), (protected.peak, clean.peak))
    return any(hidden.mean - chance > 0.5 * (shown.mean - chance) for hidden, shown in pairs)


# --- other sections --------------------------------------------------------------------------------------------------


def attacks(book: Book) -> list[str]:
    """Plain training beside the best attack that knows the algorithm."""
    sentences = []
    for name in book.protections:
        best, protected, clean = judgement.best_attack(book, name), book.get(name), book.get(CLEAN)
        if best is None or protected is None:
            continue
        title = names.treatment(best.cell.countermeasure, best.cell.attack)
        change = book.contrast("best", [(-1, protected), (1, best)])
        gain = "no more than noise" if change.within_noise else f"{100 * change.value:+.1f} points".replace("-", "−")
        against = f", of {percent(clean.peak.mean)} with clean images" if clean else ""
        sentences.append(
            f"{name}, best epochs: {percent(protected.peak.mean)} naively, {percent(best.peak.mean)} with the best "
            f"attack, {title} ({gain}){against}."
        )
    return sentences


def architectures(book: Book) -> list[str]:
    """How far protection carries over to other networks."""
    chance = 1 / max(1, book.evidence.setting.classes)
    sentences = []
    for name in book.protections:
        kept = []
        for network in book.architectures:
            clean, protected = book.get(CLEAN, architecture=network), book.get(name, architecture=network)
            if clean and protected and clean.last.mean > chance:
                share = (protected.last.mean - chance) / (clean.last.mean - chance)
                kept.append((max(0.0, share), names.architecture(network)))
        if len(kept) > 1:
            least, most = min(kept), max(kept)
            text = (
                f"{name}: of what clean training gains over guessing, networks keep {percent(least[0], 0)} "
                f"({least[1]}) to {percent(most[0], 0)} ({most[1]})"
            )
            weak = [network for share, network in kept if share > 0.5]
            sentences.append(f"{text}; weak on {', '.join(weak)}." if weak else f"{text}.")
    return sentences


def shares(book: Book) -> list[str]:
    """Whether protected images add anything to the clean ones that they are mixed with."""
    sentences = []
    for name in book.protections:
        parts = []
        for share in book.shares:
            mixed, rest = book.get(name, share=share), book.rest(name, share)
            if mixed and rest:
                change = book.contrast("last", [(-1, rest), (1, mixed)])
                word = "nothing beyond noise" if change.within_noise else f"{100 * change.value:+.1f} points"
                parts.append(f"{word.replace('-', '−')} at {percent(share, 0)}")
        if parts:
            sentences.append(f"{name}: what the protected images add to the clean rest alone: {', '.join(parts)}.")
    return sentences


def keys(trials: Sequence[KeyTrial]) -> list[str]:
    """Whether anyone got a wrong image with a wrong key."""
    tried = sum(trial.tried for trial in trials)
    if not tried:
        return []
    wrong, exact = sum(trial.wrong for trial in trials), sum(trial.exact for trial in trials)
    refused = sum(trial.refused for trial in trials)
    if wrong:
        return [f"Keys fail: {wrong:,} of {tried:,} misuses gave an image that is not the clean one."]
    text = f"Keys: of {tried:,} misuses {refused:,} were refused"
    text += f", {exact:,} gave the clean image and nothing else" if exact else ""
    return [f"{text}; none gave a wrong image."]


def exactness(facts: Sequence[ProtectionFacts]) -> list[str]:
    """What restoration gives back."""
    return [_exact(of) for of in facts]


def _exact(of: ProtectionFacts) -> str:
    protected = of.images - of.left_out
    text = f"{of.name}: of {protected:,} protected images {of.restored:,} were restored"
    if of.restored and of.identical == of.restored:
        text += ", every one bit for bit" if of.restored > 1 else ", bit for bit"
    elif of.restored:
        text += f", {of.identical:,} bit for bit, the others within {of.max_error} of 255 a sample"
    text += f"; {of.refused:,} were refused" if of.refused else ""
    text += f"; {of.left_out:,} of {of.images:,} could not be protected" if of.left_out else ""
    beside = f"; {percent(of.beside / protected, 2)} carry their payload beside the pixels" if of.beside else ""
    return f"{text}{beside}."


def uncertainty(book: Book) -> list[str]:
    """What the figures rest on."""
    setting, scores = book.evidence.setting, list(book.scores)
    counts = sorted({len(score.seeds) for score in scores})
    if not counts:
        return []
    if counts == [1]:
        seeds = "Every figure is of one seed: it tells nothing of the spread between runs, and intervals are of the "
        seeds += "test set's sampling alone."
    elif len(counts) == 1:
        seeds = f"Every figure is a mean over {counts[0]} seeds, ± the sample standard deviation."
    else:
        seeds = f"Figures are means over {counts[0]} to {counts[-1]} seeds, ± the sample standard deviation"
        lone = (
            "; those without a deviation are of one seed, which intervals and findings take to spread as the others do"
        )
        seeds += f"{lone if counts[0] == 1 else ''}."
    n_test = scores[0].n_test
    text = f"{seeds} Accuracies are of {n_test:,} clean test images. The best epoch is chosen by these images"
    return [f"{text}: it is the most an attacker could get, no forecast.", *_scale(book.evidence, setting.dataset)]


def _scale(evidence: Evidence, dataset: str) -> list[str]:
    setting, published = evidence.setting, PUBLISHED.get(dataset)
    if published is None:
        return [f"Published figures are of {rivals.DATASET}, not of this data set: they show what methods do, no more."]
    smaller = []
    if setting.images < published.n_train * 0.98:
        smaller.append(f"{setting.images:,} images instead of {published.n_train:,}")
    if setting.epochs < PAPER_EPOCHS:
        smaller.append(f"{setting.epochs} epochs instead of the paper's {PAPER_EPOCHS} (APBench: 200)")
    if not smaller:
        return []
    return [f"This is a scaled setting, {' and '.join(smaller)}: compare drops with published figures, not levels."]
