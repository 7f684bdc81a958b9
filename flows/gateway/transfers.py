"""Bytes on their way to and from callers: one who stands still is not waited for.

Whoever uploads or downloads holds a seat, and often space on disk, so it has to get on: at least `PACE_BYTES` within so
many seconds, else the transfer ends. That is some kilobytes a second; who trickles is treated like who stands still.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from anyio import CancelScope, to_thread
from starlette.concurrency import iterate_in_threadpool
from starlette.responses import StreamingResponse
from starlette.types import Send

PACE_BYTES = 256 << 10
IDLE_SECONDS = 60.0
"""How long a download may take for a block of a megabyte at most, and an upload for `PACE_BYTES`."""

log = logging.getLogger("dmcp.gateway")


class Pace:
    """How fast an upload has to come.

    async with pace.waiting():          # TimeoutError when too little came for too long
        piece = await anext(pieces)
    pace.came(len(piece))
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._begin()

    @asynccontextmanager
    async def waiting(self) -> AsyncIterator[None]:
        """Wait for the next bytes, as long as is left for those that are due; what is done with them does not count."""
        clock = asyncio.get_running_loop().time
        began = clock()
        async with asyncio.timeout(self._left):
            yield
        self._left -= clock() - began

    def came(self, size: int) -> None:
        """So many bytes came: when they are enough, the time begins anew."""
        self._due -= size
        if self._due <= 0:
            self._begin()

    def _begin(self) -> None:
        self._due = PACE_BYTES
        self._left = self.seconds


class Download(StreamingResponse):
    """A stream that ends when the client does not take it; what it had on disk is gone then."""

    def __init__(self, content: Iterator[bytes], **more: object) -> None:
        super().__init__(_closing(content), **more)  # type: ignore[arg-type]

    async def stream_response(self, send: Send) -> None:
        """Send all of it, block by block."""
        blocks: AsyncIterator[bytes] = self.body_iterator  # type: ignore[assignment]
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for block in blocks:
                async with asyncio.timeout(IDLE_SECONDS):
                    await send({"type": "http.response.body", "body": block, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            log.warning("a download was broken off: nobody took it for %.0f s", IDLE_SECONDS)  # the server hangs up
        finally:
            with CancelScope(shield=True):
                await blocks.aclose()  # type: ignore[attr-defined]


async def _closing(content: Iterator[bytes]) -> AsyncIterator[bytes]:
    """In threads, and closed at the end whatever happens."""
    try:
        async for block in iterate_in_threadpool(content):
            yield block
    finally:
        with CancelScope(shield=True):
            await to_thread.run_sync(content.close)  # type: ignore[attr-defined]


# --- parts of a file -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """The bytes `first` to `last` of a file, both counted from 0 and both in it."""

    first: int
    last: int

    @property
    def size(self) -> int:
        """Bytes of it."""
        return self.last - self.first + 1


class OutOfRange(Exception):
    """A part was asked for that the file does not have."""


def part_of(size: int, wanted: str | None, unless: str | None, etag: str) -> Part | None:
    """The part of a file that a call asks for (RFC 9110); None: all of it.

    Args:
        size: bytes of the file.
        wanted: the header Range. Units that are not bytes, several ranges and nonsense are ignored, as they may be.
        unless: the header If-Range: the part only if this is still the file, else all of it.
        etag: the file's, in quotes.

    Raises:
        OutOfRange: it begins behind the file's end.
    """
    unit, _, ranges = (wanted or "").strip().partition("=")
    first, dash, last = ranges.strip().partition("-")
    if unit.strip().lower() != "bytes" or not dash or (unless is not None and unless.strip() != etag):
        return None
    if not _is_number(first or "0") or not _is_number(last or "0") or not (first or last):
        return None
    if not first:
        begin, end = max(0, size - int(last)), size - 1
        if int(last) == 0:
            raise OutOfRange
    else:
        begin, end = int(first), min(int(last), size - 1) if last else size - 1
        if last and int(last) < begin:
            return None
    if begin >= size:
        raise OutOfRange
    return Part(begin, end)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 18
