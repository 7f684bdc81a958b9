"""What all charts share: colours, style, and SVG that lies inside a page or stands alone.

Text and lines of a chart inside a page take the page's own colours (`var(--ink)` ...), so one chart serves light, dark
and printed pages. A chart that stands alone is a card that reads on light and dark pages alike. The same input gives
the same bytes.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart by colour-blind readers; at least 3:1 against the page, light and dark.
SERIES = {"clean": "#2f86c5", "protected": "#d9601a", "recovered": "#12946b"}
MORE_SERIES = ("#d9601a", "#a8559a", "#9a7d0a", "#5b6bd5", "#b0413e")
"""Where several protections stand side by side; the first is that of `protected`."""
PUBLISHED = "#7d8791"
"""Figures of others."""

# Colours that stand for the page's: replaced in the finished SVG, and used for nothing else.
INK, FAINT = "#010203", "#040506"
_PAGE_COLOURS = {INK: "var(--ink)", FAINT: "var(--rule)"}
_CARD, _CARD_COLOURS = "#fbfbfa", {INK: "#1c2126", FAINT: "#d9dde1"}

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,  # a class may be called $x$
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


@contextmanager
def panels(
    columns: int, width: float, height: float, name: str, *, widths: list[float] | None = None
) -> Iterator[tuple["Figure", list["Axes"]]]:
    """A figure of panels side by side, `width` x `height` inches; `name` makes ids that no other chart has."""
    # Built without pyplot: no display, and no list of open figures that grows.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(1, columns, squeeze=False, width_ratios=widths)[0]
        yield figure, list(axes)


def inline_svg(figure: "Figure", label: str) -> str:
    """The figure as an SVG element without an address in it; `label` is read out by screen readers."""
    view, body = _drawn(figure)
    for colour, variable in _PAGE_COLOURS.items():
        body = body.replace(colour, variable)
    return f'<svg {view} role="img" aria-label="{escape(label)}">{body}'


def alone_svg(figure: "Figure", label: str) -> bytes:
    """The figure as an SVG file of its own, on a light card."""
    view, body = _drawn(figure)
    for colour, fixed in _CARD_COLOURS.items():
        body = body.replace(colour, fixed)
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    font = 'font-family="system-ui, -apple-system, Segoe UI, Roboto, sans-serif"'
    head = f'<svg {spaces} {view} {font} role="img" aria-label="{escape(label)}">'
    return f'{head}<rect width="100%" height="100%" rx="8" fill="{_CARD}"/>{body}\n'.encode()


def _drawn(figure: "Figure") -> tuple[str, str]:
    """The attribute viewBox, and all that follows the opening tag."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # several charts on a page would repeat matplotlib's names
    text = re.sub(r'font: (?:\w+ )*([\d.]+)px [^;"]*', r"font-size: \1px", text)  # the page's font, not one of ours
    head = text[: text.index(">")]
    view = re.search(r'viewBox="[^"]*"', head)
    return view.group(0) if view else "", text[len(head) + 1 :]
