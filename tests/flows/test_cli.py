"""The command line as a whole: how fast it is, how it fails, what it prints."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from flows.cli import GOES_ON, DmcpGroup, app
from storage.errors import DmcpError, GrantExpired, NotFound, UnknownKey

HEAVY = ("torch", "prefect", "mlflow", "boto3", "dvc", "numpy", "sqlalchemy", "pydantic", "PIL", "rich")
COMMANDS = [
    *([name] for name in ("run", "sweep")),
    *(["data", name] for name in ("get", "keys", "list")),
    *(["key", name] for name in ("create", "list", "rotate", "backup", "restore", "check")),
    *([name] for name in ("protect", "publish", "withdraw", "pull", "verify", "inspect")),
    *(["access", name] for name in ("add-user", "set-role", "disable", "enable")),
    *(["access", name] for name in ("rotate-token", "add-token", "tokens", "revoke-token")),
    *(["access", name] for name in ("grant", "renew", "revoke", "list", "datasets", "register", "transfer")),
    *(["access", "terms", name] for name in ("set", "show", "accept")),
    *(["access", name] for name in ("ask", "requests", "approve", "deny", "usage")),
    *(["registry", name] for name in ("version", "upgrade", "sweep")),
    *(["remote", name] for name in ("login", "logout", "whoami", "rotate-token", "datasets", "versions", "terms")),
    *(["remote", name] for name in ("ask", "renew", "grants", "request", "list", "status", "wait", "cancel", "retry")),
    *(["remote", name] for name in ("fetch", "restore")),
    *(["remote", "owner", name] for name in ("requests", "approve", "deny", "grants", "revoke", "usage")),
    *(["audit", name] for name in ("show", "verify", "export", "checkpoint")),
    *(
        [name]
        for name in (
            "request",
            "restore",
            "requests",
            "train",
            "compare",
            "evaluate-protection",
            "export",
            "up",
            "down",
            "status",
        )
    ),
]


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_the_commands_imports_nothing_heavy() -> None:
    loaded = python(f"import sys, flows.cli; print([name for name in {HEAVY} if name in sys.modules])")
    assert loaded.strip() == "[]"


def test_help_takes_well_under_a_second() -> None:
    """Processor time of the whole process: what a clock says on a busy machine is no property of ours."""
    best = 9.0
    for _ in range(3):
        child = subprocess.Popen([sys.executable, "-m", "flows.cli", "--help"], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        assert child.returncode == 0
        best = min(best, usage.ru_utime + usage.ru_stime)
    assert best < 0.8


def test_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.output == f"dmcp {version('dmcp')}\n"


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_explains_itself(command: list[str]) -> None:
    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output


def all_below(command: Any) -> Iterator[Any]:
    yield command
    for below in getattr(command, "commands", {}).values():
        yield from all_below(below)


def test_no_help_loses_what_stands_in_brackets() -> None:
    """Typer has help printed with markup, which takes [@VERSION] for a style."""
    from rich.text import Text

    for command in all_below(typer.main.get_command(app)):
        for text in filter(None, [command.help, *(getattr(option, "help", None) for option in command.params)]):
            assert Text.from_markup(text).plain.count("[") == text.count("["), text
    shown = CliRunner().invoke(app, ["remote", "restore", "--help"], env={"COLUMNS": "160"}).output
    assert "DATASET[@VERSION]." in shown


def commands_below(group: object, *path: str) -> list[list[str]]:
    below = getattr(group, "commands", None)
    return [x for name in below for x in commands_below(below[name], *path, name)] if below else [list(path)]


def test_every_command_is_known_to_this_test() -> None:
    root = typer.main.get_command(app)
    assert isinstance(root, DmcpGroup)
    found = commands_below(root)
    assert sorted(found) == sorted(COMMANDS)


def test_unknown_commands_and_options_are_usage_errors() -> None:
    for arguments in (
        ["bogus"],
        ["up", "--bogus"],
        ["data", "get"],
        ["access", "grant", "ann", "sample", "--days", "0"],
    ):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 2, arguments
        assert "Error" in result.output


# --- failures --------------------------------------------------------------------------------------------------------


def failing(error: BaseException) -> typer.Typer:
    """An app like ours whose one command raises."""
    broken = typer.Typer(cls=DmcpGroup, pretty_exceptions_enable=False)

    @broken.callback()
    def root(debug: bool = False) -> None:
        pass

    @broken.command()
    def go() -> None:
        raise error

    return broken


@pytest.mark.parametrize(
    "error", [DmcpError("What.", "Cure."), GrantExpired("What.", "Cure."), NotFound("What.", "Cure.")]
)
def test_our_errors_are_a_message_and_a_code(error: DmcpError) -> None:
    result = CliRunner().invoke(failing(error), ["go"])
    assert result.exit_code == error.exit_code
    assert result.stderr == "Error: What.\nCure.\n"
    assert result.stdout == ""


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_says_so(number: int) -> None:
    result = CliRunner().invoke(failing(OSError(number, os.strerror(number), "/data/x.tar")), ["go"])
    assert result.exit_code == 4
    assert result.stderr.startswith("Error: The disk is full while writing /data/x.tar.")


def test_other_system_errors_name_the_path() -> None:
    result = CliRunner().invoke(failing(PermissionError(errno.EACCES, "Permission denied", "/etc/x")), ["go"])
    assert result.exit_code == 4
    assert result.stderr.startswith("Error: Permission denied: /etc/x.")


def test_ctrl_c_is_130() -> None:
    result = CliRunner().invoke(failing(KeyboardInterrupt()), ["go"])
    assert (result.exit_code, result.stderr) == (130, "Stopped.\n")


def test_ctrl_c_says_which_commands_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert {command[0] for command in COMMANDS} >= GOES_ON

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("flows.commands.protect.streams", interrupted)
    result = CliRunner().invoke(app, ["protect", str(tmp_path), str(tmp_path / "out")])
    assert (result.exit_code, result.stderr) == (130, "Stopped; the same command goes on.\n")


def test_a_bug_is_one_message_too() -> None:
    result = CliRunner().invoke(failing(KeyError("nope")), ["go"])
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: Unexpected failure, KeyError: 'nope'\n")
    assert "--debug" in result.stderr


def test_debug_shows_the_traceback() -> None:
    for error in (KeyError("nope"), UnknownKey("What.", "Cure.")):
        result = CliRunner().invoke(failing(error), ["--debug", "go"])
        assert result.exception is error


def test_without_a_terminal_there_is_no_escape_code_and_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flows.cli", "verify", str(tmp_path / "nothing")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "is no variant" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    loud = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"DMCP_DEBUG": "1"})
    assert "Traceback" in loud.stderr


def test_a_bad_setting_is_named(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flows.cli", "status"]
    environment = os.environ | {"DMCP_WORKERS": "many"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 4
    assert "DMCP_WORKERS" in done.stderr
