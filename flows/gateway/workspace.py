"""Disk space for what is on its way through the gateway: bounded, private, and gone afterwards whatever happened.

Every process works in a folder of its own below HOME/work/gateway, which it keeps locked. A folder whose lock is free
belongs to a process that was killed; the next one to start removes it. Processes start one after the other, since a
folder that was just made is not locked yet.

    with workspace.desk(user.id) as desk:
        desk.take(1000)                 # before so many bytes are written to desk.folder; TooManyRequests when full

No user takes all of it: each has a share of the space, and so many transfers at once.
"""

import fcntl
import os
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

from anyio import CancelScope, to_thread

from storage.errors import TooManyRequests

MIN_FREE_BYTES = 256 << 20
"""What stays free on the disk whatever is uploaded."""

PER_USER = 8
"""Uploads and downloads of one user at once."""


class Workspace:
    """The folder of this process, and the space that all its uploads share.

    Args:
        root: HOME/work/gateway; folders of dead processes in it are removed.
        most: bytes for all uploads together.
        share: bytes of them that one user may take; None: all.
    """

    def __init__(self, root: Path, most: int, share: int | None = None) -> None:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _locked(root):
            _remove_abandoned(root)
            self.folder = Path(tempfile.mkdtemp(prefix="gateway-", dir=root))
            self._handle = os.open(self.folder, os.O_RDONLY)
            fcntl.flock(self._handle, fcntl.LOCK_EX)
        self.most = most
        self.share = most if share is None else min(share, most)
        self.taken = 0
        self.taken_by: Counter[int] = Counter()
        self.seats: Counter[int] = Counter()
        self._lock = threading.Lock()

    def close(self) -> None:
        """Remove the folder with all that is in it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._handle)

    @asynccontextmanager
    async def async_desk(self, user_id: int | None = None) -> AsyncIterator["Desk"]:
        """The same for the event loop, which removing large files would hold up."""
        with self.seat(user_id):
            desk = Desk(self, Path(tempfile.mkdtemp(dir=self.folder)), user_id)
            try:
                yield desk
            finally:
                with CancelScope(shield=True):
                    await to_thread.run_sync(desk.clear)

    @contextmanager
    def desk(self, user_id: int | None = None) -> Iterator["Desk"]:
        """A folder for one upload or download, removed at the end of the block with its share of the space.

        Args:
            user_id: whose, to count them.

        Raises:
            TooManyRequests: this user has `PER_USER` of them.
        """
        with self.seat(user_id):
            desk = Desk(self, Path(tempfile.mkdtemp(dir=self.folder)), user_id)
            try:
                yield desk
            finally:
                desk.clear()

    @contextmanager
    def seat(self, user_id: int | None) -> Iterator[None]:
        """One transfer of a user, for the length of the block. Raises TooManyRequests."""
        with self._lock:
            if user_id is not None and self.seats[user_id] >= PER_USER:
                raise TooManyRequests(f"You have {PER_USER} uploads and downloads under way.", "Wait for one to end.")
            if user_id is not None:
                self.seats[user_id] += 1
        try:
            yield
        finally:
            with self._lock:
                if user_id is not None:
                    self.seats[user_id] -= 1
                    self.seats += Counter()  # forget who is at zero

    def take(self, size: int, user_id: int | None = None) -> None:
        """Reserve so many bytes, for a user. Raises TooManyRequests when the share, all of it or the disk is taken."""
        with self._lock:
            if user_id is not None and self.taken_by[user_id] + size > self.share:
                raise TooManyRequests(
                    "Your uploads and downloads that are under way take all the space that one user may have.",
                    "Wait for one to end, or hand in fewer images at once.",
                )
            if self.taken + size > self.most or shutil.disk_usage(self.folder).free - size < MIN_FREE_BYTES:
                raise TooManyRequests(
                    "The gateway has no space for this now.", "Try again in a minute, or hand in fewer images at once."
                )
            self.taken += size
            if user_id is not None:
                self.taken_by[user_id] += size

    def give_back(self, size: int, user_id: int | None = None) -> None:
        """Release what was taken."""
        with self._lock:
            self.taken -= size
            if user_id is not None:
                self.taken_by[user_id] -= size
                self.taken_by += Counter()  # forget who is at zero


class Desk:
    """One folder in the workspace, and what it has reserved."""

    def __init__(self, workspace: Workspace, folder: Path, user_id: int | None = None) -> None:
        self.workspace = workspace
        self.user_id = user_id
        self.folder = folder
        self.taken = 0

    def take(self, size: int) -> None:
        """Reserve so many bytes more. Raises TooManyRequests."""
        self.workspace.take(size, self.user_id)
        self.taken += size

    def clear(self) -> None:
        """Remove the folder and release its space."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.workspace.give_back(self.taken, self.user_id)
        self.taken = 0


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """No other process starts here meanwhile."""
    handle = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _remove_abandoned(root: Path) -> None:
    for folder in root.glob("gateway-*"):
        with suppress(OSError):
            handle = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(handle)
