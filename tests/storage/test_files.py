import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from storage.errors import UsageError
from storage.files import open_atomic, replace_directory, sha256_file, write_atomic


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
