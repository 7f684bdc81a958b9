"""The entry of every stage: `python -m flows.NAME --option value` runs one flow.

The flow's parameters are the options. A failure of our own kind is one readable message and an exit code of
`storage/errors.py`, which DVC passes on; anything else is a traceback, because it is a bug.
"""

import argparse
import errno
import inspect
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from flows.console import show_error
from flows.services import prefect_server
from storage.errors import DmcpError, EnvironmentFault
from storage.files import write_atomic

FAILURE_NOTE = "DMCP_FAILURE_NOTE"
"""Environment variable: file in which a stage that fails leaves its message and exit code."""

_FULL = {errno.ENOSPC, errno.EDQUOT}


def stage_main(stage: Any, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a stage from the command line and leave the process.

    Args:
        stage: a flow, or a function that calls one; its parameters are strings and whole numbers.
        arguments: instead of those of the process.
    """
    options = _options(stage, arguments)
    try:
        with prefect_server():
            stage(**options)
    except DmcpError as error:
        _leave(error)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        place = f" while writing {error.filename}" if error.filename else ""
        _leave(EnvironmentFault(f"The disk is full{place}.", "Free some space and run it again: it resumes."))
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


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
