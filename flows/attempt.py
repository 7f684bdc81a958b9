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

What is in the way of a worker (the object store, the disk, a service) passes or is mended, so the request does not fail
for it: it is pending again, due after a pause that grows, as long as there are attempts left.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from flows.access import BUILT_IN
from flows.console import note
from storage.errors import (
    DmcpError,
    EnvironmentFault,
    NotFound,
    RequestCancelled,
    UsageError,
    WorkspaceBusy,
    public_text,
)
from storage.registry import Registry, Request

HEARTBEAT_SECONDS = 5.0
PROGRESS_SECONDS = 0.3
ATTEMPTS = 5
"""A request that so many workers took in vain is not given to another: something about it kills them."""
AGAIN_SECONDS = 15.0
"""Before the second attempt, where something was in the way of the first; four times as long before each later one."""
ACTOR = "restore"
"""In whose name the audit log says that a request was claimed and ended, and that a shard was released."""

STOPPED = (RequestCancelled, WorkspaceBusy, UsageError, NotFound)
"""What a sign of life says when the request is not this worker's any more."""


class Attempt:
    """A request that this worker claimed; `report` is where it left word of what became of the images, if it did.

    `again` is after how many seconds another may try what something is in the way of; None: nobody will.
    """

    def __init__(self, book: Registry, request_id: str, number: int, again: float | None = None) -> None:
        self.book = book
        self.request_id = request_id
        self.number = number
        self.again = again
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
        """The request failed, or waits for its next attempt where something was in the way.

        Nothing changes when it is not this worker's any more, or the registry is out of reach. In the last case nobody
        gives signs of life any more, and another attempt is made in time.
        """
        # The class comes first: `flows/dispatch.py` makes the same error of it again, with the same exit code.
        told = public_text(error)
        again = self.again if isinstance(error, EnvironmentFault) else None
        if told != str(error):
            became = "failed" if again is None else f"is tried again in {again:.0f} s"
            note(f"Request {self.request_id} {became}: {type(error).__name__}: {error}")
        message = f"{type(error).__name__}: {told}"
        with suppress(DmcpError):
            if again is not None:
                self.book.postpone_request(self.request_id, again, message=message, attempt=self.number, actor=ACTOR)
                return
            self.book.set_request_state(
                self.request_id, "failed", message=message, result=self.report, attempt=self.number, actor=ACTOR
            )


@contextmanager
def attempt_at(book: Registry, request_id: str, force: bool = False) -> Iterator[tuple[Request, Attempt]]:
    """Claim a request for the length of the block; an error that leaves the block is recorded (`Attempt.failed`).

    What ends the whole process from outside (SIGTERM) does not fail the request: it goes on with the next worker.

    Args:
        book: the registry.
        request_id: the request.
        force: take it though it is running or failed.

    Raises:
        NotFound, WorkspaceBusy, RequestCancelled, UsageError: it can not be claimed.
    """
    request = book.claim_request(request_id, force, actor=ACTOR)
    attempt = Attempt(book, request_id, request.attempt, _again(request))
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


def _again(request: Request) -> float | None:
    """After how many seconds another attempt may be made; None: none are left, or nobody would make one."""
    if request.takeovers >= ATTEMPTS or request.user.name in BUILT_IN:
        return None
    return float(AGAIN_SECONDS * 4 ** (request.takeovers - 1))


def _beat(attempt: Attempt, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECONDS):
        try:
            attempt.check()
        except STOPPED:
            return  # the shards find out for themselves
        except DmcpError:
            continue  # the database is out of reach just now
