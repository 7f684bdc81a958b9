"""The Prefect server of a run: what it is told before it may go."""

import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from uuid import uuid4

import pytest

from flows import services


class Listener(BaseHTTPRequestHandler):
    """Answers like a server that has nothing to say, and keeps the logs that it is sent."""

    heard: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.answer(404)  # as a server that is older than what is asked for

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith("/logs/"):
            self.heard.extend(entry["message"] for entry in json.loads(body))
        self.answer(201)

    def answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def api() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Listener) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/api"
        server.shutdown()


def test_logs_are_sent_before_the_server_may_go(home: Path, api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import flows.engine  # noqa: F401 - Prefect is imported with our environment, here as everywhere

    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setattr(services, "_ensure_server", lambda conf: api)
    with services.prefect_server():
        logging.getLogger("prefect.flow_runs").info("the last words", extra={"flow_run_id": uuid4()})
    assert Listener.heard == ["the last words"]
