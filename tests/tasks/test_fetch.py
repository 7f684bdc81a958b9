"""Against a real server on loopback that supports ranges and breaks connections."""

import hashlib
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from storage.errors import DownloadError
from tasks.fetch import fetch

BODY = random.Random(0).randbytes(3_000_000)
MD5 = hashlib.md5(BODY).hexdigest()


@dataclass
class Behaviour:
    """Bytes after which each answer breaks off, statuses that come first, whether the server knows ranges."""

    breaks: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    ranges: bool = True
    body: bytes = BODY
    asked: list[str | None] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[tuple[str, Behaviour]]:
    behaviour = Behaviour()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            behaviour.asked.append(asked)
            if self.path == "/moved":
                self.answer(302, b"", {"Location": "/file"})
            elif behaviour.statuses:
                self.answer(behaviour.statuses.pop(0), b"later", {})
            elif asked and behaviour.ranges:
                self.partial(int(asked.removeprefix("bytes=").removesuffix("-")))
            else:
                self.answer(200, behaviour.body, {})

        def partial(self, first: int) -> None:
            size = len(behaviour.body)
            if first >= size:
                self.answer(416, b"", {"Content-Range": f"bytes */{size}"})
            else:
                self.answer(206, behaviour.body[first:], {"Content-Range": f"bytes {first}-{size - 1}/{size}"})

        def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if status in (200, 206) and behaviour.breaks:
                self.wfile.write(body[: behaviour.breaks.pop(0)])
                self.close_connection = True
            else:
                self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}/file", behaviour
        http.shutdown()


def test_a_plain_download_is_kept(server: tuple[str, Behaviour], tmp_path: Path) -> None:
    address, behaviour = server
    heard: list[tuple[str, int, int | None]] = []
    path = fetch(address, tmp_path / "deep" / "file.zip", MD5, lambda *said: heard.append(said))
    assert path.read_bytes() == BODY
    assert heard[-1] == ("file.zip", len(BODY), len(BODY))
    fetch(address, path, MD5)
    assert behaviour.asked == [None]
    assert [p.name for p in path.parent.iterdir() if not p.name.endswith(".lock")] == ["file.zip"]


def test_a_broken_download_goes_on_where_it_broke(server: tuple[str, Behaviour], tmp_path: Path) -> None:
    address, behaviour = server
    behaviour.breaks = [1_000_000, 0, 500_000]
    heard: list[int] = []
    path = fetch(address, tmp_path / "file", MD5, lambda name, done, total: heard.append(done), wait=0.01)
    assert path.read_bytes() == BODY
    assert behaviour.asked == [None, "bytes=1000000-", "bytes=1000000-", "bytes=1500000-"]
    assert heard == sorted(heard)


def test_the_next_process_goes_on_too(server: tuple[str, Behaviour], tmp_path: Path) -> None:
    address, behaviour = server
    behaviour.breaks = [2_000_000, 0, 0]
    with pytest.raises(DownloadError, match="could not be downloaded"):
        fetch(address, tmp_path / "file", MD5, wait=0.01, attempts=2)
    assert (tmp_path / "file.part").stat().st_size == 2_000_000
    behaviour.breaks, behaviour.asked = [], []
    assert fetch(address, tmp_path / "file", MD5).read_bytes() == BODY
    assert behaviour.asked == ["bytes=2000000-"]


def test_a_part_that_is_whole_needs_no_byte(server: tuple[str, Behaviour], tmp_path: Path) -> None:
    address, behaviour = server
    (tmp_path / "file.part").write_bytes(BODY)
    assert fetch(address, tmp_path / "file", MD5).read_bytes() == BODY
    assert behaviour.asked == [f"bytes={len(BODY)}-"]


@pytest.mark.parametrize("left", [b"x" * 1000, b"x" * (len(BODY) + 5), b"x" * len(BODY)])
def test_a_part_of_something_else_is_dropped(server: tuple[str, Behaviour], tmp_path: Path, left: bytes) -> None:
    address, _ = server
    (tmp_path / "file.part").write_bytes(left)
    assert fetch(address, tmp_path / "file", MD5, wait=0.01).read_bytes() == BODY


def test_a_server_without_ranges(server: tuple[str, Behaviour], tmp_path: Path) -> None:
    address, behaviour = server
    behaviour.ranges, behaviour.breaks = False, [1_000_000]
    assert fetch(address, tmp_path / "file", MD5, wait=0.01).read_bytes() == BODY


def test_a_busy_server_is_asked_again_and_a_refusal_is_final(server: tuple[str, Behaviour], tmp_path: Path) -> None:
    address, behaviour = server
    behaviour.statuses = [503, 429]
    assert fetch(address, tmp_path / "a", MD5, wait=0.01).read_bytes() == BODY
    behaviour.statuses, behaviour.asked = [404], []
    with pytest.raises(DownloadError, match="404"):
        fetch(address, tmp_path / "b", MD5, wait=0.01)
    assert len(behaviour.asked) == 1


def test_redirects_are_followed(server: tuple[str, Behaviour], tmp_path: Path) -> None:
    address, _ = server
    assert fetch(address.replace("/file", "/moved"), tmp_path / "a", MD5).read_bytes() == BODY


def test_the_wrong_file_is_refused_and_not_kept(server: tuple[str, Behaviour], tmp_path: Path) -> None:
    address, behaviour = server
    behaviour.body = BODY[:-1] + b"?"
    with pytest.raises(DownloadError, match="MD5") as caught:
        fetch(address, tmp_path / "file", MD5)
    assert "DMCP_MIRROR" in caught.value.cure
    assert [p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")] == []


def test_a_damaged_file_of_before_is_replaced(server: tuple[str, Behaviour], tmp_path: Path) -> None:
    address, _ = server
    (tmp_path / "file").write_bytes(b"damaged")
    assert fetch(address, tmp_path / "file", MD5).read_bytes() == BODY


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(DownloadError):
        fetch("http://127.0.0.1:9/file", tmp_path / "file", MD5, wait=0.01, attempts=2)
