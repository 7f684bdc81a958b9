"""Processes that outlive their starter: recognised, waited for, stopped with all they started."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from flows import daemons
from storage.errors import ServiceError

SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]
PARENT = [
    sys.executable,
    "-c",
    "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])",
]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)",
]


@pytest.fixture
def home(tmp_path: Path):
    yield tmp_path
    for record in (tmp_path / "run").glob("*.json"):
        if record.stem != "ports":
            daemons.stop(tmp_path, record.stem, grace=0.2)


def start(home: Path, command: list[str], name: str = "it") -> daemons.Daemon:
    return daemons.start(home, name, command, os.environ, home, "http://127.0.0.1:1")


def test_a_daemon_is_found_by_another_process_and_stopped(home: Path) -> None:
    daemon = start(home, SLEEPER)
    code = f"from pathlib import Path; from flows import daemons; print(daemons.find(Path({str(home)!r}), 'it').pid)"
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(seen.stdout) == daemon.pid
    assert daemons.stop(home, "it")
    assert not psutil.pid_exists(daemon.pid)
    assert not daemons.stop(home, "it")
    assert daemons.find(home, "it") is None


def test_stopping_ends_the_children_too(home: Path) -> None:
    daemon = start(home, PARENT)
    children: list[psutil.Process] = []
    deadline = time.monotonic() + 90
    while not children and time.monotonic() < deadline:
        children = psutil.Process(daemon.pid).children()
        time.sleep(0.05)
    assert children
    daemons.stop(home, "it")
    psutil.wait_procs(children, timeout=60)
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)


def test_one_that_does_not_listen_is_killed(home: Path) -> None:
    daemon = start(home, STUBBORN)
    deadline = time.monotonic() + 90
    while "deaf" not in Path(daemon.log).read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert daemons.stop(home, "it", grace=0.3)
    assert not psutil.pid_exists(daemon.pid)


def test_a_pid_that_another_process_has_now_is_not_ours(home: Path) -> None:
    daemon = start(home, SLEEPER)
    record = home / "run" / "it.json"
    content = json.loads(record.read_text())
    daemons.stop(home, "it")
    mine = os.getpid()
    record.write_text(json.dumps(content | {"pid": mine}))
    assert daemons.find(home, "it") is None
    assert not record.exists()
    assert psutil.pid_exists(mine)
    assert daemon.pid != mine


def test_what_a_killed_daemon_left_running_is_ended_and_nothing_else(home: Path) -> None:
    daemon = start(home, PARENT)
    other = start(home, SLEEPER, "other")
    children: list[psutil.Process] = []
    deadline = time.monotonic() + 90
    while not children and time.monotonic() < deadline:
        children = psutil.Process(daemon.pid).children()
        time.sleep(0.05)
    assert not daemons.sweep(home, "it")  # it lives: nothing is left behind
    psutil.Process(daemon.pid).kill()
    while daemons.find(home, "it") is not None:
        time.sleep(0.05)
    assert children[0].is_running()
    assert daemons.sweep(home, "it")
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)
    assert not daemons.sweep(home, "it")
    assert daemons.find(home, "other") == other


def test_nobody_is_swept_away_who_has_the_number_of_a_dead_daemon(home: Path) -> None:
    daemon = start(home, SLEEPER)
    record = json.loads((home / "run" / "it.json").read_text())
    stranger = subprocess.Popen(SLEEPER, start_new_session=True)
    try:
        (home / "run" / "gone.json").write_text(
            json.dumps(record | {"pid": stranger.pid, "command": ["gone"], "created": 1.0})
        )
        assert daemons.find(home, "gone") is None
        assert not daemons.sweep(home, "gone")
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()
    assert daemons.find(home, "it") == daemon


def test_a_clock_that_was_set_does_not_hide_a_daemon(home: Path) -> None:
    daemon = start(home, SLEEPER)
    record = home / "run" / "it.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"created": daemon.created - 3600}))
    found = daemons.find(home, "it")
    assert found is not None
    assert found.pid == daemon.pid


def test_a_broken_record_is_no_daemon(home: Path) -> None:
    (home / "run").mkdir()
    for text in ("", "[]", '{"pid": 1}', "\x00"):
        (home / "run" / "it.json").write_text(text)
        assert daemons.find(home, "it") is None


def test_one_that_ends_at_once_is_reported_with_its_last_words(home: Path) -> None:
    daemon = start(home, [sys.executable, "-c", "import sys; sys.exit('no such luck')"])
    with pytest.raises(ServiceError, match="no such luck") as caught:
        daemons.wait_ready(home, daemon, lambda: False, 120)
    assert str(home / "logs" / "it.log") in caught.value.cure


def test_one_that_is_never_ready_is_stopped(home: Path) -> None:
    daemon = start(home, SLEEPER)
    with pytest.raises(ServiceError, match="not ready after"):
        daemons.wait_ready(home, daemon, lambda: False, 0.3)
    assert not psutil.pid_exists(daemon.pid)


def test_a_program_that_does_not_exist_is_a_service_error(home: Path) -> None:
    with pytest.raises(ServiceError, match="can not be started"):
        start(home, [str(home / "nothing")])


def test_ports_are_remembered_while_they_are_free(home: Path) -> None:
    import socket

    port = daemons.port_for(home, "a")
    assert daemons.port_for(home, "a") == port
    assert daemons.port_for(home, "b") != port
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        assert daemons.port_for(home, "a") != port
