"""Answering the cells of an evaluation: what is on record is taken, the rest trained side by side."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from flows.console import note, progress
from flows.engine import task
from flows.meter import duration
from storage.settings import settings
from tasks.evidence.cells import CellJob
from tasks.evidence.pool import CellPool, networks_at_once
from tasks.evidence.presets import cost
from tasks.evidence.records import Cell, CellResult
from tasks.evidence.store import Answers

SIDE_BY_SIDE = 1.5
"""How much more several networks at once get done than one that has the machine for itself."""

TRUSTED = 0.05  # share of the work after which what was measured says more than the first estimate

Bars = Callable[[str, int, int | None], None]


class CellRun:
    """All cells of an evaluation, by group. A cell that two rows share is answered once.

    Args:
        speed: images a second of one ResNet-18 that has the machine for itself, for the estimate.
    """

    def __init__(self, groups: Mapping[str, Sequence[CellJob]], answers: Answers, speed: float) -> None:
        self.groups, self.answers = groups, answers
        self.found: dict[str, CellResult] = {}
        jobs = {job.digest: job for group in groups.values() for job in reversed(group)}
        first = {job.digest: None for group in groups.values() for job in group}
        for digest in first:
            result = answers.find(jobs[digest])
            if result is not None:
                self.found[digest] = result
        self.todo = [jobs[digest] for digest in first if digest not in self.found]
        self._failed: dict[str, Exception] = {}
        self._speed = speed
        self._units = {job.digest: _units(job) for job in self.todo}
        self._started = time.monotonic()

    def run(self, device: str) -> list[CellResult]:
        """Answer what is not known yet; all results in the order of the rows.

        Raises:
            DmcpError: what the first cell that failed failed with, when all others are done.
            ServiceError: MLflow does not answer; answers are kept on disk.
        """
        at_once = networks_at_once(device, settings().workers)
        self._tell(at_once)
        self._started = time.monotonic()
        with CellPool(self.todo, at_once) as pool, progress("Training") as bars:
            stream = self._answered(pool, bars)
            for group, jobs in self.groups.items():
                if any(job.digest in self._units for job in jobs):
                    _group_task(group, jobs, stream, self._is_done)
        for error in self._failed.values():
            raise error
        every = (job for jobs in self.groups.values() for job in jobs)
        return [self.found[job.digest].model_copy(update={"cell": job.cell}) for job in every]

    def _answered(self, pool: CellPool, bars: Bars) -> Iterator[None]:
        for job, outcome in pool.answered():
            if isinstance(outcome, CellResult):
                self.found[job.digest] = self.answers.record(job, outcome)
            else:
                self._failed[job.digest] = outcome
            self._show(job.cell, outcome, bars)
            yield

    def _is_done(self, digest: str) -> bool:
        return digest in self.found or digest in self._failed

    def _tell(self, at_once: int) -> None:
        cells = sum(len(jobs) for jobs in self.groups.values())
        different = len(self.found) + len(self.todo)
        text = f"{cells} cells, {different} different ones, {len(self.found)} on record"
        if self.todo:
            left = duration(sum(self._units.values()) / self._first_rate(at_once))
            text += f"; {len(self.todo)} to train, {at_once} at once: about {left}"
        note(text)

    def _first_rate(self, at_once: int) -> float:
        return max(self._speed * (SIDE_BY_SIDE if at_once > 1 else 1), 1e-9)

    def _show(self, cell: Cell, outcome: CellResult | Exception, bars: Bars) -> None:
        done = [digest for digest in self._units if self._is_done(digest)]
        worked, total = sum(self._units[digest] for digest in done), sum(self._units.values())
        bars("", int(worked), int(total))
        if sys.stderr.isatty():
            return  # the bar says it
        said = f"{outcome.peak_test_accuracy:.1%}" if isinstance(outcome, CellResult) else f"failed: {outcome}"
        text = f"{len(done)}/{len(self.todo)} cells: {describe(cell)}: {said}"
        if TRUSTED * total < worked < total:
            text += f"; {duration((total - worked) * (time.monotonic() - self._started) / worked)} left"
        note(text)


@task("answer cells", "{group}")
def _group_task(group: str, jobs: Sequence[CellJob], stream: Iterator[None], is_done: Callable[[str], bool]) -> None:
    """Wait until all cells of a group are answered; those of later groups may be, meanwhile."""
    while not all(is_done(job.digest) for job in jobs):
        next(stream)


def describe(cell: Cell) -> str:
    """A cell in a line: what it is trained on, and what is not plain."""
    special = [name for name in (cell.countermeasure, cell.attack) if name != "none"]
    share = "" if cell.share == 1 else f"{cell.share:.0%} of it"
    parts = [f"clean without {share}" if cell.rest_only else cell.protection, "" if cell.rest_only else share]
    return ", ".join(part for part in (*parts, *special, cell.architecture, f"seed {cell.seed}") if part)


def _units(job: CellJob) -> float:
    networks = job.networks
    return cost(job.cell, job.shown.count, networks.recipe.epochs, networks.stem)
