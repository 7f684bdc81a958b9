"""A home with the running stack, for the tests of this package: command line, gateway, registry, processes."""

import hashlib
import io
import json
import os
import subprocess
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flows import daemons
from storage.audit import AuditLog, open_audit_log
from storage.keys import open_vault
from storage.objects import ObjectStore, open_store
from storage.png import decode_png
from storage.registry import Registry, open_registry
from storage.settings import Settings
from tasks.method.seal import DataKey

PROJECT = Path(__file__).resolve().parents[2]
SERVICES = ("gateway", "prefect", "worker", "mlflow")
"""The daemons of `dmcp up`, besides the object store."""


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


@dataclass
class Place:
    """A home with a running stack, and a data set `sample` in it: `clean` and the PNGs that protect it."""

    folder: Path
    settings: Settings
    clean: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    protected: list[bytes] = field(default_factory=list)
    ann: str = ""
    operator: str = ""

    def dmcp(self, *arguments: str, token: str = "") -> Done:
        """Run the real command, in a process of its own."""
        environment = os.environ | {
            "DMCP_HOME": str(self.settings.home),
            "DMCP_DATA": str(self.settings.data),
            "DMCP_GATEWAY_PORT": str(self.settings.gateway_port),
            "DMCP_GATEWAY_RATE": self.settings.gateway_rate,
            "DMCP_TOKEN": token,
        }
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", *arguments],
            env=environment,
            cwd=PROJECT,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert "Traceback" not in done.stdout + done.stderr, done.stderr
        return Done(done.returncode, done.stdout, done.stderr)

    def done(self, *arguments: str) -> str:
        """What the real command printed, which went well."""
        done = self.dmcp(*arguments)
        assert done.code == 0, done.err
        return done.out.strip()

    def request(self, folder: Path, token: str) -> str:
        """Hand in a folder and return the request's id."""
        done = self.dmcp("request", str(folder), "--quiet", token=token)
        assert done.code == 0, done.err
        return done.out.strip()

    def registry(self) -> Registry:
        return open_registry(self.settings)

    def audit(self) -> AuditLog:
        return open_audit_log(self.settings)

    def private(self) -> ObjectStore:
        return open_store(self.settings, "private")

    def daemon(self, name: str) -> daemons.Daemon:
        daemon = daemons.find(self.settings.home_path(), name)
        assert daemon is not None, f"{name} does not run"
        return daemon

    def address(self, name: str) -> str:
        return self.daemon(name).address

    def key_of(self, dataset: str) -> DataKey:
        vault = open_vault(self.settings)
        return DataKey(vault.secret(vault.current(dataset).key_id), dataset)

    def restore_runs(self) -> Counter[str]:
        """Flow runs of the deployment `restore`, by state."""
        answer = httpx.post(
            f"{self.address('prefect')}/api/flow_runs/filter", json={"flows": {"name": {"any_": ["restore"]}}}
        )
        return Counter(run["state_type"] for run in answer.json() if run["deployment_id"])

    def caller(self, token: str) -> "Caller":
        """Someone who calls the gateway with this token."""
        return Caller(self.address("gateway"), token)


class Caller:
    """One user of the gateway, by HTTP and nothing else."""

    def __init__(self, address: str, token: str) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.http = httpx.Client(base_url=f"{address}/api/v1", headers=headers, timeout=60, trust_env=False)

    def call(self, method: str, path: str, **more: Any) -> Any:
        """The JSON of an answer that went well."""
        answer = self.http.request(method, path, **more)
        assert answer.is_success, (method, path, answer.status_code, answer.text)
        return answer.json() if answer.content else None

    def refused(self, status: int, error: str, method: str, path: str, **more: Any) -> None:
        """Make a call that must be refused like this, with the way out and an id to ask about."""
        answer = self.http.request(method, path, **more)
        said = answer.json()
        assert (answer.status_code, said["error"]) == (status, error), (method, path, said)
        assert said["what"]
        assert said["request_id"] == answer.headers["X-Request-ID"]

    def pages(self, path: str, **params: Any) -> Iterator[dict[str, Any]]:
        """All items of a list."""
        after = None
        while True:
            page = self.call("GET", path, params=params | ({} if after is None else {"after": after}))
            yield from page["items"]
            after = page["next"]
            if after is None:
                return

    def upload(self, content: bytes, key: str | None = None, **params: str) -> dict[str, Any]:
        """Start the restoration of a zip; as our client does, wait for an earlier try with the same key to be over."""
        headers = {"Content-Type": "application/zip"} | ({} if key is None else {"Idempotency-Key": key})
        deadline = time.monotonic() + 120
        while key is not None and time.monotonic() < deadline:
            answer = self.http.post("/restorations/upload", params=params, content=content, headers=headers)
            if answer.status_code != 409:
                assert answer.is_success, (answer.status_code, answer.text)
                return dict(answer.json())
            time.sleep(1)
        return self.call("POST", "/restorations/upload", params=params, content=content, headers=headers)

    def follow(self, restoration: str, seconds: float = 600) -> list[dict[str, Any]]:
        """The events of a restoration, to its end: what each says."""
        told: list[dict[str, Any]] = []
        deadline = time.monotonic() + seconds
        with self.http.stream("GET", f"/restorations/{restoration}/events") as answer:
            assert answer.status_code == 200
            for line in answer.iter_lines():  # one that says nothing comes every few seconds
                assert time.monotonic() < deadline, told[-1:]
                if line.startswith("data:"):
                    told.append(json.loads(line.removeprefix("data:")))
        return told

    def archive(self, restoration: str) -> dict[str, bytes]:
        """Everything that came back, by name."""
        answer = self.http.get(f"/restorations/{restoration}/archive")
        assert answer.status_code == 200, answer.text
        return unzipped(answer.content)


def wait_until(holds: Callable[[], Any], seconds: float, what: str) -> Any:
    """What `holds` gives, as soon as that is something."""
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.05)
    return found


# --- files -----------------------------------------------------------------------------------------------------------


def zipped(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def unzipped(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        return {info.filename: archive.read(info) for info in archive.infolist()}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def altered(png: bytes) -> bytes:
    """The same image with one upper bit flipped."""
    image = decode_png(png, "x").copy()
    image[9, 9, 1] ^= 0x40
    return encoded(Image.fromarray(image))


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
