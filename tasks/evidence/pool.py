"""Cells side by side, each in a process of its own: one network a core on a CPU, a few on a GPU.

A network of this size leaves most of a core idle when several share one training, and most of a GPU when one trains
alone, because starting each small step takes longer than computing it. The processes end with whoever started them,
however that ends: nothing of a run is left behind.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType

from storage.errors import EnvironmentFault
from tasks.evidence.cells import CellJob, answer
from tasks.evidence.records import CellResult
from tasks.learning.device import resolve_device, usable_cores

ON_GPU = 3
WATCH_SECONDS = 1.0


def networks_at_once(device: str, workers: int) -> int:
    """How many networks train at once: `workers` or as many as there are cores; on a GPU at most `ON_GPU`."""
    cores = min(workers, usable_cores())
    return max(1, min(cores, ON_GPU) if resolve_device(device).type == "cuda" else cores)


class CellPool:
    """Answers cells in the order they are given. A context manager: leaving it ends its processes at once."""

    def __init__(self, jobs: Sequence[CellJob], at_once: int) -> None:
        self.at_once = max(1, min(at_once, len(jobs)))
        self.threads = 1 if self.at_once > 1 else None
        self._jobs = list(jobs)
        self._running: dict[Future[CellResult], CellJob] = {}
        self._before = set(multiprocessing.active_children())
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "CellPool":
        if self._jobs:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.at_once, context, _prepare, (os.getpid(),))
            self._running = {self._pool.submit(answer, job, self.threads): job for job in self._jobs}
        return self

    def answered(self) -> Iterator[tuple[CellJob, CellResult | Exception]]:
        """Each cell as it is done; an error of one cell (a loss that is not finite) does not end the others.

        Raises:
            EnvironmentFault: a process was killed from outside, most often for want of memory.
        """
        while self._running:
            done, _ = wait(self._running, return_when=FIRST_COMPLETED)
            for future in done:
                job = self._running.pop(future)
                try:
                    yield job, future.result()
                except BrokenProcessPool as error:
                    raise EnvironmentFault(
                        "A process that trained a network was killed.",
                        "If memory ran out, set DMCP_WORKERS lower. Run it again: it resumes.",
                    ) from error
                except Exception as error:  # told to the caller, with its cell
                    yield job, error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is None:
            return
        whole = kind is None and not self._running
        self._pool.shutdown(wait=whole, cancel_futures=True)
        if not whole:
            for process in set(multiprocessing.active_children()) - self._before:
                process.terminate()


def _prepare(parent: int) -> None:
    """Of each process: Ctrl-C is the parent's to handle, and no process outlives it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os._exit(EnvironmentFault.exit_code)
