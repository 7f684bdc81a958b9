"""One worker's attempt at a restore request: claimed, kept alive, fenced, ended.

    with attempt_at(book, request_id, force) as attempt:       # claims; records a failure
        attempt.check()                                        # still mine, and wanted? else stop here
        attempt.progress(restored=200, refused=3)
        attempt.done(restored=1000, refused=4, result=key)

While the block lasts a thread gives signs of life. A worker that was killed gives none, so another takes the request
over (`flows/dispatcher.py`) as the next attempt. Should the first live after all, it finds out at its next `check` and
stops: each attempt changes the request only as long as it is the latest. Cancelling a request shows at the same place.
Signs of life come from a thread of their own, so they say nothing of whether the shards get on: `progress` says that,
and a request that does not get on for DMCP_STALLED_MINUTES is taken over in the same way.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from flows.console import note
from storage.errors import DmcpError, NotFound, RequestCancelled, UsageError, WorkspaceBusy, public_text
from storage.registry import Registry, Request

HEARTBEAT_SECONDS = 5.0
PROGRESS_SECONDS = 0.3
ACTOR = "restore"
"""In whose name the audit log says that a request was claimed and ended, and that a shard was released."""

STOPPED = (RequestCancelled, WorkspaceBusy, UsageError, NotFound)
"""What a sign of life says when the request is not this worker's any more."""


class Attempt:
    """A request that this worker claimed; `report` is where it left word of what became of the images, if it did."""

    def __init__(self, book: Registry, request_id: str, number: int) -> None:
        self.book = book
        self.request_id = request_id
        self.number = number
        self.report: str | None = None
        self._told = float("-inf")

    def check(self) -> None:
        """Go on only if this is the latest attempt at a request that is still wanted.

        Raises:
            RequestCancelled: it was cancelled.
            WorkspaceBusy: another worker took it.
            UsageError: it ended.
        """
        self.book.heartbeat(self.request_id, self.number)

    def progress(self, restored: int, refused: int) -> None:
        """Say how far it is; of calls in quick succession some are left out. Raises as `check`."""
        if time.monotonic() - self._told < PROGRESS_SECONDS:
            return
        self._told = time.monotonic()
        self.book.set_request_state(
            self.request_id, "running", restored=restored, refused=refused, attempt=self.number, actor=ACTOR
        )

    def done(self, restored: int, refused: int, result: str) -> None:
        """The request is done. Raises as `check`."""
        self.book.set_request_state(
            self.request_id,
            "done",
            restored=restored,
            refused=refused,
            result=result,
            attempt=self.number,
            actor=ACTOR,
        )

    def failed(self, error: BaseException) -> None:
        """The request failed, unless it is not this worker's any more, or the registry is out of reach.

        In the last case nobody gives signs of life any more, and another attempt is made in time.
        """
        # The class comes first: `flows/dispatch.py` makes the same error of it again, with the same exit code.
        told = public_text(error)
        if told != str(error):
            note(f"Request {self.request_id} failed: {type(error).__name__}: {error}")
        message = f"{type(error).__name__}: {told}"
        with suppress(DmcpError):
            self.book.set_request_state(
                self.request_id, "failed", message=message, result=self.report, attempt=self.number, actor=ACTOR
            )


@contextmanager
def attempt_at(book: Registry, request_id: str, force: bool = False) -> Iterator[tuple[Request, Attempt]]:
    """Claim a request for the length of the block; an error that leaves the block is recorded as its failure.

    What ends the whole process from outside (SIGTERM) does not fail the request: it goes on with the next worker.

    Args:
        book: the registry.
        request_id: the request.
        force: take it though it is running or failed.

    Raises:
        NotFound, WorkspaceBusy, RequestCancelled, UsageError: it can not be claimed.
    """
    request = book.claim_request(request_id, force, actor=ACTOR)
    attempt = Attempt(book, request_id, request.attempt)
    stop = threading.Event()
    beats = threading.Thread(target=_beat, args=(attempt, stop), name=f"alive-{request_id[:8]}", daemon=True)
    beats.start()
    try:
        yield request, attempt
    except (Exception, KeyboardInterrupt) as error:
        attempt.failed(error)
        raise
    finally:
        stop.set()
        beats.join()


def _beat(attempt: Attempt, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECONDS):
        try:
            attempt.check()
        except STOPPED:
            return  # the shards find out for themselves
        except DmcpError:
            continue  # the database is out of reach just now
