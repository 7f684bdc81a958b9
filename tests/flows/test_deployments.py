"""How Prefect is asked: a server that is busy is asked again, one that is away is not. Against a real HTTP server."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from flows.deployments import BUSY_SECONDS, call


class Server:
    """Answers with what is left in `answers`, a status each (0: it breaks off), then with 200."""

    def __init__(self, httpd: HTTPServer) -> None:
        self.address = f"http://127.0.0.1:{httpd.server_address[1]}"
        self.answers: list[int] = []
        self.asked: list[str] = []


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            state.asked.append(self.path)
            status = state.answers.pop(0) if state.answers else 200
            if status == 0:
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b'{"id": "x"}' if status == 200 else b"")

        def log_message(self, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as httpd:
        state = Server(httpd)
        thread = Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        yield state
        httpd.shutdown()
        thread.join()


def test_a_busy_server_is_asked_until_it_answers(server: Server) -> None:
    server.answers = [503, 0, 429]
    assert call("POST", f"{server.address}/runs", {}) == {"id": "x"}
    assert server.asked == ["/runs"] * 4


@pytest.mark.parametrize("status", [404, 409, 422, 500])
def test_an_answer_that_stays_the_same_is_not_asked_for_again(server: Server, status: int) -> None:
    server.answers = [status]
    assert call("POST", f"{server.address}/runs", {}) is None
    assert len(server.asked) == 1


def test_a_server_that_stays_busy_is_given_up(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("flows.deployments.BUSY_SECONDS", 0.5)
    server.answers = [503] * 1000
    assert call("POST", f"{server.address}/runs", {}) is None
    assert len(server.asked) > 1
    assert "503" in caplog.text, "the log says why"


def test_a_server_that_is_away_costs_no_time() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        start = time.monotonic()
        assert call("GET", f"http://127.0.0.1:{taken.getsockname()[1]}/api/ready") is None
    assert time.monotonic() - start < BUSY_SECONDS / 2
