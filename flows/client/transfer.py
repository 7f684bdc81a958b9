"""Files in both directions. A download goes on where it broke off, as often as it must; nothing counts but its SHA-256.

Results are fetched from the object store by presigned address, in ranges. Where that store can not be reached (many
gateways keep it to themselves) they come through the gateway, which sends a shard from its beginning.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path

from flows.client.api import Client
from flows.client.connection import Again, StoreRefused
from flows.gateway.schemas import ResultFile, UploadAddress
from storage.errors import CorruptShard, InputError, ServiceError
from storage.files import sha256_file

BLOCK = 1 << 18
AT_ONCE = 4
STORE_PATIENCE = 20.0
"""How long a presigned address is tried when nothing comes of it."""

DENIED = (400, 401, 403, 404)
"""How a store answers an address that is no longer good."""

Advance = Callable[[int], None]
"""Called with the number of bytes just moved (negative: they are to be moved again), possibly from several threads."""


# --- up --------------------------------------------------------------------------------------------------------------


class Source:
    """A file on its way up, sent as it was when it was described.

    Args:
        path: the file.
        size: its bytes.
        sha256: of them.
        advance: told what was sent.
    """

    def __init__(self, path: Path, size: int, sha256: str, advance: Advance) -> None:
        self.path, self.size, self.sha256 = path, size, sha256
        self.advance = advance
        self.sent = 0

    def body(self) -> Iterator[bytes]:
        """The content from its beginning, cut off before its end when the file was changed meanwhile.

        Raises:
            InputError: it was changed.
        """
        self.advance(-self.sent)
        self.sent = 0
        digest = hashlib.sha256()
        with self.path.open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
                ends = self.sent + len(block) >= self.size
                if self.sent + len(block) > self.size or (ends and digest.hexdigest() != self.sha256):
                    raise self._changed()
                self.sent += len(block)
                self.advance(len(block))
                yield block
        if self.sent != self.size:
            raise self._changed()

    def _changed(self) -> InputError:
        return InputError(f"{self.path} was changed while it was sent.", "Run it again.")


def put(client: Client, address: UploadAddress, source: Source) -> None:
    """Put a file to its address in the object store. Raises ServiceError (StoreRefused when the store did)."""
    connection = client.connection
    if not connection.may_reach(address.url):
        raise ServiceError("The object store is on the gateway's own machine.", "Hand in fewer images at once.")

    def attempt() -> None:
        with connection.answer("PUT", address.url, headers=address.headers, content=source.body()):
            return

    connection.patiently(attempt, min(STORE_PATIENCE, connection.patience))


# --- down ------------------------------------------------------------------------------------------------------------


class Results:
    """The result shards of one restoration, to be fetched into one folder. Safe to use from several threads.

    Args:
        client: the gateway.
        restoration_id: the restoration; it is done.
        folder: where; what an earlier run left there is used.
    """

    def __init__(self, client: Client, restoration_id: str, folder: Path) -> None:
        self.client = client
        self.restoration_id = restoration_id
        self.folder = folder
        self.ending = threading.Event()
        self._lock = threading.Lock()
        self._files = {file.name: file for file in client.results(restoration_id)}
        self.direct = all(client.connection.may_reach(file.url) for file in self._files.values())
        for name in self._files:
            check_name(name)

    @property
    def files(self) -> list[ResultFile]:
        """All of them, in order."""
        return [self._files[name] for name in sorted(self._files)]

    def fetch_all(self, advance: Advance) -> None:
        """Fetch all shards, some at once; see `fetch`. After an error (or Ctrl-C) none goes on in the background."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            try:
                for future in as_completed([pool.submit(self.fetch, file, advance) for file in self.files]):
                    future.result()
            except BaseException:
                self.ending.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def fetch(self, file: ResultFile, advance: Advance) -> Path:
        """The verified file of a shard, downloaded unless it is there.

        Raises:
            CorruptShard: what comes, comes wrong, also when asked for from its beginning.
            DmcpError: the gateway refuses it.
            ServiceError: nothing came for as long as the client is patient.
        """
        path = self.folder / file.name
        if path.is_file() and path.stat().st_size == file.bytes and sha256_file(path) == file.sha256:
            advance(file.bytes)
            return path
        part = _Part(path.with_name(f"{file.name}.part"), file.bytes, advance)
        fresh = part.have == 0
        self._fill(file, part)
        if sha256_file(part.path) != file.sha256 and not fresh:
            # What an earlier run left may be spoilt, by a disk that was full or power that went.
            part.restart()
            part.best = 0
            self._fill(file, part)
        if sha256_file(part.path) != file.sha256:
            part.restart()
            raise CorruptShard(f"{file.name} does not come as it was restored.", "Run it again.")
        part.finish(path)
        return path

    def _fill(self, file: ResultFile, part: _Part) -> None:
        """Ask for what is missing until nothing is."""
        while not part.whole:
            direct = self.direct
            patience = min(STORE_PATIENCE, self.client.connection.patience) if direct else None
            try:
                self.client.connection.patiently(partial(self._more, file, part, direct), patience, self.ending)
            except StoreRefused as error:
                if self.ending.is_set():
                    raise
                if error.status == 416 and part.have:
                    part.restart()
                elif error.status in DENIED and not part.renewed:
                    part.renewed = True
                    self._renew(file)
                else:
                    self.direct = False
            except ServiceError:
                if not direct or self.ending.is_set():
                    raise
                self.direct = False  # the store is out of reach; the gateway need not be

    def _more(self, file: ResultFile, part: _Part, direct: bool) -> None:
        """One call. One that breaks off after bytes that are new did what it could: the next has all patience anew."""
        best = part.best
        try:
            self._ask(self._files[file.name].url if direct else self._path(file.name), part)
        except Again:
            if part.best == best:
                raise
        if part.best > best:
            part.renewed = False
        elif not part.whole:
            raise Again(ServiceError(f"{file.name} ended too early.", "Run it again: it goes on."))

    def _ask(self, address: str, part: _Part) -> None:
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={part.have}-"} if part.have else {})
        with self.client.connection.answer("GET", address, headers=headers) as response:
            # What is sent is what Content-Range says; rclone's server has status 200 with it, and not 206.
            given = response.headers.get("content-range", "")
            if not given:
                part.restart()
            elif not given.startswith(f"bytes {part.have}-"):
                raise Again(ServiceError(f"Another part of {part.path.name} came than was asked for.", "Run it again."))
            part.write(self._until_told(response.iter_raw()))

    def _until_told(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        for block in blocks:
            if self.ending.is_set():
                raise ServiceError("The download was broken off.", "Run it again: it goes on.")
            yield block

    def _path(self, name: str) -> str:
        return f"/restorations/{self.restoration_id}/results/{name}"

    def _renew(self, file: ResultFile) -> None:
        """New addresses, unless another thread got some since `file` was listed."""
        with self._lock:
            if self._files[file.name].url != file.url:
                return
            for fresh in self.client.results(self.restoration_id):
                before = self._files.get(fresh.name)
                if before is None or (before.sha256, before.bytes) != (fresh.sha256, fresh.bytes):
                    raise CorruptShard(f"{fresh.name} is not what it was.", "Remove what was fetched, and fetch anew.")
                self._files[fresh.name] = fresh


class _Part:
    """A file that is being filled from its beginning to its known end; what an earlier run left is gone on with."""

    def __init__(self, path: Path, size: int, advance: Advance) -> None:
        self.path, self.size = path, size
        self.advance = advance
        self.have = path.stat().st_size if path.is_file() else 0
        if self.have > size:
            path.unlink()
            self.have = 0
        self.best = self.have
        self.renewed = False
        advance(self.have)

    @property
    def whole(self) -> bool:
        """Whether all bytes are there; empty files are never asked for, since no shard is empty."""
        return self.have >= self.size

    def restart(self) -> None:
        """Throw away what is there."""
        self.path.unlink(missing_ok=True)
        self.advance(-self.have)
        self.have = 0

    def write(self, blocks: Iterator[bytes]) -> None:
        """Add what comes, and no more than is missing."""
        with self.path.open("ab") as file:
            for block in blocks:
                piece = block[: self.size - self.have]
                file.write(piece)
                self.have += len(piece)
                self.best = max(self.best, self.have)
                self.advance(len(piece))
                if self.whole:
                    return

    def finish(self, path: Path) -> None:
        """Give it its name, when its bytes are on the disk."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        self.path.replace(path)


def check_name(name: str) -> None:
    """Raises ServiceError when no result shard is called so: names come from the gateway, and become files here."""
    if not re.fullmatch(r"result-[0-9]{6}\.tar", name):
        raise ServiceError(f"The gateway names a result {name[:100]!a}.", "Tell whoever runs it.")
