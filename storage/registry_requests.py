"""The registry's book of restore requests: pending -> running -> done, failed or cancelled; or pending again.

A worker takes a request with `claim_request`, which is the only way to running, and gives signs of life (`heartbeat`)
until it is through. Each claim has a number, the request's `attempt`: what a worker writes under an older one is
refused (WorkspaceBusy), so one that was thought dead and goes on changes nothing any more. A request that was cancelled
tells its worker so at the next sign of life (RequestCancelled). A sign of life says that the worker lives; that the
request gets on, the counts say that the worker reports (`progressed`). `registry_queue.py` is about what waits.
"""

from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from sqlalchemy import case, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from storage import audit
from storage.database import utc_now
from storage.errors import DmcpError, NotFound, Removed, RequestCancelled, UsageError, WorkspaceBusy
from storage.names import check_dataset_name, check_request_id
from storage.registry_models import KINDS, Kind, Request, State, User
from storage.registry_schema import RegistryDatabase
from storage.registry_usage import give_back
from storage.registry_users import LOCAL, user_by_id

_BEFORE: dict[str, list[str]] = {"running": ["running"], "done": ["running"], "failed": ["pending", "running"]}


def new_request_id() -> str:
    """A fresh request id: 32 hexadecimal digits, random, so that nobody can guess another's."""
    return uuid4().hex


class RequestBook(RegistryDatabase):
    """Restore requests."""

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
        grant_id: int | None = None,
        actor: str | None = None,
    ) -> str:
        """Record a restore request, pending, and return its id (32 hex digits).

        Args:
            user_id: whose request it is.
            kind: `upload` (files in the private bucket), `published` (a version) or `variant` (a local folder).
            dataset: the data set where it is known beforehand; images say themselves which key they need.
            source: what the requester named, for people; for `variant` and `published`, what is to be read.
            subset: sample keys or shard names of the source, recorded once each; None: all.
            images: how many images it has, where that is known.
            request_id: an id made before (`new_request_id`), so that files could be uploaded under it.
            grant_id: the grant that it was admitted under, where that is known.
            actor: who does this, for the audit log; None: the user.

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
            subset=None if subset is None else list(dict.fromkeys(subset)),
            state="pending",
            created=utc_now(),
            images=images,
            grant_id=grant_id,
        )
        identity = request.id
        try:
            with self.write() as session:
                user = user_by_id(session, user_id)
                session.add(request)
                session.flush()
                details = {"kind": kind, "images": images}
                request_entry(session, actor or user.name, "request.create", request, user.name, details)
        except (IntegrityError, NotFound):
            raise UsageError(f"Request {identity} exists, or no user has the id {user_id}.") from None
        return identity

    def get_request(self, request_id: str) -> Request:
        """The request of this id. Raises NotFound."""
        with self.read() as session:
            request = session.get(Request, request_id)
        if request is None:
            raise _no_request(request_id)
        return request

    def claim_request(self, request_id: str, force: bool = False, *, actor: str = LOCAL) -> Request:
        """Take a pending request for this worker: it is running from now on. Of several claimants one succeeds.

        Args:
            request_id: the request.
            force: take a running or failed one too, to resume what a worker that was killed left behind.
            actor: who does this, for the audit log.

        Raises:
            NotFound: no such request.
            WorkspaceBusy: it is running (and not `force`).
            RequestCancelled: it was cancelled.
            Removed: it ended long ago, and its input is not kept any more.
            UsageError: it is done, or failed (and not `force`).
        """
        now = utc_now()
        values = {
            "state": "running",
            "started": now,
            "finished": None,
            "message": None,
            "result": None,
            "heartbeat": now,
            "progressed": now,
            "attempt": Request.attempt + 1,
            "due": None,
            "takeovers": case((Request.state == "failed", 1), else_=Request.takeovers + 1),
        }
        with self.write() as session:
            if change_request(session, request_id, ["pending", "running", "failed"] if force else ["pending"], values):
                request = _request(session, request_id)
                details = {"attempt": request.attempt}
                request_entry(session, actor, "request.claim", request, request.user.name, details)
                return request
        raise _not_claimable(self.get_request(request_id))

    def heartbeat(self, request_id: str, attempt: int) -> None:
        """Give a sign of life, as the worker that claimed the request with this number.

        Raises:
            NotFound: no such request.
            RequestCancelled: it was cancelled: stop.
            WorkspaceBusy: another worker took it: stop.
            UsageError: it is not running.
        """
        with self.write() as session:
            alive = change_request(session, request_id, ["running"], {"heartbeat": utc_now()}, attempt)
        if not alive:
            raise lost_request(self.get_request(request_id), "running", attempt)

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
        grant_id: int | None = None,
        attempt: int | None = None,
        actor: str = LOCAL,
    ) -> None:
        """Record how far a request is; what is None stays as it is.

        A running request may stay running (with new counts), become done or failed; a pending one may fail.

        Args:
            request_id: the request.
            state: `running`, `done` or `failed`.
            images: how many images it has.
            restored: how many are restored.
            refused: how many are refused.
            message: what went wrong.
            result: where the result lies.
            grant_id: the grant that it is served under.
            attempt: the number of the worker's claim; None: whoever's.
            actor: who does this, for the audit log.

        Raises:
            NotFound: no such request.
            RequestCancelled: it was cancelled meanwhile.
            WorkspaceBusy: another worker took it meanwhile.
            UsageError: the request is in a state that this one does not follow.
        """
        before = _BEFORE.get(state)
        if before is None:
            raise UsageError(f"A request can not be set to {state!r}.", "One of: running, done, failed.")
        now = utc_now()
        given = {
            "images": images,
            "restored": restored,
            "refused": refused,
            "message": message,
            "result": result,
            "grant_id": grant_id,
        }
        values: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        values["state"] = state
        values |= {"heartbeat": now, "progressed": now} if state == "running" else {"finished": now}
        with self.write() as session:
            changed = change_request(session, request_id, before, values, attempt)
            if changed and state != "running":
                request = _request(session, request_id)
                details = {name: value for name, value in given.items() if value is not None}
                request_entry(session, actor, f"request.{state}", request, request.user.name, details)
        if not changed:
            raise lost_request(self.get_request(request_id), state, attempt)

    def cancel_request(self, request_id: str, *, actor: str = LOCAL) -> None:
        """Cancel a request that is pending or running; done again, nothing changes. Its worker stops when it notices.

        What was restored can be had of a request that is done only, and that can not be cancelled: so nobody has, or
        will have, anything of this one, and what it was charged is given back.

        Raises:
            NotFound: no such request.
            UsageError: it is done or failed already.
        """
        values = {"state": "cancelled", "finished": utc_now()}
        with self.write() as session:
            changed = change_request(session, request_id, ["pending", "running"], values)
            if changed:
                request = _request(session, request_id)
                returned = give_back(session, request_id)
                details = {"returned": returned} if returned else None
                request_entry(session, actor, "request.cancel", request, request.user.name, details)
        if not changed:
            state = self.get_request(request_id).state
            if state != "cancelled":
                raise UsageError(f"Request {request_id} is {state} already: it can not be cancelled.")

    def list_requests(
        self, user: str | None = None, state: State | None = None, limit: int = 1000, *, oldest: bool = False
    ) -> Sequence[Request]:
        """Requests, newest first, or `oldest` first; of one user or in one state when named."""
        order = Request.created if oldest else Request.created.desc()
        query = select(Request).join(Request.user).order_by(order, Request.id).limit(limit)
        if user is not None:
            query = query.where(User.name == user)
        if state is not None:
            query = query.where(Request.state == state)
        return self.all(query)


def change_request(
    session: Session, request_id: str, before: list[str], values: dict[str, Any], attempt: int | None = None
) -> bool:
    """Change a request that is in one of these states (and of this attempt); whether there was one."""
    change = update(Request).where(Request.id == request_id, Request.state.in_(before), Request.removed.is_(None))
    if attempt is not None:
        change = change.where(Request.attempt == attempt)
    result: Any = session.execute(change.values(values), execution_options={"synchronize_session": False})
    return bool(result.rowcount)


def _request(session: Session, request_id: str) -> Request:
    request = session.get(Request, request_id)
    if request is None:
        raise _no_request(request_id)
    return request


def _no_request(request_id: str) -> NotFound:
    return NotFound(f"No request has the id {request_id[:64]!a}.", "`dmcp requests` shows them.")


def _not_claimable(request: Request) -> DmcpError:
    """Why a request could not be claimed."""
    if request.state == "running":
        return WorkspaceBusy(
            f"Request {request.id} is being served since {request.started:%Y-%m-%d %H:%M} UTC.",
            "Wait for it; if its worker was killed, resume it with --force.",
        )
    if request.state == "cancelled":
        return _cancelled(request)
    if request.removed is not None:
        return Removed(f"What was handed in was removed on {request.removed:%Y-%m-%d}.", "Make the request again.")
    cure = "Fetch what was restored with `dmcp restore`." if request.state == "done" else "Try again with --force."
    return UsageError(f"Request {request.id} is {request.state} already.", cure)


def lost_request(request: Request, state: str, attempt: int | None) -> DmcpError:
    """Why a worker may not set a request's state (any more)."""
    if request.state == "cancelled":
        return _cancelled(request)
    if attempt is not None and request.attempt != attempt:
        return WorkspaceBusy(
            f"Request {request.id} was taken by another worker (attempt {request.attempt}, not {attempt}).",
            "Let that one go on.",
        )
    return UsageError(f"Request {request.id} is {request.state}: it can not become {state}.", "Claim it first.")


def _cancelled(request: Request) -> RequestCancelled:
    return RequestCancelled(f"Request {request.id} was cancelled.", "Make a new one if it is still wanted.")


def request_entry(
    session: Session, actor: str, action: str, request: Request, user: str, details: dict[str, Any] | None = None
) -> None:
    """Write to the audit log what happens to a request, in the same transaction."""
    audit.append(
        session,
        actor=actor,
        action=action,
        dataset=request.dataset,
        request_id=request.id,
        subject=user,
        details=details or {},
    )
