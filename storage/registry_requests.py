"""The registry's book of restore requests."""

from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from sqlalchemy import Update, select, update
from sqlalchemy.exc import IntegrityError

from storage.database import Database, utc_now
from storage.errors import NotFound, UsageError, WorkspaceBusy
from storage.names import check_dataset_name, check_request_id
from storage.registry_models import KINDS, Kind, Request, State, User

_BEFORE: dict[str, list[str]] = {"running": ["running"], "done": ["running"], "failed": ["pending", "running"]}


def new_request_id() -> str:
    """A fresh request id: 32 hexadecimal digits, random, so that nobody can guess another's."""
    return uuid4().hex


class RequestBook(Database):
    """Requests: pending -> running -> done or failed."""

    def create_request(
        self,
        user_id: int,
        kind: Kind,
        dataset: str | None,
        source: str,
        subset: Sequence[str] | None = None,
        *,
        images: int = 0,
        request_id: str | None = None,
    ) -> str:
        """Record a restore request, pending, and return its id (32 hex digits).

        Args:
            user_id: whose request it is.
            kind: `upload` (files in the private bucket), `published` (a version) or `variant` (a local folder).
            dataset: the data set where it is known beforehand; images say themselves which key they need.
            source: what the requester named, for people; for `variant` and `published`, what is to be read.
            subset: sample keys or shard names of the source; None: all.
            images: how many images it has, where that is known.
            request_id: an id made before (`new_request_id`), so that files could be uploaded under it.

        Raises:
            UsageError: an unknown kind, an id that is taken, or a user who does not exist.
        """
        if kind not in KINDS:
            raise UsageError(f"{kind!r} is no kind of request.", f"One of: {', '.join(KINDS)}.")
        request = Request(
            id=new_request_id() if request_id is None else check_request_id(request_id),
            user_id=user_id,
            kind=kind,
            dataset=None if dataset is None else check_dataset_name(dataset),
            source=source,
            subset=None if subset is None else list(subset),
            state="pending",
            created=utc_now(),
            images=images,
        )
        identity = request.id
        try:
            with self.write() as session:
                session.add(request)
        except IntegrityError:
            raise UsageError(f"Request {identity} exists, or no user has the id {user_id}.") from None
        return identity

    def get_request(self, request_id: str) -> Request:
        """The request of this id. Raises NotFound."""
        with self.read() as session:
            request = session.get(Request, request_id)
        if request is None:
            raise _no_request(request_id)
        return request

    def claim_request(self, request_id: str, force: bool = False) -> Request:
        """Take a pending request for this worker: it is running from now on. Of several claimants one succeeds.

        Args:
            request_id: the request.
            force: take a running or failed one too, to resume what a worker that was killed left behind.

        Raises:
            NotFound: no such request.
            WorkspaceBusy: it is running (and not `force`).
            UsageError: it is done, or failed (and not `force`).
        """
        claimable = ["pending", "running", "failed"] if force else ["pending"]
        taken = update(Request).where(Request.id == request_id, Request.state.in_(claimable))
        claimed = self._changed(taken.values(state="running", started=utc_now(), finished=None, message=None))
        request = self.get_request(request_id)
        if claimed:
            return request
        if request.state == "running":
            raise WorkspaceBusy(
                f"Request {request_id} is being served since {request.started:%Y-%m-%d %H:%M} UTC.",
                "Wait for it; if its worker was killed, resume it with --force.",
            )
        cure = "Fetch what was restored with `dmcp restore`." if request.state == "done" else "Try again with --force."
        raise UsageError(f"Request {request_id} is {request.state} already.", cure)

    def set_request_state(
        self,
        request_id: str,
        state: State,
        *,
        images: int | None = None,
        restored: int | None = None,
        refused: int | None = None,
        message: str | None = None,
        result: str | None = None,
    ) -> None:
        """Record how far a request is; what is None stays as it is.

        A running request may stay running (with new counts), become done or failed; a pending one may fail.

        Raises:
            NotFound: no such request.
            UsageError: the request is in a state that this one does not follow.
        """
        before = _BEFORE.get(state)
        if before is None:
            raise UsageError(f"A request can not be set to {state!r}.", "One of: running, done, failed.")
        counts = {"images": images, "restored": restored, "refused": refused, "message": message, "result": result}
        values: dict[str, Any] = {name: value for name, value in counts.items() if value is not None}
        if state != "running":
            values["finished"] = utc_now()
        change = update(Request).where(Request.id == request_id, Request.state.in_(before))
        if not self._changed(change.values(state=state, **values)):
            now = self.get_request(request_id).state
            raise UsageError(f"Request {request_id} is {now}: it can not become {state}.", "Claim it first.")

    def list_requests(
        self, user: str | None = None, state: State | None = None, limit: int = 1000
    ) -> Sequence[Request]:
        """Requests, newest first; of one user or in one state when named."""
        query = select(Request).join(Request.user).order_by(Request.created.desc(), Request.id).limit(limit)
        if user is not None:
            query = query.where(User.name == user)
        if state is not None:
            query = query.where(Request.state == state)
        return self.all(query)

    def _changed(self, change: Update) -> bool:
        """Whether the one row that `change` is about was in the state it asks for."""
        with self.write() as session:
            result: Any = session.execute(change)
            return bool(result.rowcount)


def _no_request(request_id: str) -> NotFound:
    return NotFound(f"No request has the id {request_id[:64]!a}.", "`dmcp access list` shows the requests.")
