"""Progress as server-sent events, without a thread or a query of its own for every listener.

One task looks at all restorations that anybody listens to, with one query, and tells each listener what changed.
Listeners are checked now and then: a token that was revoked ends the stream.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from anyio import to_thread
from fastapi import APIRouter
from fastapi import Request as Call
from sqlalchemy import select
from sse_starlette import EventSourceResponse, ServerSentEvent

from flows.gateway.auth import Caller, session_token
from flows.gateway.errors import problems
from flows.gateway.parameters import RequestPath
from flows.gateway.queries import own_restoration
from flows.gateway.schemas import RestorationInfo
from flows.gateway.state import Gateway, GatewayState
from storage.errors import DmcpError, EnvironmentFault, NotAuthorised, TooManyRequests
from storage.registry import Request, User

router = APIRouter(prefix="/restorations", tags=["restorations"])
log = logging.getLogger("dmcp.gateway")

LOOK_SECONDS = 0.5
CHECK_SECONDS = 30.0
PING_SECONDS = 15
PER_USER, ALTOGETHER = 20, 2000
"""Listeners at once."""

OVER = ("done", "failed", "cancelled")
_EVENT = {
    "type": "object",
    "properties": {
        "event": {"type": "string", "enum": ["progress", "done", "error"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
    "required": ["event", "data"],
}


@dataclass
class _Watch:
    """One restoration that somebody listens to."""

    listeners: int = 0
    row: Request | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self, row: Request) -> None:
        if self.row is None or _state(row) != _state(self.row):
            self.row = row
            changed, self.changed = self.changed, asyncio.Event()
            changed.set()


class Progress:
    """Looks at what is listened to. Used by the application's own event loop only."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.watches: dict[str, _Watch] = {}
        self.listeners: Counter[int] = Counter()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Progress":
        self._task = asyncio.create_task(self._look_on())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    @contextmanager
    def listening(self, user: User, request_id: str) -> "Any":
        """One more listener. Raises TooManyRequests when there are too many."""
        if self.listeners[user.id] >= PER_USER or self.listeners.total() >= ALTOGETHER:
            raise TooManyRequests("Too many listeners at once.", "Close some, or poll instead.")
        self.listeners[user.id] += 1
        watch = self.watches.setdefault(request_id, _Watch())
        watch.listeners += 1
        try:
            yield watch
        finally:
            self.listeners[user.id] -= 1
            self.listeners += Counter()  # forget who is at zero
            watch.listeners -= 1
            if not watch.listeners:
                self.watches.pop(request_id, None)

    async def _look_on(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if not self.watches:
                continue
            try:
                rows = await to_thread.run_sync(self._rows, list(self.watches))
            except DmcpError:
                log.warning("progress can not be read just now", exc_info=True)
                continue
            for row in rows:
                if watch := self.watches.get(row.id):
                    watch.tell(row)

    def _rows(self, ids: list[str]) -> list[Request]:
        found: list[Request] = []
        for start in range(0, len(ids), 500):
            found += self.gateway.registry.all(select(Request).where(Request.id.in_(ids[start : start + 500])))
        return found


@router.get(
    "/{restoration_id}/events",
    response_class=EventSourceResponse,
    responses={
        200: {
            "description": (
                "Events `progress` and, last, `done` (it is done, failed or cancelled), each with the restoration as "
                "JSON; `error` when the caller may listen no longer."
            ),
            "content": {"text/event-stream": {"schema": _EVENT}},
        },
        **problems(404, 422),
    },
)
async def follow_restoration(
    restoration_id: RequestPath, call: Call, user: Caller, gateway: GatewayState
) -> EventSourceResponse:
    """Follow a restoration by server-sent events until it is over."""
    progress: Progress = call.app.state.progress
    row = await to_thread.run_sync(own_restoration, gateway.registry, user, restoration_id)
    events = _events(progress, call, user, row)
    first = await anext(events)  # so that too many listeners are answered by a status
    return EventSourceResponse(_with(first, events), ping=PING_SECONDS, headers={"Cache-Control": "no-store"})


async def _with(first: ServerSentEvent, rest: AsyncIterator[ServerSentEvent]) -> AsyncIterator[ServerSentEvent]:
    yield first
    async for event in rest:
        yield event


async def _events(progress: Progress, call: Call, user: User, row: Request) -> AsyncIterator[ServerSentEvent]:
    with progress.listening(user, row.id) as watch:
        if watch.row is None:
            watch.row = row
        told: tuple[object, ...] | None = None
        clock = asyncio.get_running_loop().time
        due = clock() + CHECK_SECONDS
        while True:
            if clock() >= due:
                if not await to_thread.run_sync(_still_good, progress.gateway, call):
                    yield ServerSentEvent(event="error", data='{"error":"BadToken"}')
                    return
                due = clock() + CHECK_SECONDS
            changed, row = watch.changed, watch.row
            if _state(row) != told:
                told = _state(row)
                yield _event("done" if row.state in OVER else "progress", row)
                if row.state in OVER:
                    return
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await changed.wait()


def _still_good(gateway: Gateway, call: Call) -> bool:
    """Whether the caller's token or session is as good as when the stream began. Not counted as a call.

    While the registry is away nobody can tell: the stream goes on, and is looked at again next time.
    """
    try:
        _, _, token = call.headers.get("authorization", "").partition(" ")
        if token:
            gateway.registry.authenticate(token.strip())
        else:
            session_token(gateway, call.scope.get("session") or {})
    except NotAuthorised:
        return False
    except EnvironmentFault as error:
        log.warning("a listener can not be checked just now: %s", error)
    return True


def _event(name: str, row: Request) -> ServerSentEvent:
    return ServerSentEvent(event=name, data=RestorationInfo.of(row).model_dump_json())


def _state(row: Request) -> tuple[object, ...]:
    return row.state, row.restored, row.refused, row.images, row.attempt, row.message
