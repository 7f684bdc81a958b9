"""One Prefect server for all stages of a run, and for no longer than the run.

    with prefect_server():
        protect(dataset)           # any flow

Where PREFECT_API_URL names a server, or `dmcp up` started one, that one is used. Else one is started below HOME and
stopped when nobody uses it any more: every process that needs it leaves its pid in HOME/run/prefect-users, and a guard
(`python -m flows.services`) stops the server once none of them lives, so that neither Ctrl-C nor SIGKILL leaves one
behind. A stage that `dvc repro` started registers DVC's process instead of its own: the next stage finds the server.
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from filelock import FileLock

from flows import daemons, stack
from storage.settings import Settings, settings

GUARD = "prefect-guard"
POLL_SECONDS = 1.0


@contextmanager
def prefect_server() -> Iterator[str]:
    """The API address of the server that flows inside the block talk to; child processes find it in the environment.

    Raises:
        ServiceError: the server did not start.
    """
    if os.environ.get("PREFECT_API_URL"):
        yield os.environ["PREFECT_API_URL"]
        return
    conf = settings()
    user = _run_process()
    with _users_locked(conf):
        _register(conf, user)
        api = _ensure_server(conf)
    from prefect.settings import PREFECT_API_URL, temporary_settings

    os.environ["PREFECT_API_URL"] = api
    try:
        with temporary_settings({PREFECT_API_URL: api}):
            try:
                yield api
            finally:
                _send_logs()
    finally:
        del os.environ["PREFECT_API_URL"]
        if user.pid == os.getpid():
            _user_file(conf, user.pid).unlink(missing_ok=True)


def _send_logs() -> None:
    """Send what was logged to the server while it lives: at the end of the process Prefect would find it gone."""
    from prefect.logging.handlers import APILogHandler

    APILogHandler().flush()


@contextmanager
def object_store() -> Iterator[None]:
    """See that the embedded object store runs for the length of the block, unless a setting names another one.

    Raises:
        ServiceError: it did not start.
    """
    if settings().s3_endpoint is not None:
        yield
        return
    from storage.server import running_server

    with running_server(settings().home_path()):
        yield


def _ensure_server(conf: Settings) -> str:
    """Start what does not live, a guard with a server that is started here."""
    home = conf.home_path()
    ours = daemons.find(home, "prefect") is None
    api = stack.start_prefect(conf)
    if ours and daemons.find(home, GUARD) is None:
        command = [sys.executable, "-m", "flows.services"]
        daemons.start(home, GUARD, command, stack.service_environment(conf), stack.PROJECT)
    return api


def _run_process() -> psutil.Process:
    """The process whose end is the end of the run: the outermost `dvc` above this one, else this one."""
    process = psutil.Process()
    with suppress(psutil.Error):
        above = [parent for parent in process.parents() if is_dvc(parent)]
        return above[-1] if above else process
    return process


def is_dvc(process: psutil.Process) -> bool:
    """Whether a process is DVC."""
    with suppress(psutil.Error):
        return any(Path(word).name == "dvc" for word in process.cmdline()[:3])
    return False


# --- who uses the server ---------------------------------------------------------------------------------------------


def _users(conf: Settings) -> Path:
    return conf.home_path("run", "prefect-users")


def _user_file(conf: Settings, pid: int) -> Path:
    return _users(conf) / str(pid)


@contextmanager
def _users_locked(conf: Settings) -> Iterator[None]:
    _users(conf).mkdir(parents=True, exist_ok=True)
    with FileLock(_users(conf).with_suffix(".lock")):
        yield


def _register(conf: Settings, user: psutil.Process) -> None:
    _user_file(conf, user.pid).write_text(repr(user.create_time()))


def _in_use(conf: Settings) -> bool:
    """Whether a registered process lives; entries of dead ones are removed."""
    live = False
    for entry in _users(conf).iterdir():
        try:
            same = abs(psutil.Process(int(entry.name)).create_time() - float(entry.read_text() or "nan")) < 2
        except (psutil.Error, ValueError, OSError):
            same = False
        if not same:
            entry.unlink(missing_ok=True)
        live = live or same
    return live


def guard(conf: Settings) -> None:
    """Wait until nobody uses the server, then stop it, unless `dmcp up` made it its own (its worker lives)."""
    while True:
        time.sleep(POLL_SECONDS)
        if _in_use(conf):
            continue
        with _users_locked(conf):  # nobody registers between the last look and the end of the server
            if not _in_use(conf):
                stack.stop_idle_prefect(conf)
                return


if __name__ == "__main__":
    guard(settings())
