"""How each service of the local stack is started: command line, environment, address. `flows/stack.py` says when.

All of them listen on loopback. The gateway listens where DMCP_GATEWAY_HOST and DMCP_GATEWAY_PORT say; where the port is
the default one and something else has it, on a free port, remembered like the others.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress

import psutil

from flows import daemons
from flows.deployments import POOL
from flows.environment import PROJECT, service_environment
from storage.errors import ServiceError
from storage.ports import LOOPBACK, is_free
from storage.settings import Settings

EVERYWHERE = ("0.0.0.0", "::", "")
WORKER_NICENESS = 10
"""On one machine with the gateway, what is restored must not keep those waiting who only look."""


def start_prefect(settings: Settings) -> daemons.Daemon:
    """The Prefect server."""
    home = settings.home_path()
    port = daemons.port_for(home, "prefect")
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", LOOPBACK, "--port", str(port)]
    environment = service_environment(settings)
    # The address of the server that the *browser* calls; and never the caller's own PREFECT_API_URL.
    environment["PREFECT_API_URL"] = f"http://{LOOPBACK}:{port}/api"
    return daemons.start(home, "prefect", command, environment, PROJECT, f"http://{LOOPBACK}:{port}")


def start_worker(settings: Settings, api: str) -> daemons.Daemon:
    """A Prefect worker that takes runs of our pool from this server."""
    environment = service_environment(settings) | {"PREFECT_API_URL": api, "PREFECT_WORKER_QUERY_SECONDS": "2"}
    name = f"dmcp-{os.getpid()}-{os.urandom(2).hex()}"
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process", "--name", name]
    # A pipeline run must not keep restore requests waiting, and a hundred requests must not fill the memory.
    command += ["--limit", "4", "--install-policy", "never"]
    daemon = daemons.start(settings.home_path(), "worker", command, environment, PROJECT, api)
    with suppress(psutil.Error):
        psutil.Process(daemon.pid).nice(WORKER_NICENESS)
    return daemon


def start_mlflow(settings: Settings) -> daemons.Daemon:
    """The MLflow server, which shows what is in HOME/mlflow.db."""
    from tasks.tracking import artifact_folder, open_tracking, tracking_uri

    home = settings.home_path()
    if not (home / "mlflow.db").exists():
        open_tracking(settings)  # makes the tables, alone: a training that starts just now waits for it
    port = daemons.port_for(home, "mlflow")
    command = [sys.executable, "-m", "mlflow", "server", "--host", LOOPBACK, "--port", str(port)]
    command += ["--backend-store-uri", tracking_uri(settings), "--default-artifact-root", artifact_folder(settings)]
    # Runs write to the database themselves; the server shows them, so one process is enough.
    command += ["--no-serve-artifacts", "--workers", "1"]
    # Its job runner is seven more processes and a gigabyte, for features that nothing here uses.
    environment = service_environment(settings) | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    return daemons.start(home, "mlflow", command, environment, PROJECT, f"http://{LOOPBACK}:{port}")


def start_gateway(settings: Settings) -> daemons.Daemon:
    """The gateway.

    Raises:
        ServiceError: the port that a setting names is taken.
    """
    home, host = settings.home_path(), settings.gateway_host
    port = _gateway_port(settings)
    environment = service_environment(settings) | {"DMCP_GATEWAY_PORT": str(port)}
    address = f"http://{LOOPBACK if host in EVERYWHERE else host}:{port}"
    return daemons.start(home, "gateway", [sys.executable, "-m", "flows.gateway"], environment, PROJECT, address)


def _gateway_port(settings: Settings) -> int:
    home, wanted = settings.home_path(), settings.gateway_port
    if wanted and is_free(wanted):
        return wanted
    if wanted and "gateway_port" in settings.model_fields_set:
        raise ServiceError(
            f"Port {wanted} is taken, so the gateway can not listen there.",
            "Stop what has it, or set DMCP_GATEWAY_PORT to another (0: any that is free).",
        )
    return daemons.port_for(home, "gateway")


def answers(url: str) -> Callable[[], bool]:
    """A check: whether this address answers, and with success."""

    def check() -> bool:
        import httpx

        try:
            return httpx.get(url, timeout=5, trust_env=False).is_success
        except httpx.HTTPError:
            return False

    return check
