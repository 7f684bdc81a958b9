"""Processes that outlive the command that started them: start, recognise, wait for, stop.

Each daemon leads its own process group and has a record `HOME/run/NAME.json`, written before it is ready, so that an
interrupted start leaves nothing that the next command does not know of. A pid alone says little (numbers are used
again), so the record holds the process's start time and command too. Either of them must agree: start times shift when
a clock is set or a virtual machine resumes, command lines (with port or name in them) do not.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from storage.errors import ServiceError
from storage.files import write_atomic
from storage.ports import free_port, is_free

_CLOCK_TOLERANCE = 2.0  # seconds a start time may seem to move when the system clock is corrected
_POLL_SECONDS = 0.2
_LOG_TAIL = 12  # lines of the log in an error


@dataclass(frozen=True)
class Daemon:
    """One recorded process. `address`: where it answers, or for a process that does not, whom it asks; may be empty."""

    name: str
    pid: int
    created: float
    address: str
    log: str
    command: list[str]


def _record(home: Path, name: str) -> Path:
    return home / "run" / f"{name}.json"


def _left(home: Path, name: str) -> Path:
    """The record of one that was found dead: what it started may live on."""
    return home / "run" / f"{name}.left"


def find(home: Path, name: str) -> Daemon | None:
    """The daemon of this name if it lives, else None; a broken record is removed, that of a dead one set aside."""
    path = _record(home, name)
    try:
        daemon = Daemon(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError):
        path.unlink(missing_ok=True)
        return None
    if _process(daemon) is None:
        with suppress(FileNotFoundError):  # another command found it at the same time
            path.replace(_left(home, name))
        return None
    return daemon


def _process(daemon: Daemon) -> psutil.Process | None:
    try:
        process = psutil.Process(daemon.pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        same = abs(process.create_time() - daemon.created) < _CLOCK_TOLERANCE
        return process if same or process.cmdline() == daemon.command else None
    except psutil.Error:
        return None


def start(
    home: Path, name: str, command: Sequence[str], env: Mapping[str, str], cwd: Path, address: str = ""
) -> Daemon:
    """Start a process in a group of its own, its output appended to HOME/logs/NAME.log, and record it.

    Raises:
        ServiceError: the program can not be started.
    """
    log = home / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as sink:
        try:
            # A session of its own: Ctrl-C in the terminal ends the command, not the daemon.
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                env=dict(env),
                cwd=cwd,
                start_new_session=True,
            )
        except OSError as error:
            raise ServiceError(f"{name} can not be started: {error.strerror}.", "Is the installation whole?") from error
    try:
        created = psutil.Process(process.pid).create_time()
    except psutil.NoSuchProcess:
        created = 0.0
    daemon = Daemon(name=name, pid=process.pid, created=created, address=address, log=str(log), command=list(command))
    write_atomic(_record(home, name), json.dumps(asdict(daemon), indent=1).encode())
    return daemon


def wait_ready(home: Path, daemon: Daemon, ready: Callable[[], bool], seconds: float) -> None:
    """Wait until `ready()` holds.

    Raises:
        ServiceError: the process ended, or was not ready in time (it is stopped then).
    """
    deadline = time.monotonic() + seconds
    while not ready():
        if _process(daemon) is None:
            _record(home, daemon.name).unlink(missing_ok=True)
            raise ServiceError(f"{daemon.name} ended while it started.{_tail(daemon)}", f"Its log: {daemon.log}")
        if time.monotonic() > deadline:
            stop(home, daemon.name)
            raise ServiceError(
                f"{daemon.name} was not ready after {seconds:.0f} s.{_tail(daemon)}",
                f"Its log: {daemon.log}. On a busy machine, try again.",
            )
        time.sleep(_POLL_SECONDS)


def _tail(daemon: Daemon) -> str:
    try:
        lines = Path(daemon.log).read_text(errors="replace").splitlines()[-_LOG_TAIL:]
    except OSError:
        return ""
    return "\n  | " + "\n  | ".join(lines) if lines else ""


def stop(home: Path, name: str, grace: float = 10.0) -> bool:
    """End the daemon and everything it started: politely first, then by force after `grace` seconds.

    Returns:
        whether there was one.
    """
    daemon = find(home, name)
    if daemon is None:
        return False
    process = _process(daemon)
    family = [] if process is None else [process, *_children(process)]
    _signal_group(daemon.pid, signal.SIGTERM)
    _, left = psutil.wait_procs(family, timeout=grace)
    for survivor in left:
        try:
            survivor.kill()
        except psutil.NoSuchProcess:
            continue
    _signal_group(daemon.pid, signal.SIGKILL)
    psutil.wait_procs(left, timeout=grace)
    _record(home, name).unlink(missing_ok=True)
    return True


def sweep(home: Path, name: str, grace: float = 10.0) -> bool:
    """End what a daemon that was found dead (killed, or out of memory) left running.

    Returns:
        whether there was anything.
    """
    path = _left(home, name)
    try:
        daemon = Daemon(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        path.unlink(missing_ok=True)
        return False
    survivors = _session(daemon)
    for process in survivors:
        with suppress(psutil.Error):
            process.terminate()
    _, stubborn = psutil.wait_procs(survivors, timeout=grace)
    for process in stubborn:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(stubborn, timeout=grace)
    path.unlink(missing_ok=True)
    return bool(survivors)


def _session(daemon: Daemon) -> list[psutil.Process]:
    """The live processes of the session that a dead daemon led.

    No new process is given its number as long as the session has members: where one has it, there are none.
    """
    with suppress(psutil.NoSuchProcess):
        if psutil.Process(daemon.pid).status() != psutil.STATUS_ZOMBIE:
            return []
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if os.getsid(process.pid) == daemon.pid and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _signal_group(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return


def port_for(home: Path, name: str) -> int:
    """A free loopback port, the same as last time where possible, so that addresses stay valid between starts."""
    path = home / "run" / "ports.json"
    try:
        ports = {str(key): int(value) for key, value in json.loads(path.read_text()).items()}
    except (OSError, ValueError, AttributeError):
        ports = {}
    if name in ports and is_free(ports[name]):
        return ports[name]
    ports[name] = free_port()
    write_atomic(path, json.dumps(ports, indent=1).encode())
    return ports[name]
