"""Usage over time as a chart: bars for days, weeks or months, stacked by data set. Here is the geometry, in the
template `chart.html` the SVG; a table beside it says the same in numbers.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from flows.gateway.schemas import UsageInfo

WIDTH, HEIGHT = 960, 240
LEFT, RIGHT, TOP, BOTTOM = 64, 8, 12, 28
SERIES = 5
"""Colours; the last one is for all other data sets together."""

OTHERS = "others"


@dataclass(frozen=True)
class Piece:
    """Part of a bar."""

    series: int
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Mark:
    """A label on an axis, and where."""

    at: float
    text: str


@dataclass(frozen=True)
class Row:
    """One period in numbers."""

    period: str
    images: dict[str, int]
    total: int


@dataclass(frozen=True)
class Chart:
    """Everything that the template draws."""

    series: list[str]
    pieces: list[Piece]
    ticks: list[Mark]
    labels: list[Mark]
    rows: list[Row]
    total: int
    unit: str
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    bottom: int = HEIGHT - BOTTOM


def usage_chart(usage: Sequence[UsageInfo], first: date, last: date) -> Chart:
    """The chart of the days from `first` to `last`, with a bar for each, or for each week or month of a long time."""
    days = (last - first).days + 1
    unit = "day" if days <= 31 else "week" if days <= 200 else "month"
    starts = _periods(first, last, unit)
    images: dict[date, Counter[str]] = defaultdict(Counter)
    names = _series(usage)
    for row in usage:
        name = row.dataset if row.dataset in names else OTHERS
        images[_begin(date.fromisoformat(row.day), unit)][name] += row.images
    top = _nice(max((sum(images[start].values()) for start in starts), default=0))
    ticks = [Mark(_y(top * i / 4, top), f"{round(top * i / 4):,}") for i in range(5)]
    step = (WIDTH - LEFT - RIGHT) / len(starts)
    return Chart(
        series=names,
        pieces=[piece for i, start in enumerate(starts) for piece in _bar(images[start], names, i, step, top)],
        ticks=ticks,
        labels=_labels(starts, step, unit),
        rows=[_row(start, images[start], unit) for start in reversed(starts) if images[start]],
        total=sum(row.images for row in usage),
        unit=unit,
    )


def _series(usage: Sequence[UsageInfo]) -> list[str]:
    """The data sets with most images, the most first; the rest together."""
    totals: Counter[str] = Counter()
    for row in usage:
        totals[row.dataset] += row.images
    names = [name for name, _ in sorted(totals.items(), key=lambda item: (-item[1], item[0]))]
    return names if len(names) <= SERIES else [*names[: SERIES - 1], OTHERS]


def _begin(when: date, unit: str) -> date:
    if unit == "day":
        return when
    return when - timedelta(days=when.weekday()) if unit == "week" else when.replace(day=1)


def _periods(first: date, last: date, unit: str) -> list[date]:
    found, when = [], _begin(first, unit)
    while when <= last:
        found.append(when)
        when = _begin(when + timedelta(days={"day": 1, "week": 7, "month": 31}[unit]), unit)
    return found


def _bar(images: Counter[str], names: list[str], index: int, step: float, top: int) -> list[Piece]:
    pieces, below = [], 0
    width = min(step * 0.8, 48.0)
    for series, name in enumerate(names):
        if count := images[name]:
            low, high = _y(below, top), _y(below + count, top)
            x = LEFT + index * step + (step - width) / 2
            pieces.append(Piece(series, round(x, 2), round(high, 2), round(width, 2), round(low - high, 2)))
            below += count
    return pieces


def _y(value: float, top: int) -> float:
    return round(HEIGHT - BOTTOM - value / top * (HEIGHT - BOTTOM - TOP), 2)


def _nice(most: int) -> int:
    """A round number that is not less, and divides into four."""
    size = 4
    while True:
        for factor in (1, 2, 5):
            if size * factor >= most:
                return size * factor
        size *= 10


def _labels(starts: list[date], step: float, unit: str) -> list[Mark]:
    every = max(1, round(len(starts) / 6))
    form = "%b %Y" if unit == "month" else "%d %b"
    return [
        Mark(round(LEFT + (i + 0.5) * step, 2), f"{start:{form}}")
        for i, start in enumerate(starts)
        if i % every == 0 and (i + 0.5) * step < WIDTH - LEFT - RIGHT - 16
    ]


def _row(start: date, images: Counter[str], unit: str) -> Row:
    shown = {"day": f"{start}", "week": f"week of {start}", "month": f"{start:%B %Y}"}[unit]
    return Row(shown, dict(images), sum(images.values()))
