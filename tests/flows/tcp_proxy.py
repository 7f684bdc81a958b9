"""A TCP proxy on loopback that behaves as badly as a network: cuts connections, loses answers, is slow or down."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field


@dataclass
class Fault:
    """Hits one call, the next whose head holds `match`: after so many bytes of its body, or of its answer."""

    match: bytes
    body: int | None = None
    answer: int | None = None


@dataclass
class Proxy:
    """Forwards to a port of this machine."""

    target: int
    port: int = 0
    down: bool = False
    drop: bytes = b""  # calls whose head holds this get no answer
    stall: bytes = b""  # calls whose head holds this arrive, and their answers do not come
    faults: list[Fault] = field(default_factory=list)
    rate: float = 0.0  # bytes of answers a second, on each connection; 0: as fast as it goes
    calls: list[str] = field(default_factory=list)
    answered: int = 0  # bytes of answers
    open: set["_Connection"] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def count(self, begin: str) -> int:
        """Calls that began like this."""
        return sum(call.startswith(begin) for call in self.calls)

    def cut_all(self) -> None:
        """Cut every connection that is open."""
        for connection in list(self.open):
            connection.close()

    def serve(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            if self.down:
                near.close()
            else:
                threading.Thread(target=self._forward, args=(near,), daemon=True).start()

    def _forward(self, near: socket.socket) -> None:
        with near, suppress(OSError), socket.create_connection(("127.0.0.1", self.target)) as far:
            _Connection(self, near, far).run()


class _Connection:
    """One connection, both ways."""

    def __init__(self, proxy: Proxy, near: socket.socket, far: socket.socket) -> None:
        self.proxy, self.near, self.far = proxy, near, far
        self.body_left: int | None = None
        self.answer_left: int | None = None
        self.stalled = False

    def run(self) -> None:
        self.proxy.open.add(self)
        back = threading.Thread(target=self._down, daemon=True)
        back.start()
        self._up()
        back.join()
        self.proxy.open.discard(self)

    def _up(self) -> None:
        with suppress(OSError):
            while data := self.near.recv(1 << 14):
                head, ends, _ = data.partition(b"\r\n\r\n")
                if ends and b" HTTP/1.1\r\n" in head:
                    if self.proxy.drop and self.proxy.drop in head:
                        break
                    self.proxy.calls.append(head.split(b" HTTP/1.1", 1)[0].decode("latin-1"))
                    self.stalled = bool(self.proxy.stall) and self.proxy.stall in head
                    self._meet_fault(head, len(head) + 4)
                if not self._send(self.far, data, "body_left"):
                    break
        self.close()

    def _meet_fault(self, head: bytes, size: int) -> None:
        for fault in self.proxy.faults:
            if fault.match in head:
                self.proxy.faults.remove(fault)
                self.body_left = None if fault.body is None else fault.body + size
                self.answer_left = fault.answer
                return

    def _down(self) -> None:
        with suppress(OSError):
            while data := self.far.recv(1 << 14):
                if self.stalled:
                    continue
                self.proxy.answered += len(data)
                if not self._send(self.near, data, "answer_left"):
                    break
                if self.proxy.rate:
                    time.sleep(len(data) / self.proxy.rate)
        self.close()

    def _send(self, sink: socket.socket, data: bytes, left: str) -> bool:
        """Pass on what may still pass; False: nothing more may."""
        most = getattr(self, left)
        sink.sendall(data if most is None else data[:most])
        if most is None:
            return True
        setattr(self, left, most - len(data))
        return bool(most > len(data))

    def close(self) -> None:
        """End both ways."""
        for end in (self.near, self.far):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextmanager
def proxy(target: int) -> Iterator[Proxy]:
    """A proxy before a port of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        made = Proxy(target, listener.getsockname()[1])
        threading.Thread(target=made.serve, args=(listener,), daemon=True).start()
        yield made
        listener.shutdown(socket.SHUT_RDWR)
