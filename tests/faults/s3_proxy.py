"""An S3 server that fails: a proxy on loopback before the real one, which hits requests with the faults of a network.

Which request meets which fault is drawn from a seed. With `conditions` it also honours If-None-Match and If-Match, one
request at a time, as AWS and Ceph do and the embedded server does not: so a conditional put whose answer is lost can
be tried anywhere. Signatures pass through untouched, because the `Host` header does.
"""

import hashlib
import json
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from enum import Enum
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from storage.guarantee import PROBE
from storage.objects import ObjectStore
from storage.server import ServerAddress


class Fault(Enum):
    """What may happen to a request."""

    UNAVAILABLE = "503 instead of an answer"
    SLOW = "an answer that takes its time"
    RESET_REQUEST = "the connection is reset in the middle of the request's body, which the server sees"
    TRUNCATED = "the answer's body ends too early"
    RESET_ANSWER = "the connection is reset in the middle of the answer's body"
    DUPLICATE = "the request is delivered twice"
    LOST_ANSWER = "the request is done, and its answer never comes"


BUSY = b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>'
STALE = b'<?xml version="1.0"?><Error><Code>PreconditionFailed</Code><Message>The condition fails.</Message></Error>'
HOP = {"connection", "keep-alive", "transfer-encoding", "expect"}
SLOW_SECONDS = 0.2


class FaultyServer(ThreadingHTTPServer):
    """The proxy.

    Args:
        target: the real server.
        rate: share of the requests that meet a fault.
        faults: which ones, each as likely.
        seed: of the draw.
        conditions: honour conditional puts.
    """

    daemon_threads = True

    def __init__(
        self, target: ServerAddress, rate: float, faults: tuple[Fault, ...], seed: int, conditions: bool
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target, self.rate, self.faults, self.conditions = target, rate, faults, conditions
        self.met: Counter[Fault] = Counter()
        self.requests = 0
        self.writing = threading.Lock()
        self._stores: dict[str, ObjectStore] = {}
        self._random, self._drawing = random.Random(seed), threading.Lock()

    @property
    def address(self) -> ServerAddress:
        """Where clients find the proxy; with the real server's credentials."""
        return replace(self.target, endpoint=f"http://127.0.0.1:{self.server_address[1]}")

    def store(self, bucket: str) -> ObjectStore:
        """The real server's bucket, past all faults."""
        if bucket not in self._stores:
            self._stores[bucket] = self.target.store(bucket)
        return self._stores[bucket]

    def draw(self) -> Fault | None:
        """The next request's fault."""
        with self._drawing:
            self.requests += 1
            if not self.faults or self._random.random() >= self.rate:
                return None
            fault = self._random.choice(self.faults)
            self.met[fault] += 1
            return fault

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections end here all the time."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyServer

    def _handle(self) -> None:
        size = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(size)
        fault = self.server.draw()
        if fault is Fault.UNAVAILABLE:
            self._answer(503, {"Content-Type": "application/xml"}, BUSY)
        elif fault is Fault.RESET_REQUEST and body:
            self._deliver_half(body)
            self._reset()
        else:
            if fault is Fault.SLOW:
                time.sleep(SLOW_SECONDS)
            if fault is Fault.DUPLICATE:
                self._forward(body)
            self._pass_on(*self._forward(body), fault)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _handle

    def _pass_on(self, status: int, headers: dict[str, str], content: bytes, fault: Fault | None) -> None:
        if fault in (Fault.LOST_ANSWER, Fault.RESET_REQUEST):
            self._reset()
        elif fault in (Fault.TRUNCATED, Fault.RESET_ANSWER):
            self._answer(status, headers, content, len(content) // 2)
            self._reset() if fault is Fault.RESET_ANSWER else self._end()
        else:
            self._answer(status, headers, content)

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Have the real server do it; a conditional put only while its condition holds, with nothing in between."""
        wanted = {name: self.headers[name] for name in ("If-None-Match", "If-Match") if name in self.headers}
        if self.command == "PUT" and self.server.conditions:
            with self.server.writing:
                if wanted and not self._holds(wanted):
                    return 412, {"Content-Type": "application/xml"}, STALE
                return self._ask(body)
        return self._ask(body)

    def _holds(self, wanted: dict[str, str]) -> bool:
        bucket, _, key = self.path.split("?")[0].lstrip("/").partition("/")
        store = self.server.store(bucket)
        there = store.head(key).etag if store.exists(key) else None
        if "If-None-Match" in wanted:
            return there is None
        return there is not None and wanted["If-Match"].strip('"') == there

    def _ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        with self._connection() as connection:
            self._send_head(connection, len(body))
            connection.send(body)
            answer = connection.getresponse()
            headers = {name: value for name, value in answer.getheaders() if name.lower() not in HOP}
            return answer.status, headers, answer.read()

    def _deliver_half(self, body: bytes) -> None:
        with suppress(OSError, HTTPException), self._connection() as connection:
            self._send_head(connection, len(body))
            connection.send(body[: len(body) // 2])

    def _send_head(self, connection: HTTPConnection, size: int) -> None:
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in HOP:
                connection.putheader(name, value)
        if size and "Content-Length" not in self.headers:
            connection.putheader("Content-Length", str(size))
        connection.endheaders()

    @contextmanager
    def _connection(self) -> Iterator[HTTPConnection]:
        host, _, port = self.server.target.endpoint.removeprefix("http://").partition(":")
        connection = HTTPConnection(host, int(port), timeout=60)
        try:
            yield connection
        finally:
            connection.close()

    def _answer(self, status: int, headers: dict[str, str], content: bytes, most: int | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() != "content-length":
                self.send_header(name, value)
        length = headers.get("Content-Length", str(len(content))) if self.command == "HEAD" else str(len(content))
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:most])
        self.wfile.flush()

    def _reset(self) -> None:
        """End the connection with RST, as a crashed machine does."""
        with suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._end()

    def _end(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.close()

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@contextmanager
def faulty(
    target: ServerAddress,
    rate: float = 0.0,
    faults: tuple[Fault, ...] = tuple(Fault),
    seed: int = 0,
    conditions: bool = True,
) -> Iterator[FaultyServer]:
    """A proxy for the length of a block."""
    with FaultyServer(target, rate, faults, seed, conditions) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def snapshot(target: ServerAddress, bucket: str) -> dict[str, str]:
    """`contents` of a bucket, past all faults."""
    return contents(target.store(bucket))


def contents(store: ObjectStore) -> dict[str, str]:
    """What lies in a bucket: key -> SHA-256, without times (of the channel) and scratch objects."""
    found = {entry.key: store.get_bytes(entry.key) for entry in store.list() if not entry.key.startswith(PROBE)}
    return {key: hashlib.sha256(_timeless(key, data)).hexdigest() for key, data in found.items()}


def _timeless(key: str, data: bytes) -> bytes:
    return json.dumps(json.loads(data)["version"]).encode() if "/channels/" in key else data
