"""How far a stage is: shards, images, images a second and the time left, on stderr."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress

LINE_SECONDS = 5.0  # between lines where no one watches a terminal


class Meter:
    """Counts what is done; `fresh`: images of this run. `advance` is called by the flow's own thread only."""

    def __init__(self, what: str, shards: int, images: int) -> None:
        self.what = what
        self.shards = shards
        self.images = images
        self.done_shards = 0
        self.done_images = 0
        self.fresh = 0
        self._start = time.monotonic()
        self._last_line = -LINE_SECONDS

    def advance(self, images: int, reused: bool = False) -> None:
        """One more shard is done; `reused`: by an earlier run, so it says nothing about speed."""
        self.done_shards += 1
        self.done_images += images
        self.fresh += 0 if reused else images
        self.show()

    @property
    def rate(self) -> float:
        """Images a second of this run."""
        return self.fresh / max(time.monotonic() - self._start, 1e-6)

    def text(self) -> str:
        """The state in one line."""
        line = f"{self.what}: {self.done_shards:,}/{self.shards:,} shards, {self.done_images:,}/{self.images:,} images"
        if self.fresh:
            left = (self.images - self.done_images) / self.rate
            line += f", {self.rate:,.0f} images/s" + (f", {duration(left)} left" if left > 0 else "")
        return line

    def show(self) -> None:
        """Print a line now and then."""
        now = time.monotonic()
        if now - self._last_line >= LINE_SECONDS or self.done_shards == self.shards:
            self._last_line = now
            print(self.text(), file=sys.stderr, flush=True)


class _Bar(Meter):
    """The same as a bar that stays in its line."""

    def __init__(self, what: str, shards: int, images: int, bars: "Progress") -> None:
        super().__init__(what, shards, images)
        self._bars = bars
        self._bar = bars.add_task(what, total=images, speed="")

    def show(self) -> None:
        """Move the bar."""
        speed = f"{self.rate:,.0f} images/s" if self.fresh else ""
        self._bars.update(self._bar, completed=self.done_images, speed=speed)


def duration(seconds: float) -> str:
    """A span of time for people: '40 s', '12 min', '3.4 h'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextmanager
def meter(what: str, shards: int, images: int) -> Iterator[Meter]:
    """A meter for one pass over shards: a bar on a terminal, else a line every few seconds."""
    if not sys.stderr.isatty():
        yield Meter(what, shards, images)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bars:
        yield _Bar(what, shards, images, bars)


def took(metrics: Mapping[str, Any]) -> str:
    """How long a stage took by its metrics (`wall_seconds`, `images`, `fresh`), and how much of it was done before."""
    before = metrics["images"] - metrics["fresh"]
    return f"{metrics['wall_seconds']:.0f} s" + (f" ({before:,} were done before)" if before else "")
