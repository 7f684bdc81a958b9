"""What runs the shards' tasks, by DMCP_RUNNER: threads, processes, Dask or Ray. docs/scale.md says how to choose.

The tasks are the same everywhere: they get paths and digests, take the key from the vault and the rest from the
settings, wherever they run. So a worker needs the settings of the flow (DMCP_*), the same file system and this code.
Workers that are started here inherit them; those of a cluster at an address must be given them, and `check_home` finds
the commonest mistake. Whoever can talk to a cluster can have it run code, with the vault at hand: those that are
started here ask for a certificate (Dask, on loopback) or a token (Ray, which listens on all addresses of the machine).

Prefect is imported when it is needed: `flows/engine.py`, which sets the environment for it, may come later.
"""

from __future__ import annotations

import multiprocessing
import os
import secrets
import tempfile
import threading
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage.errors import EnvironmentFault, SettingsError
from storage.files import make_private
from storage.ports import LOOPBACK
from storage.settings import Settings, settings

if TYPE_CHECKING:
    from prefect.task_runners import TaskRunner

PATIENCE = "180s"
"""How long Dask waits for a process that starts or an answer, instead of 30 s: on a busy machine they take long."""

RAY_STORE_BYTES = 100 << 20  # of shared memory, for what tasks return: a report each
RAY_PATH_LENGTH = 40  # of its folder: it makes sockets below, and a socket's whole path may have 107 bytes


def task_runner() -> TaskRunner[Any]:
    """The runner that DMCP_RUNNER names; `over_shards` says how many shards it has at once.

    Raises:
        SettingsError: its package is not installed.
    """
    from prefect.task_runners import ProcessPoolTaskRunner, ThreadPoolTaskRunner

    conf = settings()
    if conf.runner == "threads":
        return ThreadPoolTaskRunner(max_workers=conf.workers)
    if conf.runner == "processes":
        return ProcessPoolTaskRunner(max_workers=conf.workers, initializer=end_with_parent)
    try:
        return _dask(conf) if conf.runner == "dask" else _ray(conf)
    except ImportError as error:
        raise SettingsError(
            f"DMCP_RUNNER is {conf.runner}, which is not installed.",
            f"uv pip install prefect-{conf.runner}, or unset DMCP_RUNNER.",
        ) from error


def check_server() -> None:
    """Workers in other processes report to a Prefect server; one that lives in this process only serves threads.

    Raises:
        SettingsError: there is none.
    """
    from prefect.settings import PREFECT_API_URL

    runner = settings().runner
    if runner != "threads" and not PREFECT_API_URL.value():
        raise SettingsError(
            f"DMCP_RUNNER is {runner}, and there is no Prefect server for its workers.",
            "Run it by `dmcp` or as a stage, which start one; or set PREFECT_API_URL.",
        )


def check_home(work: str) -> None:
    """Called in a task: does this process have the HOME of the flow, and with it its vault and registry?

    Raises:
        SettingsError: it was started with other settings.
    """
    home = settings().home_path()
    if not Path(work).is_relative_to(home):
        raise SettingsError(
            f"A worker's DMCP_HOME is {home}, and what it is to work on lies in {work}.",
            "Start workers with the settings (DMCP_*) of the flow, and with the same folders.",
        )


def worker_died(error: Exception) -> EnvironmentFault | None:
    """What to tell when a task ended because its process did; None: it ended by an error of its own."""
    from prefect.exceptions import CrashedRun

    package = type(error).__module__.partition(".")[0]
    if not isinstance(error, BrokenExecutor | CrashedRun) and package not in ("distributed", "ray"):
        return None
    return EnvironmentFault(
        f"A worker process ended while it was at a shard ({type(error).__name__}).",
        "Run it again: finished shards are kept. If that comes again it may be memory: set a lower DMCP_WORKERS.",
    )


def end_with_parent() -> None:
    """Called in each process of a pool: it ends when the process that started it is gone, were it killed."""
    threading.Thread(target=_watch_parent, daemon=True).start()


def _watch_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(EnvironmentFault.exit_code)


# --- Dask ------------------------------------------------------------------------------------------------------------


def _dask(conf: Settings) -> TaskRunner[Any]:
    """Workers of one thread each: networks are computed by one thread, and Dask's own threads would share them."""
    import dask

    dask.config.set(  # for the whole process, and its workers
        {
            "distributed.comm.timeouts.connect": PATIENCE,
            "distributed.comm.timeouts.tcp": PATIENCE,
            "distributed.scheduler.http.routes": [],  # no pages
            "distributed.worker.http.routes": [],
            "temporary-directory": str(conf.home_path("dask")),
        }
    )
    from distributed.system import MEMORY_LIMIT
    from prefect_dask import DaskTaskRunner

    if conf.dask_address:
        return DaskTaskRunner(address=conf.dask_address)
    cluster: dict[str, Any] = {
        "n_workers": conf.workers,
        "threads_per_worker": 1,
        "processes": True,
        "host": LOOPBACK,
        "security": True,  # certificates made for this cluster, in memory
        "dashboard_address": f"{LOOPBACK}:0",  # None would take the port that everybody takes
        "scheduler_kwargs": {"dashboard": False},
        "memory_limit": MEMORY_LIMIT // conf.workers,
        "local_directory": str(conf.home_path("dask")),
    }
    return DaskTaskRunner(cluster_kwargs=cluster)


# --- Ray -------------------------------------------------------------------------------------------------------------


def _ray(conf: Settings) -> TaskRunner[Any]:
    from prefect_ray import RayTaskRunner

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if conf.ray_address:
        return RayTaskRunner(address=conf.ray_address)
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    cluster: dict[str, Any] = {
        "num_cpus": conf.workers,
        "include_dashboard": False,
        "object_store_memory": RAY_STORE_BYTES,
        "_temp_dir": str(_ray_folder(conf)),
    }
    return RayTaskRunner(init_kwargs=cluster)


def _ray_folder(conf: Settings) -> Path:
    """Below HOME; where that path is too long for Ray, one of this user's own among the temporary files."""
    folder = conf.home_path("ray")
    if len(os.fspath(folder)) > RAY_PATH_LENGTH:
        folder = Path(tempfile.gettempdir(), f"dmcp-ray-{os.getuid()}")
    return make_private(folder)
