"""The registry's book of requests that wait, got stuck, are tried again, or are over and taken off the shelves.

The queue is fair: each user's oldest requests come in turn, and a user has no more than so many in it, those that are
running counted in. One that something was in the way of (`postpone_request`) waits until it is due, and takes no place
meanwhile. A running request is given up by its worker when there is no sign of life, and stalled when there
are signs of life but it does not get on.

What is over is removed in two steps, so that a kill in between leaves nothing behind and nothing half: `begin_removal`
says so to everybody (the entry in the audit log is written with it), then the files go, then `end_removal`. A request
that is pending or running is never touched, and one that was removed is never taken up again.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, or_, select, update

from storage.database import utc_now
from storage.errors import Removed, RequestCancelled, UsageError
from storage.registry_models import Request, User
from storage.registry_requests import RequestBook, change_request, lost_request, request_entry
from storage.registry_users import LOCAL

ENDED = ("done", "failed", "cancelled")
SENT = ("upload", "published")
"""Kinds of requests whose input may lie in the private bucket; a `variant` is read where it lies."""


class QueueBook(RequestBook):
    """Requests as a queue, and what becomes of them afterwards."""

    def pending_requests(self, per_user: int, most: int) -> Sequence[Request]:
        """Pending requests in the order in which they are to be served: each user's first, each user's second, ...

        Args:
            per_user: so many of one user at once; those that are running take the first places.
            most: so many in all.
        """
        due = or_(Request.due.is_(None), Request.due <= utc_now())
        order = (Request.state != "running", Request.created, Request.id)
        place = func.row_number().over(partition_by=Request.user_id, order_by=order).label("place")
        ranked = select(Request.id, place).where(Request.state.in_(("pending", "running")), due).subquery()
        query = select(Request).join(ranked, ranked.c.id == Request.id)
        query = query.where(Request.state == "pending", ranked.c.place <= per_user)
        return self.all(query.order_by(ranked.c.place, Request.created, Request.id).limit(most))

    def stale_requests(self, seconds: float, stalled_seconds: float | None = None) -> Sequence[Request]:
        """Running requests whose worker can not be counted on any more, oldest first.

        Args:
            seconds: without a sign of life for so long: it is dead.
            stalled_seconds: alive, but not got on for so long; None: that is not looked at.
        """
        now = utc_now()
        last = func.coalesce(Request.heartbeat, Request.started)
        given_up = [last.is_(None), last < now - timedelta(seconds=seconds)]
        if stalled_seconds is not None:
            moved = func.coalesce(Request.progressed, Request.started)
            given_up.append(moved < now - timedelta(seconds=stalled_seconds))
        query = select(Request).where(Request.state == "running", or_(*given_up))
        return self.all(query.order_by(Request.created, Request.id))

    def postpone_request(
        self, request_id: str, seconds: float, *, message: str, attempt: int, actor: str = LOCAL
    ) -> None:
        """Put a running request back: pending, for another worker in so many seconds, with what this one got done.

        Args:
            request_id: the request.
            seconds: from now.
            message: what was in the way.
            attempt: the number of the worker's claim.
            actor: who does this, for the audit log.

        Raises:
            NotFound: no such request.
            RequestCancelled: it was cancelled meanwhile.
            WorkspaceBusy: another worker took it meanwhile.
            UsageError: it is not running.
        """
        values = {"state": "pending", "due": utc_now() + timedelta(seconds=seconds), "message": message}
        with self.write() as session:
            changed = change_request(session, request_id, ["running"], values, attempt)
            if changed:
                request = session.get_one(Request, request_id)
                details = {"message": message, "attempt": attempt}
                request_entry(session, actor, "request.postpone", request, request.user.name, details)
        if not changed:
            raise lost_request(self.get_request(request_id), "pending", attempt)

    def retry_request(self, request_id: str, *, actor: str = LOCAL) -> None:
        """Have a request that failed tried again, with what it got done; one that is under way stays as it is.

        One that waits because something was in the way is due now.

        Raises:
            NotFound: no such request.
            Removed: its input is not kept any more.
            RequestCancelled: it was cancelled.
            UsageError: it is done.
        """
        values = {
            "state": "pending",
            "finished": None,
            "message": None,
            "result": None,
            "attempt": Request.attempt + 1,  # the flow runs of the last attempt are used up
            "takeovers": 0,
            "due": None,
        }
        failed = Request.id == request_id, Request.state == "failed", Request.removed.is_(None)
        with self.write() as session:
            changed: Any = session.execute(
                update(Request).where(*failed).values(values), execution_options={"synchronize_session": False}
            )
            if changed.rowcount:
                request = session.get_one(Request, request_id)
                request_entry(session, actor, "request.retry", request, request.user.name)
                return
            change_request(session, request_id, ["pending"], {"due": None})
        request = self.get_request(request_id)
        check_kept(request)
        if request.state == "cancelled":
            raise RequestCancelled(f"Request {request_id} was cancelled.", "Make a new one if it is still wanted.")
        if request.state == "done":
            raise UsageError(f"Request {request_id} is done already.", "Fetch what was restored.")

    # --- what is over ------------------------------------------------------------------------------------------------

    def cancelled_requests(self) -> Sequence[Request]:
        """Cancelled requests whose input is still there: as long may lie there what was restored before."""
        here = Request.input_removed.is_(None), Request.removed.is_(None)
        return self.all(select(Request).where(Request.state == "cancelled", *here).order_by(Request.finished))

    def inputs_over(self, before: datetime, most: int = 1000) -> Sequence[Request]:
        """Requests that are done or cancelled since before this moment, whose input is still there."""
        over = Request.state.in_(("done", "cancelled")), Request.finished < before, Request.kind.in_(SENT)
        here = Request.input_removed.is_(None), Request.removed.is_(None)
        return self.all(select(Request).where(*over, *here).order_by(Request.finished).limit(most))

    def mark_input_removed(self, request_id: str, *, actor: str = LOCAL) -> None:
        """Put on record that the input of a request that is over was removed."""
        over = Request.id == request_id, Request.state.in_(("done", "cancelled")), Request.input_removed.is_(None)
        self._mark(over, {"input_removed": utc_now()}, request_id, actor, "input")

    def results_over(self, before: datetime, most: int = 1000, *, in_place: str = "") -> Sequence[Request]:
        """Requests that ended before this moment and were not removed.

        Args:
            before: the moment.
            most: so many at most.
            in_place: the user whose variants are restored beside where they lie: nothing of those is in the bucket.
        """
        over = Request.state.in_(ENDED), Request.finished < before, Request.removed.is_(None)
        stored = or_(Request.kind.in_(SENT), User.name != in_place)
        query = select(Request).join(Request.user).where(*over, stored)
        return self.all(query.order_by(Request.finished).limit(most))

    def begin_removal(self, request_id: str, before: datetime, *, actor: str = LOCAL) -> bool:
        """Say that nothing of a request may be had any more, if it ended before this moment; whether it did."""
        over = (
            Request.id == request_id,
            Request.state.in_(ENDED),
            Request.finished < before,
            Request.removed.is_(None),
        )
        return self._mark(over, {"removed": utc_now()}, request_id, actor, "all")

    def half_removed(self) -> Sequence[Request]:
        """Requests of which something may lie there still, though they were removed."""
        return self.all(select(Request).where(Request.removed.is_not(None), Request.cleared.is_(None)))

    def end_removal(self, request_id: str) -> None:
        """Say that nothing of a request that was removed is left."""
        with self.write() as session:
            session.execute(
                update(Request).where(Request.id == request_id, Request.removed.is_not(None)).values(cleared=utc_now())
            )

    def _mark(self, where: tuple[Any, ...], values: dict[str, Any], request_id: str, actor: str, what: str) -> bool:
        with self.write() as session:
            changed: Any = session.execute(
                update(Request).where(*where).values(values), execution_options={"synchronize_session": False}
            )
            if changed.rowcount:
                request = session.get_one(Request, request_id)
                request_entry(session, actor, "request.remove", request, request.user.name, {"what": what})
            return bool(changed.rowcount)


def check_kept(request: Request) -> None:
    """Raise Removed when nothing of a request is kept any more."""
    if request.removed is not None:
        raise Removed(
            f"What was restored was removed on {request.removed:%Y-%m-%d}, when its time was over.",
            "Hand the images in again; a grant that is in force restores them anew.",
        )
