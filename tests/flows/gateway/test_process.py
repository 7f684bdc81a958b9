"""The gateway as `compose.yaml` runs it: a process of its own, on PostgreSQL, with its secrets in files."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from storage.objects import open_store
from storage.registry import Registry, open_registry
from storage.server import ServerAddress
from storage.settings import Settings
from tests.flows.gateway.conftest import API, Site, png, zipped
from tests.postgres import postgres

__all__ = ["postgres"]

PROJECT = Path(__file__).resolve().parents[3]


@contextmanager
def process(folder: Path, environment: dict[str, str]) -> Iterator[tuple[subprocess.Popen[bytes], str, Path]]:
    """`python -m flows.gateway`: the process, its address, its log."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / "log"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("DMCP_")}
    with log.open("wb") as sink:
        running = subprocess.Popen(
            [sys.executable, "-m", "flows.gateway"],
            env=inherited | environment | {"DMCP_GATEWAY_PORT": str(port)},
            cwd=PROJECT,
            stdin=subprocess.DEVNULL,
            stderr=sink,
            stdout=sink,
        )
        try:
            yield running, f"http://127.0.0.1:{port}", log
        finally:
            running.kill()
            running.wait()


def wait_ready(running: "subprocess.Popen[bytes]", address: str, log: Path) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert running.poll() is None, log.read_text()
        try:
            if httpx.get(f"{address}/readyz", timeout=30).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    pytest.fail(log.read_text())


@pytest.fixture
def placed(
    tmp_path: Path, postgres: Callable[[], str], object_server: ServerAddress
) -> tuple[Settings, dict[str, str]]:
    """Settings, and the same as an environment with a folder of secrets."""
    url = postgres()
    secrets = tmp_path / "secrets"
    secrets.mkdir(mode=0o700)
    hidden = {"registry_url": url, "s3_access_key": object_server.access_key, "s3_secret_key": object_server.secret_key}
    for name, value in hidden.items():
        (secrets / f"dmcp_{name}").write_text(f"{value}\n")
    open_ = {
        "home": str(tmp_path / "home"),
        "s3_endpoint": object_server.endpoint,
        "s3_public_bucket": "process-public",
        "s3_private_bucket": "process-private",
    }
    environment = {f"DMCP_{name.upper()}": value for name, value in open_.items()}
    settings = Settings(**(open_ | hidden))  # type: ignore[arg-type]
    return settings, environment | {"DMCP_SECRETS_DIR": str(secrets), "PREFECT_API_URL": "http://127.0.0.1:9/api"}


def people(registry: Registry, site: Site) -> None:
    site.tokens = {"user": registry.add_user("ann"), "operator": registry.add_user("root", "operator")}
    registry.add_user("olga", "owner")
    registry.register_dataset("tiny", "olga")
    registry.grant("ann", "tiny", quota=10)


def test_a_restoration_on_postgresql(placed: tuple[Settings, dict[str, str]], tmp_path: Path) -> None:
    settings, environment = placed
    with process(tmp_path, environment) as (running, address, log), open_registry(settings) as registry:
        wait_ready(running, address, log)
        site = Site(settings, None, None, address)  # type: ignore[arg-type]
        people(registry, site)
        request_id = site.upload(zipped({"a.png": png(1), "b.png": png(2)})).json()["id"]
        assert site.call("GET", f"restorations/{request_id}").json()["state"] == "pending"
        ends = time.monotonic() + 60
        while "requests wait" not in log.read_text() and time.monotonic() < ends:  # no Prefect server answers here
            time.sleep(0.2)
        serve(settings, registry, site, request_id)
        assert site.call("GET", f"restorations/{request_id}").json()["restored"] == 2
        assert site.call("GET", f"restorations/{request_id}/archive").content[:2] == b"PK"
        assert site.call("GET", "operator/audit/verify", "operator").json()["whole"]
        metrics = site.call("GET", "/metrics", "operator").text
        assert 'dmcp_restorations{state="done"} 1.0' in metrics
        assert (
            f'dmcp_http_requests_total{{method="POST",route="{API}/restorations/upload",status="201"}} 1.0' in metrics
        )
        running.send_signal(signal.SIGTERM)
        running.wait(60)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {line["logger"] for line in lines} >= {"uvicorn.error", "dmcp.gateway", "dmcp.dispatcher"}
    assert "uvicorn.access" not in {line["logger"] for line in lines}
    assert any("requests wait" in line["message"] for line in lines)
    for secret in (*site.tokens.values(), settings.s3_secret_key.get_secret_value()):  # type: ignore[union-attr]
        assert secret not in log.read_text()


def serve(settings: Settings, registry: Registry, site: Site, request_id: str) -> None:
    """What a worker does, but for the restoring."""
    from types import SimpleNamespace

    private = open_store(settings, "private")
    site.gateway = SimpleNamespace(registry=registry, private=private, public=None)  # type: ignore[assignment]
    site.serve(request_id)


def test_settings_that_can_not_be_used_end_it_with_a_word(tmp_path: Path) -> None:
    environment = {"DMCP_HOME": str(tmp_path / "home"), "DMCP_SECRETS_DIR": str(tmp_path / "nowhere")}
    with process(tmp_path, environment) as (running, _, log):
        assert running.wait(60) == 4
    assert "DMCP_SECRETS_DIR names no folder" in log.read_text()
