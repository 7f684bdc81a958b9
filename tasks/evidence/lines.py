"""The evidence's line charts, as SVG inside the page: accuracy by epoch, and by share of protected images.

Percent everywhere; a chart whose cells were not trained is None.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tasks.charts import inline_svg, panels
from tasks.evidence import names
from tasks.evidence.figures import colours
from tasks.evidence.records import CLEAN
from tasks.evidence.tables import Book, Score

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def curves(book: Book, hardest: Mapping[str, Score], cleans: Mapping[str, Score]) -> str | None:
    """Test accuracy by epoch: plainly trained, and (second panel) under what gives back most of each protection.

    Args:
        hardest: protection -> the score of the treatment that gives back most.
        cleans: the treatment's title -> clean images under it.
    """
    plain = book.plain
    if not plain:
        return None
    count = 2 if hardest else 1
    with panels(count, 9.2, 3.3, "evidence-curves") as (figure, axes):
        colour = colours(book)
        for name, score in plain.items():
            _curve(axes[0], score, colour[name], "--" if name in book.recovered else "-", name)
        axes[0].set_title("Plainly trained: test accuracy (%)")
        for name, score in hardest.items():
            title = names.treatment(score.cell.countermeasure, score.cell.attack)
            _curve(axes[1], score, colour[name], "-", f"{name}: {title}")
        for title, score in cleans.items():
            _curve(axes[1], score, colour[CLEAN], "--", f"clean: {title}")
        if hardest:
            axes[1].set_title("Under what gives back most")
        for axis in axes:
            _epoch_axis(axis)
            axis.legend(loc="upper left", bbox_to_anchor=(0, -0.2), fontsize=8.5)
        return inline_svg(figure, "Test accuracy by epoch on clean and protected images")


def _curve(axis: "Axes", score: Score, colour: str, style: str, label: str) -> None:
    lines = [100 * np.array(result.history) for result in score.results if result.history]
    if not lines:
        return
    if len(lines) > 1:
        for line in lines:
            axis.plot(np.arange(1, len(line) + 1), line, style, color=colour, linewidth=0.7, alpha=0.45)
    length = min(len(line) for line in lines)
    mean = np.mean([line[:length] for line in lines], axis=0)
    marker = "o" if length < 3 else ""
    axis.plot(np.arange(1, length + 1), mean, style, color=colour, linewidth=2, label=label, marker=marker)


def _epoch_axis(axis: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_xlabel("epoch")
    axis.set_ylim(0, 102)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def share_curves(book: Book) -> str | None:
    """Mixtures by share of protected images, and the clean rest alone."""
    if not book.shares:
        return None
    colour = colours(book)
    with panels(1, 9.2, 3.2, "shares") as (figure, axes):
        clean = book.get(CLEAN)
        for name in book.protections:
            mixed = [(share, book.get(name, share=share)) for share in book.shares]
            if any(score for _, score in mixed):
                ends = [(0.0, clean), *mixed, (1.0, book.get(name))]
                _share_line(axes[0], ends, colour[name], "-", f"{name}: mixture")
        rest = [(0.0, clean), *((share, _rest(book, share)) for share in book.shares)]
        _share_line(axes[0], rest, colour[CLEAN], "--", "the clean rest alone")
        axes[0].set_xlabel("share of training images that is protected (%)")
        axes[0].set_ylabel("test accuracy (%)")
        axes[0].set_ylim(0, 102)
        axes[0].legend(loc="lower left", fontsize=8.5)
        return inline_svg(figure, "Accuracy by share of protected images, and of the clean rest alone")


def _rest(book: Book, share: float) -> Score | None:
    found = (book.rest(name, share) for name in (CLEAN, *book.protections))
    return next((score for score in found if score), None)


def _share_line(
    axis: "Axes", points: Sequence[tuple[float, Score | None]], colour: str, style: str, label: str
) -> None:
    found = [(100 * share, score.last) for share, score in points if score is not None]
    if len(found) < 2:
        return
    errors = [100 * (stat.std or 0.0) for _, stat in found]
    axis.errorbar(
        [at for at, _ in found], [100 * stat.mean for _, stat in found], errors,
        color=colour, linestyle=style, linewidth=2, marker="o", markersize=4, capsize=2.5, label=label,
    )  # fmt: skip
