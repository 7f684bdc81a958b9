"""A call that starts a restoration and is sent again, because its answer was lost, starts nothing a second time.

The client makes up a key (header Idempotency-Key) and sends it with every try. The restoration's id is made of user and
key, so the second try finds what the first one started, also after the gateway was started anew. Of tries at the same
time, at whichever gateway, one is let in: a row in the registry says so, renewed as long as it lasts. Should two get in
all the same (one gateway stood still meanwhile), the registry takes one request of an id, and who was slower gets that.
"""

import hashlib
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from secrets import token_hex
from typing import Annotated

from anyio import CancelScope, to_thread
from fastapi import Header

from flows.gateway.queries import own_restoration
from storage.errors import Conflict, DmcpError, NotFound
from storage.registry import Registry, Request, User

KEY = r"^[A-Za-z0-9_-]{8,64}$"

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern=KEY,
        description="made up by the client: the same call again with the same key starts nothing new",
    ),
]

LEASE_SECONDS = 15.0
"""After so long without being renewed a try is taken for dead, with its gateway."""
RENEW_SECONDS = 3.0


def restoration_id(user: User, key: str | None) -> str | None:
    """The id of what this user starts with this key; None without a key."""
    return None if key is None else hashlib.sha256(f"restoration/{user.id}/{key}".encode()).hexdigest()[:32]


def started_before(registry: Registry, user: User, request_id: str | None) -> Request | None:
    """What an earlier try started."""
    try:
        return None if request_id is None else own_restoration(registry, user, request_id)
    except NotFound:
        return None


@contextmanager
def only_one(registry: Registry, request_id: str | None) -> Iterator[None]:
    """Of several tries at once, one; it asks inside whether another, just now, `started_before`.

    Raises:
        Conflict: for the others.
    """
    if request_id is None:
        yield
        return
    holder = token_hex(16)
    if not registry.begin_submission(request_id, holder, LEASE_SECONDS):
        raise Conflict("The same call is under way.", "Wait for its answer, or try again in a moment.")
    stop = threading.Event()
    renews = threading.Thread(target=_renew, args=(registry, request_id, holder, stop), daemon=True)
    renews.start()
    try:
        yield
    finally:
        stop.set()
        renews.join()
        with suppress(DmcpError):  # then it runs out by itself
            registry.end_submission(request_id, holder)


@asynccontextmanager
async def only_one_of(registry: Registry, request_id: str | None) -> AsyncIterator[None]:
    """The same for the event loop, which a query would hold up."""
    stack = ExitStack()
    await to_thread.run_sync(stack.enter_context, only_one(registry, request_id))
    try:
        yield
    finally:
        with CancelScope(shield=True):
            await to_thread.run_sync(stack.close)


def _renew(registry: Registry, request_id: str, holder: str, stop: threading.Event) -> None:
    while not stop.wait(RENEW_SECONDS):
        with suppress(DmcpError):  # the registry is out of reach just now
            registry.begin_submission(request_id, holder, LEASE_SECONDS)
