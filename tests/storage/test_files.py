import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from storage.errors import UsageError
from storage.files import (
    open_atomic,
    remove_abandoned,
    remove_partials,
    replace_directory,
    scratch_folder,
    sha256_file,
    write_atomic,
)


def test_digest(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_write_atomic_keeps_the_old_file_on_failure(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    write_atomic(path, b"old")
    with pytest.raises(RuntimeError), open_atomic(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("mode", [0o600, 0o640])
def test_mode_is_in_force_before_the_first_byte(tmp_path: Path, mode: int) -> None:
    with open_atomic(tmp_path / "secret", mode) as file:
        (aside,) = tmp_path.iterdir()
        assert stat.S_IMODE(aside.stat().st_mode) == mode
        file.write(b"x")
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == mode


def test_default_mode_follows_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "file", b"")
        with replace_directory(tmp_path / "folder") as work:
            (work / "a").write_bytes(b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o750


def test_replace_directory(tmp_path: Path) -> None:
    target = tmp_path / "variant"
    for content in ("one", "two"):
        with replace_directory(target) as work:
            assert work.parent.parent == tmp_path
            (work / content).write_text(content)
    assert [p.name for p in target.iterdir()] == ["two"]
    assert [p.name for p in tmp_path.iterdir()] == ["variant"]


def test_replace_directory_keeps_the_old_one_on_failure(tmp_path: Path) -> None:
    target = tmp_path / "variant"
    with replace_directory(target) as work:
        (work / "old").touch()
    with pytest.raises(RuntimeError), replace_directory(target) as work:
        (work / "new").touch()
        raise RuntimeError
    assert [p.name for p in target.iterdir()] == ["old"]
    assert [p.name for p in tmp_path.iterdir()] == ["variant"]


def test_what_is_not_ours_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").touch()
    with pytest.raises(UsageError, match="something else"), replace_directory(tmp_path / "photos", "manifest.json"):
        pass
    with pytest.raises(UsageError, match="is a file"), replace_directory(tmp_path / "photos" / "holiday.jpg"):
        pass
    (tmp_path / "empty").mkdir()
    with replace_directory(tmp_path / "empty", "manifest.json") as work:
        (work / "manifest.json").touch()
    with replace_directory(tmp_path / "empty", "manifest.json"):
        pass
    assert list((tmp_path / "empty").iterdir()) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from storage.files import replace_directory
with replace_directory(Path(sys.argv[1])) as work:
    (work / "half").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_leftovers_of_a_killed_process_go_and_those_of_a_living_one_stay(tmp_path: Path) -> None:
    target = tmp_path / "variant[1]"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(target)], check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    with replace_directory(target) as outer:
        assert not left.exists()
        with replace_directory(target) as inner:
            (inner / "inner").touch()
        assert outer.exists()
        (outer / "outer").touch()
    assert [p.name for p in target.iterdir()] == ["outer"]


def test_killed_between_the_two_renames_the_old_folder_comes_back(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "old").write_text("old")
    script = """
import os, signal, sys
from pathlib import Path
from storage import files
rename = Path.rename
def killed(self, other):
    rename(self, other)
    os.kill(os.getpid(), signal.SIGKILL)
Path.rename = killed
with files.replace_directory(Path(sys.argv[1])) as work:
    (work / "new").write_text("new")
"""
    assert subprocess.run([sys.executable, "-c", script, str(target)], check=False).returncode == -signal.SIGKILL
    assert not target.exists()
    with pytest.raises(ZeroDivisionError), replace_directory(target):
        1 / 0  # noqa: B018
    assert [path.name for path in target.iterdir()] == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_files_that_a_killed_process_left_half_written_go(tmp_path: Path) -> None:
    script = """
import os, signal, sys
from pathlib import Path
from storage.files import open_atomic
with open_atomic(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "a")], check=False)
    (left,) = tmp_path.iterdir()
    remove_partials(tmp_path)
    assert left.exists(), "it was begun just now"
    os.utime(left, (1, 1))
    with open_atomic(tmp_path / "b") as file:
        (mine,) = set(tmp_path.iterdir()) - {left}
        os.utime(mine, (1, 1))
        remove_partials(tmp_path)
        file.write(b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_scratch_folders_of_killed_processes_go_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    script = """
import os, signal, sys
from pathlib import Path
from storage.files import scratch_folder
with scratch_folder(Path(sys.argv[1]), "results-") as folder:
    (folder / "clean.png").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert remove_abandoned(tmp_path / "work") == 0
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "work")], check=False)
    (left,) = (tmp_path / "work").iterdir()
    assert stat.S_IMODE(left.stat().st_mode) == 0o700
    with scratch_folder(tmp_path / "work", "results-") as mine:
        assert remove_abandoned(tmp_path / "work") == 1
        assert list((tmp_path / "work").iterdir()) == [mine]
    assert list((tmp_path / "work").iterdir()) == []
