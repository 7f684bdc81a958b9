"""Taking in what is to be restored: a body that streams in, a file in the bucket, or the name of a published version.

What comes is written to a desk of the workspace, packed into shards there, and handed in; the desk is cleared whatever
happens, also when the client leaves. A source's sizes are bounded before they are read: its own bytes, and what it may
unpack to.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import BinaryIO

from flows.gateway.state import Gateway
from flows.gateway.transfers import Pace
from flows.gateway.workspace import Desk
from storage.errors import TooLarge, TooManyRequests
from storage.objects import ObjectStore
from storage.registry import User
from tasks.request_sources import upload_limits
from tasks.request_submit import hand_in

BLOCK = 1 << 20
OPEN_REQUESTS = 100
"""Restorations of one user that may be pending or running at once."""


async def receive(stream: AsyncIterator[bytes], desk: Desk, path: Path, limit: int, seconds: float) -> None:
    """Write a body to a file on the desk.

    Args:
        stream: its pieces.
        desk: its space is taken as the bytes come.
        path: the file.
        limit: the most bytes that are taken.
        seconds: how long `PACE_BYTES` of it may take to come.

    Raises:
        TooLarge: there are more bytes.
        TooManyRequests: the workspace is full.
        TimeoutError: it came too slowly.
    """
    size, pace = 0, Pace(seconds)
    pieces = aiter(stream)
    with path.open("xb") as file:
        pending = bytearray()
        while True:
            async with pace.waiting():
                piece = await anext(pieces, None)
            if piece is None:
                break
            pace.came(len(piece))
            size += len(piece)
            if size > limit:
                raise too_large(limit)
            pending += piece
            if len(pending) >= BLOCK:
                await asyncio.to_thread(_write, desk, file, bytes(pending))
                pending.clear()
        await asyncio.to_thread(_write, desk, file, bytes(pending))


def _write(desk: Desk, file: BinaryIO, data: bytes) -> None:
    desk.take(len(data))
    file.write(data)


def too_large(limit: int) -> TooLarge:
    """An upload beyond the limit."""
    return TooLarge(f"The upload has more than {limit:,} bytes.", "Hand in fewer images at once.")


def start_file(
    gateway: Gateway, user: User, desk: Desk, path: Path, shown: str, dataset: str | None, request_id: str | None = None
) -> str:
    """Have the images in a file on the desk restored: a zip, a tar or a PNG. The id of the restoration.

    Args:
        gateway: whose.
        user: who asks.
        desk: where the file lies; space for what it unpacks to is taken there.
        path: the file.
        shown: what the user calls it.
        dataset: the data set that the images belong to, if the user says so.
        request_id: an id made before.

    Raises:
        NotAuthorised: the user may have nothing (or this) restored.
        InputError: the file holds nothing that could be restored, or too much.
        TooManyRequests: too many restorations are open, or there is no space.
    """
    check_open(gateway, user)
    limits = upload_limits(path.stat().st_size)
    desk.take(limits.total_bytes)
    request_id = hand_in(
        gateway.registry,
        gateway.private,
        user,
        path,
        work=desk.folder / "work",
        dataset=dataset,
        limits=limits,
        shown=shown,
        request_id=request_id,
    )
    gateway.wake()
    return request_id


def start_published(
    gateway: Gateway,
    user: User,
    desk: Desk,
    dataset: str,
    version: str,
    subset: Sequence[str] | None,
    request_id: str | None = None,
) -> str:
    """Have a published version, or some of it, restored. The id of the restoration.

    Raises:
        NotAuthorised: the user may not.
        NotFound: there is no such version or shard.
        TooManyRequests: too many restorations are open.
    """
    check_open(gateway, user)
    request_id = hand_in(
        gateway.registry,
        gateway.private,
        user,
        f"{dataset}@{version}",
        work=desk.folder / "work",
        public=gateway.public,
        subset=subset,
        dataset=dataset,
        request_id=request_id,
    )
    gateway.wake()
    return request_id


def check_open(gateway: Gateway, user: User) -> None:
    """Raises TooManyRequests when so many of the user's restorations are under way that one more has to wait."""
    waiting = sum(
        len(gateway.registry.list_requests(user.name, state, OPEN_REQUESTS)) for state in ("pending", "running")
    )
    if waiting >= OPEN_REQUESTS:
        raise TooManyRequests(f"{OPEN_REQUESTS} of your restorations are under way.", "Wait for one, or cancel some.")


# --- uploads to a presigned address ----------------------------------------------------------------------------------


def fetch_upload(store: ObjectStore, key: str, desk: Desk, path: Path, limit: int) -> None:
    """Fetch an upload in the bucket to a file on the desk.

    Raises:
        NotFound: nothing was uploaded.
        TooLarge: it has more bytes than are taken.
    """
    size = store.size(key)
    if size > limit:
        store.delete(key)
        raise too_large(limit)
    desk.take(size)
    store.get_file(key, path, size=size)
