"""How a stage ends: exit codes, messages, and the note that `dmcp run` reads."""

import errno
import json
from pathlib import Path

import pytest

from flows.stage import FAILURE_NOTE, stage_main
from storage.errors import UnknownKey


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain functions need none."""
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.delenv(FAILURE_NOTE, raising=False)


def ended(stage, *arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        stage_main(stage, arguments)
    return end.value.code


def locked(dataset: str) -> None:
    raise UnknownKey(f"No key for {dataset}.", "Make one.")


def full(dataset: str) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", f"data/{dataset}")


def test_parameters_are_options() -> None:
    seen = []

    def train(dataset: str, seed: int) -> None:
        seen.append((dataset, seed))

    assert ended(train, "--dataset", "x", "--seed", "3") == 0
    assert seen == [("x", 3)]
    assert ended(train, "--dataset", "x") == 2
    assert ended(train, "--dataset", "x", "--seed", "three") == 2


def test_an_error_of_ours_is_a_message_and_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(locked, "--dataset", "x") == 5
    assert capsys.readouterr().err.splitlines() == ["Error: No key for x.", "Make one."]


def test_the_note_takes_the_place_of_the_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(FAILURE_NOTE, str(tmp_path / "note.json"))
    assert ended(locked, "--dataset", "x") == 5
    assert capsys.readouterr().err == ""
    note = json.loads((tmp_path / "note.json").read_text())
    assert note == {"what": "No key for x.", "cure": "Make one.", "exit_code": 5}


def test_a_full_disk_is_said_and_not_traced(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(full, "--dataset", "x") == 4
    assert "The disk is full while writing data/x." in capsys.readouterr().err


def test_other_failures_are_bugs() -> None:
    def broken() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        stage_main(broken, [])
