"""A few turns of `kills.py` for each job: at once, and at an instant that is drawn; and without space."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storage.errors import DmcpError
from storage.settings import settings
from tests.faults.disks import disk
from tests.faults.kills import JOBS, Job, Outcome, finish, kill_once, launcher, undisturbed


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from tests.faults.arena import arena

    with arena(tmp_path_factory.mktemp("arena")), launcher() as context:
        yield context


@pytest.mark.parametrize("name", JOBS)
def test_killed_at_random_instants_and_run_again(context: Any, name: str) -> None:
    outcome, draw = Outcome(), random.Random(0)
    seconds = undisturbed(context, JOBS[name])
    for share in (0.0, draw.random()):
        kill_once(context, JOBS[name], seconds * share, outcome)
    assert outcome.kills >= 1  # at once, at least


class Trying:
    """A job that is expected to fail, and says in a file with what."""

    def __init__(self, job: Job, said: Path) -> None:
        self.job, self.said = job, said

    def run(self) -> None:
        try:
            self.job.run()
        except DmcpError as error:
            self.said.write_text(json.dumps([type(error).__name__, error.what, error.cure]))


@pytest.mark.parametrize("name", ["protect", "restore"])
def test_without_space_for_work(context: Any, name: str, tmp_path: Path) -> None:
    """HOME/work is full: the flow ends with an error of ours; with space it does what it does undisturbed."""
    job, work, said = JOBS[name](), settings().home_path("work"), tmp_path / "said.json"
    job.prepare()
    with disk(work, 100_000) as small:
        finish(context, Trying(job, said))  # type: ignore[arg-type]
        kind, what, cure = json.loads(said.read_text())
        assert (kind, "The disk is full" in what, str(work) in what) == ("DiskFault", True, True), what
        assert "Free some space" in cure
        job.look()
        small.resize(64 << 20)
        finish(context, job)
        job.check()
