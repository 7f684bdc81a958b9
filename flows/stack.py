"""The local stack: object store, Prefect server with a worker, MLflow; all on loopback, all state below HOME.

    up(settings)       starts what does not live yet, waits until it answers, deploys prefect.yaml
    down(settings)     stops all of it
    status(settings)   what lives, and where

What a setting places elsewhere (DMCP_S3_ENDPOINT, DMCP_MLFLOW_URI as an http address, PREFECT_API_URL) is used as it is
and never started or stopped here. Prefect of this kind has no users: loopback only, for the operator only.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flows import daemons
from flows.deployments import DEPLOY_SECONDS, POOL, call, deploy, live_api, live_workers, make_pool
from flows.environment import PROJECT, quiet_environment, service_environment
from storage.errors import ServiceError, WorkspaceBusy
from storage.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "PROJECT",
    "SERVICES",
    "Status",
    "down",
    "live_api",
    "live_workers",
    "quiet_environment",
    "service_environment",
    "start_prefect",
    "status",
    "stop_idle_prefect",
    "up",
]

START_SECONDS = 300.0  # a server that starts in 7 s alone takes over a minute on a machine that trains
SERVICES = ("objects", "prefect", "worker", "mlflow")
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Status:
    """One service: `state` is running, stopped or elsewhere (placed there by a setting)."""

    name: str
    state: str
    address: str = ""
    pid: int | None = None
    log: str = ""


# --- Prefect ---------------------------------------------------------------------------------------------------------


def _start_prefect(settings: Settings) -> daemons.Daemon:
    home = settings.home_path()
    port = daemons.port_for(home, "prefect")
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", daemons.LOOPBACK, "--port", str(port)]
    environment = service_environment(settings)
    # The address of the server that the *browser* calls; and never the caller's own PREFECT_API_URL.
    environment["PREFECT_API_URL"] = f"http://{daemons.LOOPBACK}:{port}/api"
    return daemons.start(home, "prefect", command, environment, PROJECT, f"http://{daemons.LOOPBACK}:{port}")


def start_prefect(settings: Settings) -> str:
    """The API address of this HOME's Prefect server, started when it does not live yet.

    Raises:
        ServiceError: it did not start.
    """
    with _locked(settings):
        home = settings.home_path()
        daemon = daemons.find(home, "prefect") or _start_prefect(settings)
        api = f"{daemon.address}/api"
        daemons.wait_ready(home, daemon, lambda: call("GET", f"{api}/health") is not None, START_SECONDS)
        return api


def stop_idle_prefect(settings: Settings) -> None:
    """Stop this HOME's Prefect server unless a worker of `up` needs it."""
    home = settings.home_path()
    with _locked(settings):
        if daemons.find(home, "worker") is None:
            daemons.stop(home, "prefect")


def _start_worker(settings: Settings, api: str) -> daemons.Daemon:
    environment = service_environment(settings) | {"PREFECT_API_URL": api, "PREFECT_WORKER_QUERY_SECONDS": "2"}
    name = f"dmcp-{os.getpid()}-{os.urandom(2).hex()}"
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process", "--name", name]
    # A pipeline run must not keep restore requests waiting, and a hundred requests must not fill the memory.
    command += ["--limit", "4", "--install-policy", "never"]
    return daemons.start(settings.home_path(), "worker", command, environment, PROJECT, api)


# --- MLflow ----------------------------------------------------------------------------------------------------------


def _start_mlflow(settings: Settings) -> daemons.Daemon:
    from tasks.tracking import artifact_folder, open_tracking, tracking_uri

    home = settings.home_path()
    if not (home / "mlflow.db").exists():
        open_tracking(settings)  # makes the tables, alone: a training that starts just now waits for it
    port = daemons.port_for(home, "mlflow")
    command = [sys.executable, "-m", "mlflow", "server", "--host", daemons.LOOPBACK, "--port", str(port)]
    command += ["--backend-store-uri", tracking_uri(settings), "--default-artifact-root", artifact_folder(settings)]
    # Runs write to the database themselves; the server shows them, so one process is enough.
    command += ["--no-serve-artifacts", "--workers", "1"]
    # Its job runner is seven more processes and a gigabyte, for features that nothing here uses.
    environment = service_environment(settings) | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    return daemons.start(home, "mlflow", command, environment, PROJECT, f"http://{daemons.LOOPBACK}:{port}")


def _mlflow_elsewhere(settings: Settings) -> str | None:
    uri = settings.mlflow_uri
    return uri if uri and uri.startswith(("http://", "https://")) else None


# --- all of it -------------------------------------------------------------------------------------------------------


@contextmanager
def _locked(settings: Settings) -> Iterator[None]:
    """One process at a time starts or stops services of this HOME."""
    from filelock import FileLock, Timeout

    path = settings.home_path("run", "stack.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    settings.home_path().chmod(0o700)
    try:
        with FileLock(path, timeout=START_SECONDS + DEPLOY_SECONDS):
            yield
    except Timeout:
        raise WorkspaceBusy("Another process starts or stops the local stack.", "Try again when it is done.") from None


def up(settings: Settings, tell: Tell = lambda text: None) -> list[Status]:
    """Start what does not live; see the module's text. Safe to call again at any time.

    Raises:
        ServiceError: a service did not start; the message holds the end of its log.
        WorkspaceBusy: another process is at it for minutes.
    """
    home = settings.home_path()
    with _locked(settings):
        tell("Starting object store, Prefect and MLflow")
        if settings.s3_endpoint is None:
            from storage import server

            server.start(home)
        prefect = mlflow = None
        if not os.environ.get("PREFECT_API_URL"):
            prefect = daemons.find(home, "prefect") or _start_prefect(settings)
        if _mlflow_elsewhere(settings) is None:
            mlflow = daemons.find(home, "mlflow") or _start_mlflow(settings)
        if prefect is not None:
            tell("Waiting for Prefect")
            daemons.wait_ready(home, prefect, _answers(f"{prefect.address}/api/health"), START_SECONDS)
        _up_worker(settings, tell)
        if mlflow is not None:
            tell("Waiting for MLflow")
            daemons.wait_ready(home, mlflow, _answers(f"{mlflow.address}/health"), START_SECONDS)
    return status(settings)


def _answers(url: str) -> Callable[[], bool]:
    def check() -> bool:
        import httpx

        try:
            return httpx.get(url, timeout=5, trust_env=False).is_success
        except httpx.HTTPError:
            return False

    return check


def _up_worker(settings: Settings, tell: Tell) -> None:
    api = live_api(settings)
    if api is None:
        raise ServiceError("The Prefect server stopped again.", "See `dmcp status` for its log.")
    home = settings.home_path()
    make_pool(api)
    worker = daemons.find(home, "worker")
    if worker is not None and worker.address != api:  # the server has another address than when it was started
        daemons.stop(home, "worker")
        worker = None
    worker = worker or _start_worker(settings, api)
    tell("Deploying prefect.yaml")
    deploy(settings, api)
    tell("Waiting for the worker")
    name = worker.command[worker.command.index("--name") + 1]
    daemons.wait_ready(home, worker, lambda: name in live_workers(api), START_SECONDS)


def down(settings: Settings, tell: Tell = lambda text: None) -> list[str]:
    """Stop every service of this HOME, the worker first.

    Returns:
        the names of those that ran.
    """
    from concurrent.futures import ThreadPoolExecutor

    from storage import server

    home = settings.home_path()
    with _locked(settings):
        tell("Stopping the worker")
        ran = {"worker": daemons.stop(home, "worker")}
        tell("Stopping Prefect, MLflow and the object store")
        with ThreadPoolExecutor() as pool:
            others = ("prefect", "mlflow")
            ran |= dict(zip(others, pool.map(lambda name: daemons.stop(home, name), others), strict=True))
        ran["objects"] = server.stop(home)
    return [name for name in SERVICES if ran[name]]


def status(settings: Settings) -> list[Status]:
    """Every service, in the order of SERVICES."""
    home = settings.home_path()
    elsewhere = {
        "objects": settings.s3_endpoint,
        "prefect": os.environ.get("PREFECT_API_URL"),
        "mlflow": _mlflow_elsewhere(settings),
    }
    found = []
    for name in SERVICES:
        daemon = daemons.find(home, name)
        if elsewhere.get(name):
            found.append(Status(name, "elsewhere", str(elsewhere[name])))
        elif name == "objects":
            found.append(_objects_status(home))
        elif daemon:
            address = "" if name == "worker" else daemon.address  # of a worker: the server that it asks for work
            found.append(Status(name, "running", address, daemon.pid, daemon.log))
        else:
            found.append(Status(name, "stopped"))
    return found


def _objects_status(home: Path) -> Status:
    from storage.server import running_address
    from storage.server_state import log_file, read_state

    try:
        address = running_address(home)
    except ServiceError:
        return Status("objects", "stopped")
    state = read_state(home)
    return Status("objects", "running", address.endpoint, state.pid if state else None, str(log_file(home)))
