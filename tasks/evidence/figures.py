"""The evidence's charts, as SVG: inside the page, and the accuracy plot as a file of its own.

Percent everywhere; bars and points are means over seeds, lines on them the sample standard deviation. A chart whose
cells were not trained is None.
"""

from collections.abc import Sequence
from math import isfinite
from typing import TYPE_CHECKING

import numpy as np

from tasks.charts import INK, MORE_SERIES, PUBLISHED, SERIES, alone_svg, inline_svg, panels
from tasks.evidence import names, rivals
from tasks.evidence.records import CLEAN, Evidence, Histogram
from tasks.evidence.tables import Book, Score
from tasks.metrics import VARIANTS, Stat
from tasks.published import PUBLISHED as PAPER

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BESIDE = ("TAP", "LSP", "AR", "EM", "REM")
"""Published methods that stand beside ours in the charts; the tables have all."""


def colours(book: Book) -> dict[str, str]:
    """A colour a series: clean, the protections in their order, and one for all that is recovered."""
    several = {name: MORE_SERIES[place % len(MORE_SERIES)] for place, name in enumerate(book.protections)}
    return {CLEAN: SERIES["clean"]} | several | dict.fromkeys(book.recovered, SERIES["recovered"])


# --- accuracy --------------------------------------------------------------------------------------------------------


def accuracy_figure(evidence: Evidence) -> bytes:
    """Accuracy of clean and protected images plainly trained on, beside published figures: an SVG file of its own.

    Raises:
        ValueError: nothing was plainly trained on.
    """
    book = Book(evidence)
    if not book.plain:
        raise ValueError("no cell without countermeasure and attack, with all images protected")
    with panels(2, 9.2, 3.3, "accuracy-alone", widths=[1.2, 1]) as (figure, axes):
        figure.get_layout_engine().set(w_pad=0.15, h_pad=0.12)  # type: ignore[union-attr, call-arg]
        return alone_svg(_accuracy(figure, axes, book), _accuracy_label(book))


def accuracy_bars(book: Book) -> str | None:
    """The same inside a page."""
    if not book.plain:
        return None
    with panels(2, 9.2, 3.3, "accuracy", widths=[1.2, 1]) as (figure, axes):
        return inline_svg(_accuracy(figure, axes, book), _accuracy_label(book))


def _accuracy_label(book: Book) -> str:
    parts = [f"{name} {100 * score.last.mean:.1f} percent" for name, score in book.plain.items()]
    return f"Test accuracy after training on: {', '.join(parts)}; beside published figures of other methods"


def _accuracy(figure: "Figure", axes: Sequence["Axes"], book: Book) -> "Figure":
    scores, colour = book.plain, colours(book)
    setting = book.evidence.setting
    for position, (name, score) in enumerate(scores.items()):
        for offset, stat, alpha in ((-0.2, score.last, 1.0), (0.2, score.peak, 0.5)):
            _bar(axes[0], position + offset, stat, colour[name], alpha)
    many = len(scores) > 4
    axes[0].set_xticks(
        range(len(scores)), [_wrapped(name, 10 if many else 14) for name in scores], fontsize=7.5 if many else 10
    )
    seeds = max(len(score.seeds) for score in scores.values())
    axes[0].set_title(
        f"Measured here: {setting.dataset}, {setting.images:,} images,\n{names.architecture(book.architecture)}, "
        f"{setting.epochs} epochs, {_seed_count(seeds)}"
    )
    axes[0].set_xlabel("solid: last epoch; faint: best epoch", fontsize=9)
    axes[0].set_ylabel("test accuracy (%)")
    _published_bars(axes[1])
    for axis in axes:
        axis.set_ylim(0, 100)
        axis.grid(axis="x", visible=False)
        axis.tick_params(axis="x", length=0)
    _chance(axes[0], setting.classes)
    return figure


def _bar(axis: "Axes", at: float, stat: Stat, colour: str, alpha: float = 1.0, width: float = 0.36) -> None:
    top = 100 * stat.mean
    axis.bar([at], [top], width, color=colour, alpha=alpha)
    if stat.std is not None:
        axis.errorbar([at], [top], [100 * stat.std], color=INK, linewidth=1, capsize=2.5)
        top += 100 * stat.std
    axis.text(at, top + 1.5, f"{100 * stat.mean:.1f}", ha="center", va="bottom", fontsize=7.5)


def _published_bars(axis: "Axes") -> None:
    paper = PAPER["cifar10"].accuracy
    bars = [(f"paper: {variant}", paper[variant][1]) for variant in VARIANTS]
    bars += [(rival.name, rival.accuracy["none"]) for rival in rivals.of_source(rivals.APBENCH) if rival.name in BESIDE]
    lock = rivals.of_source(rivals.LEARNABILITY_LOCK)[0]
    bars.append((lock.name, lock.accuracy["none"]))
    for position, (_, accuracy) in enumerate(bars):
        _bar(axis, position, Stat(mean=accuracy, std=None, n=1), PUBLISHED, width=0.7)
    axis.set_xticks(range(len(bars)), [name for name, _ in bars], fontsize=7.5, rotation=50, ha="right")
    axis.set_title(f"Published, not measured here: {rivals.DATASET},\nResNet-18, other settings than ours")


def _chance(axis: "Axes", classes: int) -> None:
    if classes > 1:
        axis.axhline(100 / classes, color=INK, linewidth=0.8, linestyle=":")


def _seed_count(seeds: int) -> str:
    return "one seed" if seeds == 1 else f"mean ± deviation of {seeds} seeds"


def _wrapped(name: str, width: int) -> str:
    from textwrap import fill

    return fill(name, width, break_long_words=False)


# --- treatments ------------------------------------------------------------------------------------------------------


def heat_map(book: Book) -> str | None:
    """Countermeasures by protections (test accuracy, last epoch), the published methods beside them."""
    if not book.countermeasures:
        return None
    rows = ["none", *book.countermeasures]
    ours = [CLEAN, *book.protections]
    measured = np.array([[_accuracy_of(book.get(name, countermeasure=row)) for name in ours] for row in rows])
    others = {rival.name: rival.accuracy for rival in rivals.of_source(rivals.APBENCH) if rival.name in BESIDE}
    published = np.array([[accuracy.get(row, float("nan")) for accuracy in others.values()] for row in rows])
    height = 1.1 + 0.34 * len(rows)
    widths = [1.0 * len(ours), 0.8 * len(others)]
    with panels(2, 9.2, height, "heat", widths=widths) as (figure, axes):
        _heat(axes[0], measured, MORE_SERIES[0])
        _heat(axes[1], published, PUBLISHED)
        axes[0].set_title("Measured here")
        axes[1].set_title("Published (APBench, CIFAR-10)")
        axes[0].set_xticks(range(len(ours)), [_wrapped(name, 12) for name in ours])
        axes[1].set_xticks(range(len(others)), list(others))
        axes[0].set_yticks(range(len(rows)), [names.countermeasure_title(row) for row in rows])
        axes[1].set_yticks(range(len(rows)), [""] * len(rows))
        return inline_svg(figure, "Heat map of test accuracy, countermeasures by protections")


def _accuracy_of(score: Score | None) -> float:
    return float("nan") if score is None else score.last.mean


def _heat(axis: "Axes", values: np.ndarray, colour: str) -> None:  # type: ignore[type-arg]
    from matplotlib.colors import to_rgb

    cells = np.zeros((*values.shape, 4))
    cells[..., :3] = to_rgb(colour)
    cells[..., 3] = 0.8 * np.nan_to_num(values)  # see-through where low: the page's background stays the zero
    axis.imshow(cells, interpolation="none", aspect="auto")
    axis.grid(False)
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(True)
    for (row, column), value in np.ndenumerate(values):
        text = f"{100 * value:.1f}" if isfinite(value) else "–"
        axis.text(column, row, text, ha="center", va="center", fontsize=8.5)


def attack_bars(book: Book, best: dict[str, Score]) -> str | None:
    """Best epoch: plain training beside the best attack of one who knows the algorithm, a group a protection.

    Args:
        best: protection -> the attack's score.
    """
    if not best:
        return None
    clean, colour = book.get(CLEAN), colours(book)
    with panels(1, 9.2, 3.0, "attacks") as (figure, axes):
        for position, (name, score) in enumerate(best.items()):
            plain = book.get(name)
            if plain:
                _bar(axes[0], position - 0.2, plain.peak, colour[name], 0.5)
            _bar(axes[0], position + 0.2, score.peak, colour[name])
        labels = [
            f"{name}\nbest attack: {names.treatment(s.cell.countermeasure, s.cell.attack)}" for name, s in best.items()
        ]
        axes[0].set_xticks(range(len(best)), labels)
        axes[0].set_xlim(-0.8, len(best) - 0.2)
        if clean:
            axes[0].axhline(100 * clean.peak.mean, color=colour[CLEAN], linewidth=1.5, linestyle="--")
            axes[0].text(-0.78, 100 * clean.peak.mean + 1, "clean images", va="bottom", fontsize=8)
        axes[0].set_title(
            "Best epochs. Faint: naive training. Solid: the best attack that knows the algorithm, but no key"
        )
        _bars_axis(axes[0], book)
        return inline_svg(figure, "Accuracy of plain training beside the best adaptive attack")


def _bars_axis(axis: "Axes", book: Book) -> None:
    axis.set_ylim(0, 102)
    axis.set_ylabel("test accuracy (%)")
    axis.grid(axis="x", visible=False)
    axis.tick_params(axis="x", length=0)
    _chance(axis, book.evidence.setting.classes)


def architecture_bars(book: Book) -> str | None:
    """A group a network: clean and the protections, plainly trained."""
    networks = book.architectures
    if len(networks) < 2:
        return None
    ours, colour = [CLEAN, *book.protections], colours(book)
    width = 0.8 / len(ours)
    with panels(1, 9.2, 3.0, "architectures") as (figure, axes):
        for group, network in enumerate(networks):
            for place, name in enumerate(ours):
                score = book.get(name, architecture=network)
                if score:
                    at = group + (place - (len(ours) - 1) / 2) * width
                    _bar(axes[0], at, score.last, colour[name], width=width * 0.92)
        axes[0].set_xticks(range(len(networks)), [names.architecture(network) for network in networks])
        _bars_axis(axes[0], book)
        _swatches(figure, {name: colour[name] for name in ours})
        return inline_svg(figure, "Accuracy by network")


def _swatches(figure: "Figure", shown: dict[str, str]) -> None:
    from matplotlib.patches import Patch

    figure.legend(
        handles=[Patch(color=colour, label=name) for name, colour in shown.items()],
        loc="outside lower center",
        ncols=len(shown),
    )


# --- pixels ----------------------------------------------------------------------------------------------------------


def quality_histograms(book: Book) -> str | None:
    """PSNR and SSIM of the protected images against the clean ones."""
    facts = book.evidence.protections
    if not any(sum(of.psnr.counts) + sum(of.ssim.counts) for of in facts):
        return None
    colour = colours(book)
    with panels(2, 9.2, 2.8, "evidence-quality") as (figure, axes):
        for of in facts:
            _histogram(axes[0], of.psnr, colour[of.name])
            _histogram(axes[1], of.ssim, colour[of.name])
        for axis, title in zip(axes, ("PSNR (dB)", "SSIM"), strict=True):
            axis.set_title(title)
            axis.set_ylabel("images")
            axis.grid(axis="x", visible=False)
        _swatches(figure, {of.name: colour[of.name] for of in facts})
        return inline_svg(figure, "Histograms of PSNR and SSIM of protected images")


def _histogram(axis: "Axes", histogram: Histogram, colour: str) -> None:
    if sum(histogram.counts):
        axis.stairs(histogram.counts, histogram.edges, fill=True, color=colour, alpha=0.7)
