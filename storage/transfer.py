"""Several files at once, with one count of bytes."""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

from storage.files import Progress

T = TypeVar("T")
R = TypeVar("R")


class Meter:
    """Adds up bytes from several threads and passes the sum on, one call at a time."""

    def __init__(self, what: str, total: int, progress: Progress | None) -> None:
        self.what = what
        self.total = total
        self.done = 0
        self._progress = progress
        self._lock = threading.Lock()

    def add(self, size: int) -> None:
        """So many bytes more are done."""
        with self._lock:
            self.done += size
            if self._progress is not None:
                self._progress(self.what, self.done, self.total)


def in_parallel(function: Callable[[T], R], items: Iterable[T], workers: int) -> list[R]:
    """The function's results for all items, in order, from `workers` threads.

    The first error is raised after the items in progress have ended; those not begun are dropped.
    """
    with ThreadPoolExecutor(max(1, workers)) as pool:
        futures = [pool.submit(function, item) for item in items]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return [future.result() for future in futures]
