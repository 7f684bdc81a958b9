"""What the command line says: results on stdout, progress and errors on stderr, plain text when no one watches.

Rich is imported when something is printed, so that `dmcp --help` does not pay for what it does not show.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from storage.errors import DmcpError

PLAIN_WIDTH = 200  # columns of a table that goes to a file or a pipe: wide enough to keep one row on one line

LINE_SECONDS = 30.0  # from one line of progress to the next, where there is no terminal for a bar

ProgressCallback = Callable[[str, int, int | None], None]
"""Called as (label, done, total): the same as `storage.files.Progress`, which this module does not import."""


def _console(stderr: bool) -> Console:
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    if stream.isatty():
        return Console(stderr=stderr)
    return Console(stderr=stderr, width=PLAIN_WIDTH, no_color=True, highlight=False)


def out() -> Console:
    """Where results go. Made anew each time: tests and pipes replace sys.stdout."""
    return _console(stderr=False)


def err() -> Console:
    """Where progress, hints and errors go."""
    return _console(stderr=True)


def say(text: str) -> None:
    """One line of result, without markup, never folded."""
    out().print(text, markup=False, highlight=False, soft_wrap=True)


def note(text: str) -> None:
    """One line beside the result (stderr): what is going on, what was decided."""
    err().print(text, markup=False, highlight=False, soft_wrap=True, style="dim")


def finished(what: str, where: Sequence[tuple[str, object]] = (), then: Sequence[str] = ()) -> None:
    """The end of a command: what it did, where the result lies, what comes next.

    Args:
        what: a sentence.
        where: names and paths (or addresses), one line each.
        then: what to run next, one line each.
    """
    say(what)
    width = max((len(name) for name, _ in where), default=0)
    for name, value in where:
        say(f"  {name:<{width}}  {value}")
    for position, line in enumerate(then):
        say(("Next: " if position == 0 else "      ") + line)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "", right: Iterable[str] = ()) -> None:
    """A table on stdout; without lines and colours when stdout is no terminal.

    Args:
        columns: the headings.
        rows: cells, printed with `str`; None becomes a dash.
        title: a line above it.
        right: the columns to align to the right.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    console = out()
    grid = Table(title=title or None, box=box.SIMPLE_HEAD if console.is_terminal else None, title_justify="left")
    for name in columns:
        grid.add_column(name, justify="right" if name in set(right) else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(Text("-" if cell is None else str(cell)) for cell in row))
    console.print(grid)


def show_error(what: str, cure: str = "") -> None:
    """A failure as one readable message on stderr: what happened in red, the cure below it."""
    console = err()
    console.print(f"Error: {what}", markup=False, highlight=False, soft_wrap=True, style="bold red")
    if cure:
        console.print(cure, markup=False, highlight=False, soft_wrap=True)


def show_dmcp_error(error: DmcpError) -> None:
    """An error of the project's own tree."""
    show_error(error.what, error.cure)


@contextmanager
def progress(what: str) -> Iterator[ProgressCallback]:
    """A progress bar on stderr while the block runs; when stderr is no terminal, a line at its start and now and then.

    Yields:
        a callback `(label, done, total)`; each new label gets a bar of its own.
    """
    console = err()
    if not console.is_terminal:
        with _lines(what) as tell:
            yield tell
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as bars:
        tasks = {what: bars.add_task(what, total=None)}

        def report(label: str, done: int, total: int | None) -> None:
            name = label or what
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total)
            bars.update(tasks[name], completed=done, total=total)

        yield report


@contextmanager
def _lines(what: str) -> Iterator[ProgressCallback]:
    """Progress for a log: a line at once, and how far it is every `LINE_SECONDS`, so that silence means it hangs."""
    note(f"{what} ...")
    start, stop = time.monotonic(), threading.Event()
    last: tuple[str, int, int | None] | None = None

    def report(label: str, done: int, total: int | None) -> None:
        nonlocal last
        last = (label, done, total)

    def tell() -> None:
        while not stop.wait(LINE_SECONDS):
            minutes, seconds = divmod(round(time.monotonic() - start), 60)
            note(f"{what}: {_far(what, *last) if last else ''}{minutes} min {seconds} s ...")

    teller = threading.Thread(target=tell, name="progress", daemon=True)
    teller.start()
    try:
        yield report
    finally:
        stop.set()
        teller.join()


def _far(what: str, label: str, done: int, total: int | None) -> str:
    """How far it is, to be followed by the time."""
    share = f" of {total:,} ({done / total:.0%})" if total else ""
    return f"{f'{label}, ' if label not in ('', what) else ''}{done:,}{share}, "


@contextmanager
def waiting(what: str) -> Iterator[Callable[[str], None]]:
    """A spinner on stderr while something of unknown length runs; one line a change when stderr is no terminal.

    Yields:
        a function that replaces the text.
    """
    console = err()
    if not console.is_terminal:
        last = what
        note(f"{what} ...")

        def change(text: str) -> None:
            nonlocal last
            if text != last:
                last = text
                note(f"{text} ...")

        yield change
        return
    with console.status(what) as status:
        yield status.update


def size(count: int) -> str:
    """Bytes for people: 1536 -> '1.5 kB'."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def shown(path: Path) -> str:
    """A path as the user would type it: relative to the working directory when it lies below it."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


@cache
def version() -> str:
    """The installed version of this project."""
    from importlib.metadata import version as installed

    return installed("dmcp")
