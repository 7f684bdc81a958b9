"""The local stack: gateway, object store, Prefect server with a worker, MLflow; on loopback, all state below HOME.

    up(settings)       starts what does not live (any more), waits until it answers, deploys prefect.yaml
    down(settings)     stops all of it
    status(settings)   what lives, and where

What a killed service left running (its children) is ended before it is started again, but for the worker: a
restoration that its worker's death left alone goes on, and is taken up again by another if it dies too.

What a setting places elsewhere (DMCP_S3_ENDPOINT, DMCP_MLFLOW_URI as an http address, PREFECT_API_URL) is used as it is
and never started or stopped here. Prefect of this kind has no users: loopback only, for the operator only.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flows import daemons
from flows.deployments import DEPLOY_SECONDS, call, deploy, live_api, live_workers, make_pool
from flows.environment import PROJECT, quiet_environment, service_environment
from flows.programs import answers, start_gateway, start_mlflow, start_worker
from flows.programs import start_prefect as _start_prefect
from storage.errors import KeyVaultError, ServiceError, WorkspaceBusy
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
SERVICES = ("gateway", "objects", "prefect", "worker", "mlflow")
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
        _up_objects(settings)
        prefect = mlflow = None
        if not os.environ.get("PREFECT_API_URL"):
            prefect = _living(settings, "prefect") or _start_prefect(settings)
        if _mlflow_elsewhere(settings) is None:
            mlflow = _living(settings, "mlflow") or start_mlflow(settings)
        if prefect is not None:
            tell("Waiting for Prefect")
            daemons.wait_ready(home, prefect, answers(f"{prefect.address}/api/health"), START_SECONDS)
        api = _api_with_pool(settings)
        gateway = _up_gateway(settings)
        _up_worker(settings, api, tell)
        tell("Waiting for the gateway")
        daemons.wait_ready(home, gateway, answers(f"{gateway.address}/readyz"), START_SECONDS)
        if mlflow is not None:
            tell("Waiting for MLflow")
            daemons.wait_ready(home, mlflow, answers(f"{mlflow.address}/health"), START_SECONDS)
    return status(settings)


def _up_objects(settings: Settings) -> None:
    if settings.s3_endpoint is not None:
        return
    from storage import server
    from storage.server_state import read_state

    home = settings.home_path()
    before = read_state(home)
    address = server.start(home)
    if before is not None and not address.endpoint.endswith(f":{before.port}"):
        daemons.stop(home, "gateway")  # its port was taken meanwhile: the gateway knows the old one only


def _living(settings: Settings, name: str) -> daemons.Daemon | None:
    """The daemon if it lives; if it was killed, what it left running is ended."""
    home = settings.home_path()
    daemon = daemons.find(home, name)
    if daemon is None:
        daemons.sweep(home, name)
    return daemon


def _up_gateway(settings: Settings) -> daemons.Daemon:
    found = _living(settings, "gateway")
    if found is not None:
        return found
    from flows import access
    from storage.registry import open_registry

    # What is wrong with the registry is said better here than in the gateway's log; the gateway itself needs no key.
    with open_registry(settings) as registry, suppress(KeyVaultError):
        access.adopt_datasets(registry, settings)
    return start_gateway(settings)


def _api_with_pool(settings: Settings) -> str:
    api = live_api(settings)
    if api is None:
        raise ServiceError("The Prefect server stopped again.", "See `dmcp status` for its log.")
    make_pool(api)
    return api


def _up_worker(settings: Settings, api: str, tell: Tell) -> None:
    home = settings.home_path()
    worker = daemons.find(home, "worker")
    if worker is not None and worker.address != api:  # the server has another address than when it was started
        daemons.stop(home, "worker")
        worker = None
    worker = worker or start_worker(settings, api)
    tell("Deploying prefect.yaml")
    deploy(settings, api)
    tell("Waiting for the worker")
    name = worker.command[worker.command.index("--name") + 1]
    daemons.wait_ready(home, worker, lambda: name in live_workers(api), START_SECONDS)


def down(settings: Settings, tell: Tell = lambda text: None) -> list[str]:
    """Stop every service of this HOME: first those that use the others.

    Returns:
        the names of those that ran.
    """
    from concurrent.futures import ThreadPoolExecutor

    from storage import server

    home = settings.home_path()
    with _locked(settings):
        tell("Stopping the gateway and the worker")
        ran = {name: _stop(home, name) for name in ("gateway", "worker")}
        tell("Stopping Prefect, MLflow and the object store")
        with ThreadPoolExecutor() as pool:
            others = ("prefect", "mlflow")
            ran |= dict(zip(others, pool.map(lambda name: _stop(home, name), others), strict=True))
        ran["objects"] = server.stop(home)
    return [name for name in SERVICES if ran[name]]


def _stop(home: Path, name: str) -> bool:
    stopped = daemons.stop(home, name)
    return daemons.sweep(home, name) or stopped


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
