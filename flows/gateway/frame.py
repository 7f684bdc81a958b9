"""Around every call: an id, security headers, a bounded body, a line in the log, and an answer whatever happens.

Plain ASGI, so that streams stay streams. The log line holds method, path, status, time and user: no query, no header,
no body, so no token and no presigned address.
"""

import asyncio
import logging
import re
import time
from collections.abc import Callable
from secrets import token_hex
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flows.gateway.errors import answer
from flows.gateway.logs import call_id, route_of

log = logging.getLogger("dmcp.gateway")

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")
BODY_BYTES = 1 << 20
BODY_SECONDS = 30.0
"""A body of JSON or of a form: at most so large, and here within so many seconds. Uploads have limits of their own."""

SECURITY = {
    "Content-Security-Policy": (
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}

Observe = Callable[[Scope, int, float], None]
"""Told scope, status and seconds of every call that ended; the scope's `route` says which one it was."""


class Frame:
    """The outermost middleware."""

    def __init__(self, app: ASGIApp, streamed: frozenset[str] = frozenset(), observers: list[Observe] | None = None):
        self.app = app
        self.streamed = streamed
        self.observers = observers if observers is not None else []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One call."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        scope["dmcp_request_id"] = given if REQUEST_ID.fullmatch(given) else token_hex(8)
        call_id.set(scope["dmcp_request_id"])  # each call is a task, so with a context, of its own
        started, status = time.monotonic(), 0

        async def framed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _add_headers(scope, message)
            await send(message)

        try:
            await self._bounded(scope, receive, framed)
        except Exception:
            log.exception("fault in call %s: %s %s", scope["dmcp_request_id"], scope["method"], _shown(scope["path"]))
            if status == 0:
                what, cure = "The gateway met a fault of its own.", "Tell the operator this request_id."
                await answer(Request(scope), 500, "DmcpError", what, cure)(scope, receive, framed)
            else:
                raise
        finally:
            seconds = time.monotonic() - started
            _log(scope, status, seconds)
            for observe in self.observers:
                observe(scope, status, seconds)

    async def _bounded(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        length = headers.get("content-length", "")
        empty = length in ("", "0") and "transfer-encoding" not in headers
        if empty or scope["path"] in self.streamed:
            await self.app(scope, receive, send)
            return
        if length.isdigit() and (len(length) > 18 or int(length) > BODY_BYTES):
            await self._refuse(scope, receive, send, 413)
            return
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await _whole(receive)
        except TimeoutError:
            await self._refuse(scope, receive, send, 408)
            return
        if body is None:
            await self._refuse(scope, receive, send, 413)
            return
        await self.app(scope, _replay(body, receive), send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, status: int) -> None:
        kind, what = ("TooLarge", f"The body has more than {BODY_BYTES:,} bytes.")
        if status == 408:
            kind, what = ("EnvironmentFault", f"The body did not come within {BODY_SECONDS:.0f} s.")
        close = {"Connection": "close"}
        await answer(Request(scope), status, kind, what, "Send less at once.", close)(scope, receive, send)


async def _whole(receive: Receive) -> bytes | None:
    """The body, or None when it is larger than it may be. What a client sent before it left is taken as it is."""
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > BODY_BYTES:
            return None
        if message["type"] != "http.request" or not message.get("more_body", False):
            return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return waiting.pop() if waiting else await receive()

    return next_message


def _add_headers(scope: Scope, message: Message) -> None:
    headers = MutableHeaders(scope=message)
    headers["X-Request-ID"] = scope["dmcp_request_id"]
    for name, value in SECURITY.items():
        headers.setdefault(name, value)
    if not scope["path"].startswith("/static/"):
        headers.setdefault("Cache-Control", "no-store")


def _log(scope: Scope, status: int, seconds: float) -> None:
    log.info(
        "%s %s %d %.0f ms",
        scope["method"],
        _shown(scope["path"]),
        status,
        seconds * 1000,
        extra={"call": _fields(scope, status, seconds)},
    )


def _fields(scope: Scope, status: int, seconds: float) -> dict[str, Any]:
    """What a structured log may want to have."""
    return {
        "request_id": scope["dmcp_request_id"],
        "method": scope["method"],
        "path": _shown(scope["path"]),
        "route": route_of(scope),
        "status": status,
        "milliseconds": round(seconds * 1000, 1),
        "user": scope.get("dmcp_user"),
        "error": scope.get("dmcp_error"),
        "client": (scope.get("client") or (None,))[0],
    }


def _shown(path: str) -> str:
    return ascii(path[:200])[1:-1]
