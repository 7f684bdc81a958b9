"""Prefect as this project uses it. Flow modules import `flow` and `task` from here, never from Prefect.

Prefect reads its settings when it is imported, so what must hold everywhere (state below HOME, nothing calls out) is
put into the environment first. Tasks are shard-sized; they get paths and digests, never arrays or keys. Prefect keeps
none of their results and caches nothing: DVC knows what depends on what, and Prefect's cache does not see nested code.
"""

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import wraps
from itertools import islice
from typing import Any, ParamSpec, TypeVar

from flows.stack import quiet_environment
from storage.errors import SettingsError
from storage.settings import settings

for _name, _value in quiet_environment(settings()).items():
    os.environ.setdefault(_name, _value)
settings().home_path().mkdir(mode=0o700, parents=True, exist_ok=True)
settings().home_path("prefect").mkdir(exist_ok=True)
# The console shows our own messages; Prefect's, with their tracebacks, go to its server.
os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
# Threads that wait must not spin: shards, training and servers share the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import prefect  # noqa: E402
from prefect.cache_policies import NO_CACHE  # noqa: E402
from prefect.futures import as_completed  # noqa: E402

from flows.console import note  # noqa: E402
from flows.runners import check_server, task_runner, worker_died  # noqa: E402

P = ParamSpec("P")
R = TypeVar("R")


def flow(name: str, sharded: bool = False) -> Callable[[Callable[P, R]], prefect.Flow[P, R]]:
    """`prefect.flow`: its result stays in the process, and what failed for a reason of ours is not tried again.

    `sharded`: it maps tasks over shards, by the task runner of the settings. A runner that is not there is an error of
    the run, not of the import.
    """

    def decorate(function: Callable[P, R]) -> prefect.Flow[P, R]:
        runner = None
        try:
            runner = task_runner() if sharded else None
        except SettingsError as error:
            function = _refusing(function, error)
        return prefect.flow(name=name, persist_result=False, retries=0, task_runner=runner)(function)

    return decorate


def _refusing(function: Callable[P, R], error: SettingsError) -> Callable[P, R]:
    @wraps(function)
    def refuse(*args: P.args, **kwargs: P.kwargs) -> R:
        raise SettingsError(error.what, error.cure)

    return refuse


def task(name: str, run_name: str | None = None) -> Callable[[Callable[P, R]], prefect.Task[P, R]]:
    """`prefect.task`, likewise, and never cached; `run_name` may use the parameters: "protect {shard}"."""
    return prefect.task(
        name=name, task_run_name=run_name or name, persist_result=False, retries=0, cache_policy=NO_CACHE
    )


def over_shards(work: prefect.Task[..., R], jobs: Iterable[tuple[Any, ...]], finished: Callable[[R], None]) -> None:
    """Run a task for each job, `settings().workers` at a time; the first failure starts no more and is raised.

    Args:
        work: a Prefect task, called with the members of a job by the running flow's task runner.
        jobs: arguments of each call; paths and digests.
        finished: told each result as it comes, in no particular order.

    Raises:
        SettingsError: the runner needs a Prefect server, and there is none.
        EnvironmentFault: a process of the runner ended while it was at a task.
    """
    check_server()
    waiting = iter(jobs)
    running: list[Any] = []
    window = settings().workers
    try:
        while True:
            running += [work.submit(*job) for job in islice(waiting, window - len(running))]
            if not running:
                return
            done = next(iter(as_completed(running)))
            running.remove(done)
            finished(_result(done))
    except KeyboardInterrupt:
        note("Stopping: the shards in hand are finished first ...")
        raise
    except Exception:
        for future in running:  # may be elsewhere: none outlives the flow, which has the folder's lock
            with suppress(Exception):
                future.wait()
        raise


def _result(future: Any) -> Any:
    """What a task returned. Raises the error that it ended with, EnvironmentFault when its process ended."""
    try:
        return future.result()
    except Exception as error:
        died = worker_died(error)
        if died is None:
            raise
        raise died from error
