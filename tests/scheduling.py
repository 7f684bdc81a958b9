"""How the tests are spread over processes, with `pytest -n`; the order in which they run, with and without.

The tests of a file stay in one process, in the order of the file. So do all tests of a folder in TOGETHER: they share
one running stack, or one browser. All else that tests share (servers, databases, folders) each process has of its own,
on ports that are free.
"""

from pathlib import PurePosixPath

import pytest
from xdist.scheduler import LoadScopeScheduling

TOGETHER = ("tests/service", "tests/pages")
FIRST = ("tests/service", "tests/flows", "tests/pages", "tests/tasks/test_t")
"""What takes longest is begun first, so that no process is left with it while the other has nothing to do."""


def unit_of(nodeid: str) -> str:
    """The file or folder that a test runs together with."""
    file = PurePosixPath(nodeid.partition("::")[0])
    return next((folder for folder in TOGETHER if file.is_relative_to(folder)), str(file))


def turn_of(nodeid: str) -> int:
    """Position in FIRST; all else comes after."""
    return next((turn for turn, start in enumerate(FIRST) if nodeid.startswith(start)), len(FIRST))


class ByUnit(LoadScopeScheduling):
    """One unit after the other, in the order of collection, to whichever process is free."""

    def __init__(self, config: pytest.Config, log: object = None) -> None:
        config.option.loadscopereorder = False
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)
