"""The real gateway over HTTP on loopback, with a real registry and a real object server, and people who call it."""

import io
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import numpy as np
import pytest
import uvicorn

from flows.gateway.app import create_app
from flows.gateway.state import Gateway
from storage.objects import ObjectStore
from storage.png import encode_png
from storage.publication import publish
from storage.registry import Registry
from storage.registry_models import Token
from storage.server import ServerAddress
from storage.settings import Settings
from storage.shards import Sample, read_shard, write_shard
from tasks.request import fetch_index, fetch_input, make_report, put_report, put_result, result_name, wanted
from tests.services import make_variant, object_home, object_server

__all__ = ["object_home", "object_server"]

API = "/api/v1"
CALLERS = ("none", "malformed", "expired", "revoked", "disabled", "user", "other", "owner", "other_owner", "operator")
STRANGERS = CALLERS[:5]


def png(seed: int = 0, side: int = 16) -> bytes:
    return encode_png(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


@dataclass
class Site:
    """A running gateway."""

    settings: Settings
    gateway: Gateway
    app: Any
    address: str
    tokens: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    client: httpx.Client = field(default_factory=httpx.Client)

    @property
    def registry(self) -> Registry:
        return self.gateway.registry

    @property
    def private(self) -> ObjectStore:
        return self.gateway.private

    def call(self, method: str, path: str, caller: str = "user", **more: Any) -> httpx.Response:
        """One call of the API."""
        headers = self.headers(caller) | more.pop("headers", {})
        where = path if path.startswith("http") else f"{self.address}{path if path[:1] == '/' else f'{API}/{path}'}"
        return self.client.request(method, where, headers=headers, **more)

    def headers(self, caller: str) -> dict[str, str]:
        return {} if caller == "none" else {"Authorization": f"Bearer {self.tokens[caller]}"}

    def upload(self, data: bytes, kind: str = "application/zip", caller: str = "user", **more: Any) -> httpx.Response:
        return self.call("POST", "restorations/upload", caller, content=data, headers={"Content-Type": kind}, **more)

    def id_of(self, caller: str) -> int:
        return self.registry.get_user(self.names[caller]).id

    def left_behind(self) -> list[Path]:
        """What lies in the workspace."""
        return list(self.gateway.uploads.folder.iterdir())

    def actions(self, request_id: str) -> list[str]:
        return [entry.action for entry in self.gateway.audit.entries(request_id=request_id)]

    def serve(self, request_id: str, state: str = "done") -> None:
        """What a worker does with a request, but for the restoring: it gives back what was handed in."""
        request = self.registry.claim_request(request_id)
        index = fetch_index(self.private, request)
        folder = self.settings.home_path("worker", request_id)
        folder.mkdir(parents=True)
        infos, keys = [], []
        for number, entry in enumerate(index.shards):
            path = fetch_input(self.private, request_id, index, entry, folder, self.gateway.public)
            samples = wanted(index, read_shard(path))
            grant = self.registry.authorise(request.user_id, "tiny", images=len(samples))
            self.registry.charge(request_id, number, grant.id, len(samples))
            infos.append(write_shard(folder / result_name(number), [Sample(s.key, s.png, s.label) for s in samples]))
            put_result(self.private, request_id, folder, infos[-1], request.attempt)
            keys += [sample.key for sample in samples]
        attempts = {info.name: request.attempt for info in infos}
        report = make_report(request_id, index, infos, keys, [], attempts)
        result = put_report(self.private, report, request.attempt)
        self.registry.set_request_state(
            request_id,
            state,
            restored=len(keys),
            refused=0,
            result=result,
            attempt=request.attempt,  # type: ignore[arg-type]
        )


@contextmanager
def running(settings: Settings, dispatch: bool = False) -> Iterator[Site]:
    """The application under uvicorn, on a free port, in a thread."""
    app = create_app(settings, dispatch=dispatch)
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=2)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the gateway did not start"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    with httpx.Client(timeout=120) as client:
        yield Site(settings, app.state.gateway, app, f"http://127.0.0.1:{port}", client=client)
    server.should_exit = True
    thread.join(60)
    assert not thread.is_alive()


@pytest.fixture(scope="session")
def make_settings(object_server: ServerAddress, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Settings]:
    """Settings of a HOME, registry and buckets of their own."""

    def make(**more: Any) -> Settings:
        name = uuid4().hex[:12]
        return Settings(
            home=tmp_path_factory.mktemp("gateway"),
            s3_endpoint=object_server.endpoint,
            s3_access_key=object_server.access_key,
            s3_secret_key=object_server.secret_key,
            s3_public_bucket=f"public-{name}",
            s3_private_bucket=f"private-{name}",
            **{"gateway_rate": "100000/second", "gateway_login_rate": "100000/second", **more},
        )

    return make


@contextmanager
def peopled(settings: Settings, folder: Path) -> Iterator[Site]:
    """A gateway with everyone who calls it, a published data set `tiny` of `owner`, and a grant of `user` for it."""
    with running(settings) as site:
        people(site)
        make_variant(folder / "tiny")
        publish(folder / "tiny", site.gateway.public, "tiny")
        yield site


@pytest.fixture(scope="module")
def site(make_settings: Callable[..., Settings], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One for all tests of a module."""
    with peopled(make_settings(upload_limit=4 << 20), tmp_path_factory.mktemp("variant")) as site:
        yield site


def people(site: Site) -> None:
    """Everyone in CALLERS, and the data sets `tiny` of `owner` and `else` of `other_owner`."""
    registry = site.registry
    for caller in CALLERS[2:]:
        role = {"owner": "owner", "other_owner": "owner", "operator": "operator"}.get(caller, "user")
        site.names[caller] = f"{caller.replace('_', '-')}@lab.example"
        site.tokens[caller] = registry.add_user(site.names[caller], role)  # type: ignore[arg-type]
    site.tokens["malformed"] = "dmcp_short"
    with registry.write() as session:
        for token in registry.list_tokens(site.names["expired"]):
            session.get(Token, token.id).expires = datetime.now(UTC) - timedelta(days=1)  # type: ignore[union-attr]
    for token in registry.list_tokens(site.names["revoked"]):
        registry.revoke_token(token.id)
    registry.set_disabled(site.names["disabled"], True)
    registry.register_dataset("tiny", site.names["owner"])
    registry.register_dataset("else", site.names["other_owner"])
    registry.set_terms("tiny", "Be nice.")
    registry.accept_terms(site.id_of("user"), "tiny", 1)
    registry.grant(site.names["user"], "tiny")
