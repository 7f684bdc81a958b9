"""`dmcp sweep` with the real DVC, on a repository laid out as ours, whose trials take no time."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.sweep import done, outcomes, queue_command, run_trials, stop
from flows.sweep_workspace import Workspace, check_project, git, prepare, trial_environment
from storage.errors import Conflict, EnvironmentFault, ServiceError, UsageError
from storage.settings import settings
from tasks.params import load_params
from tasks.sweep import Outcome, Trial, expand
from tests.flows.world import PROJECT, entered

DVC_YAML = """\
vars:
  - presets: {}
  - selection.yaml
  - run: PATH=".venv/bin:$PATH" python
stages:
  download:
    matrix:
      dataset: ["${dataset}"]
    cmd: ${run} stage.py download ${item.dataset} -
    deps: [stage.py]
    params: [download]
    outs: ["data/${item.dataset}/clean"]
  evaluate-protection:
    foreach: ${presets}
    do:
      cmd: ${run} stage.py evaluate ${item.dataset} ${item.preset}
      deps: ["data/${item.dataset}/clean", stage.py]
      params: [protect]
      metrics: ["data/${item.dataset}/metrics/evidence-${item.preset}.json"]
"""
STAGE = """\
import json, os, pathlib, sys

what, dataset, preset = sys.argv[1:]
folder, home = pathlib.Path("data", dataset), pathlib.Path(os.environ["DMCP_HOME"])
section = pathlib.Path("params.yaml").read_text().split("amplitude: ")[1]
amplitude = int(section.split()[0])
with (home / "ran").open("a") as log:
    print(what, amplitude, file=log)
if what == "download":
    (folder / "clean").mkdir(parents=True)
    (folder / "clean" / "images").write_text("clean")
else:
    assert (folder / "clean" / "images").read_text() == "clean", "the input comes from the cache"
    if (home / "refuse").exists() and amplitude > 16:
        sys.exit("out of range")
    (folder / "metrics").mkdir(parents=True, exist_ok=True)
    found = {"objective": 1 / amplitude, "psnr": 40.0 - amplitude, "n": 2, "cells": {}}
    (folder / "metrics" / f"evidence-{preset}.json").write_text(json.dumps(found))
"""
AMPLITUDE = load_params("cifar10", PROJECT / "params.yaml").protect.exact.set.amplitude
GRID = [{"protect.exact.set.amplitude": [20]}]


@dataclass
class Swept:
    """A toy after its first sweep, of two trials, of which the second failed."""

    folder: Path
    workspace: Workspace
    trials: list[Trial]
    first: list[Outcome]
    before: str

    def ran(self) -> list[str]:
        return (self.folder / ".dmcp" / "ran").read_text().splitlines()


def make_toy(folder: Path) -> None:
    """A project: git and DVC as in ours, the stages' work replaced."""
    for name in ("params.yaml", ".gitignore", ".dvcignore", "sweep.yaml"):
        shutil.copy(PROJECT / name, folder / name)
    (folder / "dvc.yaml").write_text(DVC_YAML)
    (folder / "stage.py").write_text(STAGE)
    (folder / ".dvc").mkdir()
    for name in ("config", ".gitignore"):
        shutil.copy(PROJECT / ".dvc" / name, folder / ".dvc" / name)
    git(folder, "init", "--quiet", "--initial-branch", "main")
    commit(folder)


def commit(folder: Path) -> None:
    git(folder, "add", "--all")
    git(folder, "-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "--quiet", "-m", "toy")


def state_of(folder: Path) -> str:
    """All that a sweep could disturb: refs, stashes, where HEAD is, files changed, added or ignored."""
    told = [
        git(folder, *words)
        for words in (
            ["for-each-ref"],
            ["stash", "list"],
            ["symbolic-ref", "HEAD"],
            ["status", "--porcelain", "--ignored"],
        )
    ]
    return "\n".join(told).replace("!! .dmcp/", "").replace("!! .dvc/cache/", "").replace("!! .dvc/tmp/", "").strip()


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[Path]:
    with entered(tmp_path) as folder:
        make_toy(folder)
        yield folder


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swept]:
    with entered(tmp_path_factory.mktemp("swept")) as folder:
        make_toy(folder)
        (folder / "notes").write_text("not for git")
        (folder / ".dmcp").mkdir()
        (folder / ".dmcp" / "refuse").touch()
        before = state_of(folder)
        workspace = prepare(folder, "cifar10", "search", "evaluate-protection", 1)
        trials = expand(GRID, {"protect": {"exact": {"set": {"amplitude": AMPLITUDE}}}})
        try:
            run_trials(workspace, trials, "cifar10", 1, lambda *_: None)
            first = outcomes(workspace, trials, "cifar10", "search", "objective")
            yield Swept(folder, workspace, trials, first, before)
        finally:
            stop(workspace)


# --- one sweep, and again --------------------------------------------------------------------------------------------


def test_trials_run_as_experiments_with_inputs_from_the_cache(swept: Swept) -> None:
    assert swept.first[0].metrics == {"objective": 1 / AMPLITUDE, "psnr": 40.0 - AMPLITUDE, "n": 2.0}
    assert swept.ran()[:3] == [f"download {AMPLITUDE}", f"evaluate {AMPLITUDE}", "evaluate 20"]


def test_a_trial_that_failed_says_why(swept: Swept) -> None:
    assert swept.first[1].metrics is None
    assert "out of range" in (swept.first[1].error or "")


def test_the_project_is_as_it_was(swept: Swept) -> None:
    assert state_of(swept.folder) == swept.before


def test_the_clone_is_its_owners_only(swept: Swept) -> None:
    """It holds digests of clean data."""
    assert swept.workspace.root.parent.stat().st_mode & 0o077 == 0


def test_what_is_done_is_not_run_again(swept: Swept) -> None:
    before = swept.ran()
    workspace = prepare(swept.folder, "cifar10", "search", "evaluate-protection", 1)
    assert workspace.baseline == swept.workspace.baseline
    assert done(workspace) >= {swept.trials[0].name}
    run_trials(workspace, swept.trials[:1], "cifar10", 1, lambda *_: None)
    assert swept.ran() == before


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("HYPOTHESIS_PROFILE") != "long", reason="half a minute of DVC")
def test_what_failed_is_run_again(swept: Swept) -> None:
    (swept.folder / ".dmcp" / "refuse").unlink()
    run_trials(swept.workspace, swept.trials, "cifar10", 1, lambda *_: None)
    found = outcomes(swept.workspace, swept.trials, "cifar10", "search", "objective")
    assert [outcome.metrics and outcome.metrics["psnr"] for outcome in found] == [40.0 - AMPLITUDE, 20.0]
    assert swept.ran() == [f"download {AMPLITUDE}", f"evaluate {AMPLITUDE}", "evaluate 20", "evaluate 20"]


# --- the commands that it composes -----------------------------------------------------------------------------------


def test_only_what_changed_is_set_and_where_it_counts() -> None:
    trial = Trial(name="t", values={}, changed={"a.b": 0.5, "a.c": "none", "a.d": None, "a.e": True})
    raw = {"a": {}, "datasets": {"x": {"a": {"c": "bands"}}}}
    assert queue_command(trial, "stage@x-p", raw, "x") == [
        *("exp", "run", "--quiet", "--queue", "--name", "t"),
        *("-S", "a.b=0.5", "-S", "datasets.x.a.c=none", "-S", "a.d=null", "-S", "a.e=true"),
        "stage@x-p",
    ]


@pytest.mark.parametrize("value", ["a,b", "a b", "null", "$x", "[1]"])
def test_text_that_dvc_would_read_as_grammar_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match="can not be set"):
        queue_command(Trial(name="t", values={}, changed={"a": value}), "s", {}, "x")


def test_trials_get_settings_as_variables(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (toy / ".env").write_text("DMCP_DEVICE=cpu\n")
    monkeypatch.setenv("DMCP_WORKERS", "3")
    settings.cache_clear()
    found = trial_environment(toy / "clone", 1)
    assert found["DMCP_DEVICE"] == "cpu"
    assert Path(found["DMCP_HOME"]).is_absolute()
    assert "DMCP_DATA" not in found
    assert (found["DMCP_WORKERS"], found["OMP_NUM_THREADS"]) == ("3", os.environ.get("OMP_NUM_THREADS", "1"))
    assert found["PYTHONPATH"] == str(toy / "clone")


def test_dry_run_prints_the_commands_and_does_nothing(toy: Path) -> None:
    result = CliRunner().invoke(app, ["sweep", "--dry-run", "--set", f"protect.exact.set.amplitude=10,{AMPLITUDE}"])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert len(lines) == 2
    assert lines[1].endswith("-S protect.exact.set.amplitude=10 evaluate-protection@cifar10-search")
    assert not (toy / ".dmcp" / "sweep").exists()


def test_a_value_out_of_range_is_refused_before_anything_runs(toy: Path) -> None:
    result = CliRunner().invoke(app, ["sweep", "--set", "protect.exact.set.amplitude=10,1000"])
    assert result.exit_code == 2
    assert "amplitude" in result.output
    assert not (toy / ".dmcp" / "sweep").exists()


def test_a_page_without_marks_is_refused_before_anything_runs(toy: Path) -> None:
    (toy / "page.md").write_text("# No marks\n")
    for name, said in (("page.md", "once each"), ("nothing.md", "no page")):
        result = CliRunner().invoke(app, ["sweep", "--page", name])
        assert result.exit_code == 2
        assert said in result.output
    assert not (toy / ".dmcp" / "sweep").exists()


# --- where it can not run --------------------------------------------------------------------------------------------


def test_changes_that_are_not_committed_are_refused(toy: Path) -> None:
    (toy / "sweep.yaml").write_text((toy / "sweep.yaml").read_text() + "\n")
    check_project(toy)  # no trial reads it
    with (toy / "params.yaml").open("a") as file:
        file.write("\n")
    with pytest.raises(Conflict, match=r"not committed: params\.yaml"):
        check_project(toy)
    result = CliRunner().invoke(app, ["sweep"])
    assert result.exit_code == 2
    assert "Commit or undo them first" in result.output


def test_outside_a_repository_below_one_and_before_the_first_commit(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    with pytest.raises(UsageError, match="is in no git repository"):
        check_project(tmp_path)
    git(tmp_path, "init", "--quiet")
    with pytest.raises(UsageError, match="no commit yet"):
        check_project(tmp_path)
    with pytest.raises(UsageError, match="is not the top"):
        check_project(tmp_path / "below")


def test_without_git_the_message_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentFault, match="git is not installed"):
        check_project(tmp_path)


def test_a_stage_that_dvc_does_not_make_is_named(toy: Path) -> None:
    with pytest.raises(ServiceError, match=r"no stage other@cifar10-search, but .*evaluate-protection@cifar10-search"):
        prepare(toy, "cifar10", "search", "other", 1)


def test_the_repository_of_a_git_hook_is_not_taken_for_ours(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = git(toy, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(toy / "elsewhere"))
    assert git(toy, "rev-parse", "HEAD") == head
    assert subprocess.run(["git", "rev-parse", "HEAD"], cwd=toy, check=False, capture_output=True).returncode != 0
