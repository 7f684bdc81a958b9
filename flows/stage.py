"""The entry of every stage: `python -m flows.NAME --option value` runs one flow.

The flow's parameters are the options. A failure of our own kind is one readable message and an exit code of
`storage/errors.py`, which DVC passes on; anything else is a traceback, because it is a bug.

A stage ends with the run that started it: when DVC or the pipeline above it was killed, nobody would take its outputs,
and the next run would find it in the way. What it has finished so far is found again by that next run.
"""

import argparse
import inspect
import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import psutil

from flows.console import show_error
from flows.services import is_dvc, prefect_server
from storage.disk import FULL, disk_fault
from storage.errors import DmcpError, EnvironmentFault, SettingsError
from storage.files import write_atomic
from storage.settings import settings

FAILURE_NOTE = "DMCP_FAILURE_NOTE"
"""Environment variable: file in which a stage that fails leaves its message and exit code."""

WATCH_SECONDS = 1.0


def stage_main(stage: Any, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a stage from the command line and leave the process.

    Args:
        stage: a flow, or a function that calls one; its parameters are strings and whole numbers.
        arguments: instead of those of the process.
    """
    options = _options(stage, arguments)
    threading.Thread(target=_end_with, args=(_above(),), daemon=True).start()
    try:
        _check_data()
        with prefect_server():
            stage(**options)
    except DmcpError as error:
        _leave(error)
    except OSError as error:
        fault = disk_fault(error) if error.errno in FULL else None
        if fault is None:
            raise
        _leave(fault)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


def _check_data() -> None:
    """dvc.yaml says where a stage's outputs lie; a setting that says otherwise would have DVC look in vain."""
    if settings().data.resolve() != Path("data").resolve():
        raise SettingsError(f"DMCP_DATA is {settings().data}, and stages write below data/.", "Unset it for stages.")


def _above() -> list[psutil.Process]:
    """The processes whose run this stage is part of: DVC, and the pipeline where one started DVC."""
    with suppress(psutil.Error):
        parents = psutil.Process().parents()
        dvc = next((index for index, process in enumerate(parents) if is_dvc(process)), None)
        if dvc is not None:
            return parents[dvc : dvc + (2 if FAILURE_NOTE in os.environ else 1)]
    return []


def _end_with(above: list[psutil.Process]) -> None:
    while all(_lives(process) for process in above):
        time.sleep(WATCH_SECONDS)
    os._exit(EnvironmentFault.exit_code)


def _lives(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _leave(error: DmcpError) -> NoReturn:
    """Say why, to whoever asked for it: `dmcp run`, which shows it at its end, or the terminal."""
    note = os.environ.get(FAILURE_NOTE)
    if note:
        said = {"what": error.what, "cure": error.cure, "exit_code": error.exit_code}
        write_atomic(Path(note), json.dumps(said).encode())
    else:
        show_error(error.what, error.cure)
    sys.exit(error.exit_code)


def _options(stage: Any, arguments: Sequence[str] | None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=inspect.getdoc(stage))
    for name, parameter in inspect.signature(stage).parameters.items():
        kind = int if parameter.annotation is int else str
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, required=True)
    return vars(parser.parse_args(arguments))
