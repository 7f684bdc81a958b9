"""A run over very many shards, split into child runs of a deployment that each fill the slots of a range of them.

    over_runs("protect-shards/protect-shards", work, jobs, report, finished)     # in the parent
    with range_of(work, first, end, jobs) as mine: over_shards(...)              # in the child's flow

Prefect lists the tasks of one flow run, and one process maps them; a million images in shards of a thousand are no
matter, a billion are. The parent starts a child for each range that has something to do, DMCP_RUNS_AT_ONCE at a time,
and takes the reports from the slots when it is done; it places the shards itself. A child gets the work folder's path,
numbers and a digest: what there is to do lies in that folder, so it must be on a file system that all workers have.

Killed parents leave children that go on; the next parent finds them by their tag and waits for them. A child holds a
lock on its range: where Prefect says RUNNING and nobody holds it, the child was killed, and another is started.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from flows.console import note
from flows.deployments import call, is_served, live_api
from flows.dispatch import Run, failure, run_of
from flows.runners import check_home
from flows.work import Work
from storage.errors import CorruptManifest, DmcpError, ServiceError, WorkspaceBusy
from storage.files import write_atomic
from storage.settings import settings

POLL_SECONDS = 2.0
START_SECONDS = 600.0
"""How long a child may take from its start until it holds its lock."""
SILENT_SECONDS = 300.0
"""How long Prefect may not answer."""

_JOBS = "jobs.json"
_ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")

Report = Callable[[Sequence[Any]], dict[str, Any] | None]


@dataclass(frozen=True)
class Range:
    """Jobs number first to end-1 of a work folder."""

    work: Path
    first: int
    end: int

    @property
    def tag(self) -> str:
        """Marks the runs that are made for it, by whichever parent."""
        return f"{self.work.name}:{self.first}-{self.end}"

    def lock(self, patience: float) -> FileLock:
        """Held by the child that is at it."""
        return FileLock(self.work / f"{self.first}-{self.end}.lock", timeout=patience)

    def is_held(self) -> bool:
        """Whether a child is at it."""
        try:
            with self.lock(0):
                return False
        except Timeout:
            return True


# --- the parent ------------------------------------------------------------------------------------------------------


def over_runs(
    deployment: str,
    work: Work,
    jobs: Sequence[Sequence[Any]],
    report: Report,
    finished: Callable[[dict[str, Any], bool], None],
) -> None:
    """Have all jobs done by child runs of `settings().shards_per_run` each; the first failure ends the others.

    Args:
        deployment: FLOW/DEPLOYMENT; the flow's parameters are those of `range_of`.
        work: the folder that all of them work in; the caller holds its lock.
        jobs: one list a shard, of what JSON can hold.
        report: the report of a job's result where that is whole, else None.
        finished: told each report, in no particular order, and whether it was there before.

    Raises:
        ServiceError: no worker serves the deployment, Prefect does not answer, or a child ended without a word.
        DmcpError: a child failed; the class is that of its error.
    """
    api = live_api(settings())
    if api is None or not is_served(settings(), api):
        raise ServiceError(
            "DMCP_SHARDS_PER_RUN splits the run, and no worker takes the child runs.", "Run `dmcp up`, or unset it."
        )
    content = json.dumps(jobs).encode()
    write_atomic(work.folder / _JOBS, content)
    digest = hashlib.sha256(content).hexdigest()
    size = settings().shards_per_run
    ranges = [Range(work.folder, first, min(first + size, len(jobs))) for first in range(0, len(jobs), size)]

    def collect(one: Range, reused: bool = False) -> bool:
        """Pass the reports of a range on, if all are there; whether they are."""
        rows = [row for job in jobs[one.first : one.end] if (row := report(job)) is not None]
        if len(rows) < one.end - one.first:
            return False
        for row in rows:
            finished(row, reused)
        return True

    waiting = [one for one in ranges if not collect(one, reused=True)]
    note(f"{len(waiting)} of {len(ranges)} ranges of {size} shards go to child runs.")
    _Children(api, deployment, digest, collect).see_through(waiting)


@dataclass
class _Children:
    """The child runs of one parent. `done` passes a range's reports on, and says whether all were there."""

    api: str
    deployment: str
    digest: str
    done: Callable[[Range], bool]
    running: dict[Range, str] = field(default_factory=dict)
    heard: float = 0.0
    served: float = 0.0

    def see_through(self, waiting: list[Range]) -> None:
        """Start, watch and collect, until all ranges are done; an error ends the runs that are left."""
        self.heard = self.served = time.monotonic()
        try:
            while waiting or self.running:
                while waiting and len(self.running) < settings().runs_at_once:
                    one = waiting.pop(0)
                    self.running[one] = self._run_for(one)
                time.sleep(POLL_SECONDS)
                for one, run_id in list(self.running.items()):
                    self._watch(one, run_id)
        except BaseException:
            for run_id in self.running.values():
                self._cancel(run_id)
            raise

    def _watch(self, one: Range, run_id: str) -> None:
        run = self._look(run_id)
        if run is None:
            if time.monotonic() - self.heard > SILENT_SECONDS:
                raise ServiceError(f"The Prefect server at {self.api} does not answer.", "See `dmcp status`.")
            return
        self.heard = time.monotonic()
        if run.over and run.state != "COMPLETED":
            raise _failed(one, run)
        if run.state != "SCHEDULED" or is_served(settings(), self.api):
            self.served = self.heard
        elif self.heard - self.served > SILENT_SECONDS:
            raise ServiceError(
                "No worker takes the child runs any more.", "Run `dmcp up`, then this again: what is done is kept."
            )
        if not run.dead(START_SECONDS) or one.is_held():
            return
        if self.done(one):
            del self.running[one]
        elif run.over:
            raise ServiceError(
                f"The child run for shards {one.first} to {one.end - 1} is done, and not all are in {one.work}.",
                "Do all workers have the same file system below DMCP_HOME?",
            )
        else:
            note(f"The child run for shards {one.first} to {one.end - 1} was killed; another is started.")
            self._cancel(run_id)
            self.running[one] = self._start(one)

    def _run_for(self, one: Range) -> str:
        """A run of an earlier parent that still goes on, else a new one."""
        under_way = {"tags": {"all_": [one.tag]}, "state": {"type": {"not_any_": [*_ENDED, "CANCELLING"]}}}
        answer = call("POST", f"{self.api}/flow_runs/filter", {"flow_runs": under_way})
        for found in answer or []:
            same = found["parameters"].get("jobs") == self.digest
            if same and (one.is_held() or not run_of(found).dead(START_SECONDS)):
                return str(found["id"])
        return self._start(one)

    def _start(self, one: Range) -> str:
        from prefect.deployments import run_deployment
        from prefect.exceptions import ObjectNotFound

        parameters = {"work": str(one.work), "first": one.first, "end": one.end, "jobs": self.digest}
        try:
            run: Any = run_deployment(self.deployment, parameters=parameters, timeout=0, tags=[one.tag])
        except ObjectNotFound:
            raise ServiceError(
                f"The Prefect server has no deployment {self.deployment}.",
                "Run `dmcp up`, or python -m flows.deployments.",
            ) from None
        return str(run.id)

    def _look(self, run_id: str) -> Run | None:
        answer = call("GET", f"{self.api}/flow_runs/{run_id}")
        return run_of(answer) if isinstance(answer, dict) else None

    def _cancel(self, run_id: str) -> None:
        run = self._look(run_id)
        if run is None or run.over:
            return
        # The worker ends what it has begun; of what it has not it knows nothing.
        state = "CANCELLED" if run.state == "SCHEDULED" else "CANCELLING"
        call("POST", f"{self.api}/flow_runs/{run_id}/set_state", {"state": {"type": state}})


def _failed(one: Range, run: Run) -> DmcpError:
    """Why a child run ended; what its flow raised, with class and text, is in Prefect's message."""
    said = run.message.removeprefix("Flow run encountered an exception: ")
    error = failure(said)
    if run.state == "FAILED" and type(error) is not DmcpError:
        return error
    how = f"ended ({run.state.lower()}): {said or 'without a word'}"
    return ServiceError(
        f"The child run for shards {one.first} to {one.end - 1} {how}",
        "See the worker's log. Run it again: finished shards are kept.",
    )


# --- the child -------------------------------------------------------------------------------------------------------


@contextmanager
def range_of(work: str, first: int, end: int, jobs: str) -> Iterator[list[list[Any]]]:
    """The jobs of a child run, whose range is locked for the length of the block.

    Args:
        work: the work folder's path.
        first: the first job's number.
        end: the number after the last one's.
        jobs: SHA-256 of the list of jobs in that folder.

    Raises:
        CorruptManifest: the folder has no such list: the parent is gone, and another one has made a new list.
        WorkspaceBusy: another child is at the range.
        SettingsError: this process has another HOME than the parent.
    """
    check_home(work)
    path = Path(work, _JOBS)
    content = path.read_bytes() if path.exists() else b""
    if hashlib.sha256(content).hexdigest() != jobs:
        raise CorruptManifest(
            f"{path} is not the list of shards that this run was made for.", "Start the parent again."
        )
    lock = Range(Path(work), first, end).lock(START_SECONDS)
    try:
        lock.acquire()
    except Timeout:
        raise WorkspaceBusy(f"Another run is at shards {first} to {end - 1}.", "Wait until it is done.") from None
    try:
        yield json.loads(content)[first:end]
    finally:
        lock.release()
