"""What is on its way lies in a folder that goes away with the process, however it ends."""

import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from flows.gateway import workspace
from flows.gateway.workspace import PER_USER, Workspace
from storage.errors import TooManyRequests

HOLD = """
import sys, time
from pathlib import Path
from flows.gateway.workspace import Workspace
work = Workspace(Path(sys.argv[1]), 1 << 20)
with work.desk() as desk:
    (desk.folder / "upload").write_bytes(b"x")
    print(desk.folder, flush=True)
    time.sleep(60)
"""


def test_what_a_killed_gateway_left_is_removed_by_the_next_and_a_living_ones_is_not(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        left = Path(process.stdout.readline().strip(), "upload")
        Workspace(tmp_path, 1 << 20).close()
        assert left.exists()
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert left.exists()
    Workspace(tmp_path, 1 << 20).close()
    assert list(tmp_path.iterdir()) == []


def test_all_uploads_share_one_space(tmp_path: Path) -> None:
    work = Workspace(tmp_path, 100)
    with work.desk() as first:
        first.take(60)
        with work.desk() as second, pytest.raises(TooManyRequests):
            second.take(41)
        with work.desk() as third:
            third.take(40)
    assert work.taken == 0
    assert list(work.folder.iterdir()) == []
    with work.desk() as desk:
        desk.take(100)
    work.close()
    assert list(tmp_path.iterdir()) == []


def test_one_user_has_so_many_at_once(tmp_path: Path) -> None:
    work = Workspace(tmp_path, 100)
    with ExitStack() as stack:
        for _ in range(PER_USER):
            stack.enter_context(work.desk(1))
        with pytest.raises(TooManyRequests), work.desk(1):
            pass
        with work.desk(2), work.desk():
            pass
    with work.desk(1):
        pass
    assert not work.seats
    work.close()


def test_one_user_has_a_share_of_the_space(tmp_path: Path) -> None:
    work = Workspace(tmp_path, 100, 60)
    with work.desk(1) as desk, work.desk(1) as more, work.desk(2) as others:
        desk.take(40)
        with pytest.raises(TooManyRequests, match="one user"):
            more.take(21)
        more.take(20)
        others.take(40)
    assert not work.taken_by and work.taken == 0
    work.close()


def test_a_gateway_that_starts_does_not_remove_one_that_is_just_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the making of a folder and the locking of it another one starts."""
    real, others = workspace.tempfile.mkdtemp, []

    def overtaken(**more: Any) -> str:
        folder = real(**more)
        monkeypatch.setattr(workspace.tempfile, "mkdtemp", real)
        thread = Thread(target=lambda: others.append(Workspace(tmp_path, 100)))
        thread.start()
        thread.join(0.5)  # if it need not wait it is through by now
        threads.append(thread)
        return folder

    threads: list[Thread] = []
    monkeypatch.setattr(workspace.tempfile, "mkdtemp", overtaken)
    first = Workspace(tmp_path, 100)
    threads[0].join()
    assert first.folder.is_dir()
    assert others[0].folder.is_dir()
    for work in (first, *others):
        work.close()
