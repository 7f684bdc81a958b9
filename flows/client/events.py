"""Following a restoration: by server-sent events, and where those do not come or break off, by asking now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

import httpx
from pydantic import ValidationError

from flows.client.connection import Again, Connection
from flows.gateway.schemas import RestorationInfo
from storage.errors import DmcpError

OVER = ("done", "failed", "cancelled")
SILENCE_SECONDS = 40.0
"""The gateway sends something every 15 s: a stream that is silent for longer is none any more."""

PAUSES = (0.5, 1.0, 2.0, 3.0, 5.0)
EVENT_BYTES = 1 << 20


def follow(
    connection: Connection, restoration_id: str, look: Callable[[], RestorationInfo]
) -> Iterator[RestorationInfo]:
    """A restoration whenever it changed; the last one is over.

    Args:
        connection: the gateway.
        restoration_id: the restoration.
        look: asks for its state, as patiently as any call: its errors are what this one raises.
    """
    last: RestorationInfo | None = None
    fruitless = 0
    while True:
        with suppress(Again, DmcpError):  # `look` meets what lasts
            for info in _events(connection, restoration_id):
                fruitless = 0
                if info != last:
                    last = info
                    yield info
                if info.state in OVER:
                    return
        for pause in PAUSES[: fruitless + 1]:
            info = look()
            if info != last:
                last = info
                yield info
            if info.state in OVER:
                return
            time.sleep(pause)
        fruitless = min(fruitless + 1, len(PAUSES) - 1)


def _events(connection: Connection, restoration_id: str) -> Iterator[RestorationInfo]:
    """What the gateway tells, as long as it does. Raises Again, DmcpError."""
    timeout = httpx.Timeout(SILENCE_SECONDS, connect=10.0)
    headers = {"Accept": "text/event-stream"}
    path = f"/restorations/{restoration_id}/events"
    with connection.answer("GET", path, headers=headers, timeout=timeout) as response:
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            return
        for name, data in parse_events(response.iter_bytes()):
            if name not in ("progress", "done"):
                return
            try:
                yield RestorationInfo.model_validate_json(data)
            except ValidationError:
                return


def parse_events(blocks: Iterable[bytes]) -> Iterator[tuple[str, bytes]]:
    """Names and data of the events in a stream; comments are left out, and whatever it breaks off in."""
    name, data, pending = "", bytearray(), b""
    for block in blocks:
        *lines, pending = (pending + block).split(b"\n")
        if len(pending) + len(data) > EVENT_BYTES:
            return
        for raw in lines:
            line = raw.removesuffix(b"\r")
            if not line:
                if data:
                    yield name or "message", bytes(data)
                name, data = "", bytearray()
                continue
            field, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if field == b"event":
                name = value.decode("ascii", "replace")
            elif field == b"data":
                data += (b"\n" if data else b"") + value
