"""`tests/run.py` on small suites of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.run import without

RUN = Path(__file__).with_name("run.py")
FLAKY = """
from pathlib import Path

def test_accident():
    flag = Path(__file__).with_suffix(".ran")
    if not flag.exists():
        flag.touch()
        raise AssertionError

def test_never_good():
    raise AssertionError
"""
BROKEN = """
def pytest_sessionfinish(session):
    if not hasattr(session.config, "workerinput"):
        session.exitstatus = 1
"""


def run(folder: Path, *arguments: str) -> tuple[int, str]:
    """Exit code and output of the suite below a folder."""
    (folder / "pytest.ini").touch()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "PYTHONPATH"))}
    # Of the plugins those that are needed: importing all of them, in each process, takes longer than the rest.
    environment |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": "xdist.plugin,pytest_timeout"}
    done = subprocess.run(
        [sys.executable, RUN, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout


def suite(folder: Path, *names: str, content: str = FLAKY) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def test_what_failed_by_accident_runs_again_alone_and_as_it_was_asked_for(tmp_path: Path) -> None:
    suite(tmp_path, "tests/flows/test_a.py", "tests/storage/test_b.py")
    code, shown = run(tmp_path, "-k", "accident", "--timeout=60")
    assert code == 0, shown
    assert shown.splitlines()[-1] == (
        "2 of 2 files failed first and passed alone: tests/flows/test_a.py tests/storage/test_b.py"
    )
    assert "test_never_good" not in shown


def test_folders_among_the_arguments_do_not_run_again(tmp_path: Path) -> None:
    suite(tmp_path, "tests/flows/test_a.py")
    suite(tmp_path, "tests/flows/test_good.py", content="def test_accident():\n    pass\n")
    code, shown = run(tmp_path, "tests/flows", "-k", "accident", "-v")
    assert code == 0, shown
    assert shown.count("tests/flows/test_good.py::test_accident") == shown.partition("Nothing else failed")[0].count(
        "tests/flows/test_good.py::test_accident"
    )


def test_what_fails_alone_too_decides(tmp_path: Path) -> None:
    suite(tmp_path, "tests/flows/test_a.py")
    suite(tmp_path, "tests/flows/test_b.py", content=FLAKY.replace("test_never_good", "never_good"))
    code, shown = run(tmp_path)
    assert code == 1, shown
    assert "1 of 2 files failed again alone: tests/flows/test_a.py" in shown
    assert shown.splitlines()[-1] == "1 of 2 files failed first and passed alone: tests/flows/test_b.py"


@pytest.mark.parametrize("where", ["tests/tasks/test_a.py", "tests/test_a.py"])
def test_elsewhere_nothing_runs_again(tmp_path: Path, where: str) -> None:
    suite(tmp_path, where)
    code, shown = run(tmp_path)
    assert (code, "once more" in shown) == (1, False)


def test_a_run_that_failed_without_a_test_that_did_is_not_run_again(tmp_path: Path) -> None:
    suite(tmp_path, "tests/flows/test_a.py", content="def test_good():\n    pass\n")
    suite(tmp_path, "tests/conftest.py", content=BROKEN)
    code, shown = run(tmp_path)
    assert (code, "once more" in shown) == (1, False)


def test_options_keep_their_values() -> None:
    assert without(["-k", "storage", "storage", "-x"], ["storage"]) == ["-k", "storage", "-x"]
