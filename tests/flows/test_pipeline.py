"""The whole job in a copy of the project: real DVC, real stages as processes, real store, registry, MLflow."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from tests.flows.world import PROJECT, TINY, write_tiny_params

PARTS = ("flows", "tasks", "storage", "dvc.yaml", ".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore")
TRAINING = {f"train@sample-{variant}-0" for variant in ("clean", "protected", "recovered")}
pytestmark = pytest.mark.timeout(1800)  # the first test waits for the whole job


class Clone:
    """A committed copy of the project with tiny parameters."""

    def __init__(self, folder: Path, prefect_api: str) -> None:
        self.folder = folder
        own = {"PREFECT_API_URL": prefect_api, "PYTHONPATH": str(folder), "DMCP_WORKERS": "2", "DMCP_HOME": ".dmcp"}
        self.environment = os.environ | own
        for part in PARTS:
            target = folder / part
            target.parent.mkdir(parents=True, exist_ok=True)
            if (PROJECT / part).is_dir():
                shutil.copytree(PROJECT / part, target)  # with what is compiled already: numba takes a minute
            else:
                shutil.copy(PROJECT / part, target)
        write_tiny_params(folder)
        self.call("git", "init", "--quiet")
        self.commit()

    def commit(self) -> None:
        self.call("git", "add", "--all")
        self.call("git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "--quiet", "--message", "x")

    def call(self, *command: str, code: int = 0) -> str:
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def dvc(self, *arguments: str) -> str:
        return self.call(sys.executable, "-m", "dvc", *arguments)

    def pipeline(self, code: int = 0) -> str:
        return self.call(sys.executable, "-m", "flows.pipeline", "--dataset", "sample", code=code)

    def changed(self) -> set[str]:
        """Stages that DVC would run first, the graph as it stands."""
        return set(json.loads(self.dvc("status", "--json").splitlines()[-1]))

    def ran(self, output: str) -> list[str]:
        """Stages that DVC ran."""
        return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory, prefect_api: str) -> Clone:
    """A clone in which the pipeline ran once."""
    made = Clone(tmp_path_factory.mktemp("clone"), prefect_api)
    made.first = made.pipeline()  # type: ignore[attr-defined]
    return made


@pytest.fixture
def params(clone: Clone):
    """Changes params.yaml for one test."""
    before = (clone.folder / "params.yaml").read_bytes()
    yield lambda **sections: write_tiny_params(clone.folder, **sections)
    (clone.folder / "params.yaml").write_bytes(before)


def test_every_stage_ran_once_in_order(clone: Clone) -> None:
    ran = clone.ran(clone.first)  # type: ignore[attr-defined]
    assert ran[:4] == ["download@sample", "surrogate@sample", "protect@sample", "restore@sample"]
    assert set(ran[4:7]) == TRAINING
    assert ran[7:] == ["evaluate@sample", "report@sample"]


def test_published_and_tried_as_a_stranger_and_as_a_user(clone: Clone) -> None:
    said = clone.first  # type: ignore[attr-defined]
    assert "Published sample@" in said
    assert "without a grant" in said and "came back" in said
    folders = list((clone.folder / ".dmcp/objects").rglob("manifest.json"))
    assert len(folders) == 1
    assert folders[0].read_bytes() == (clone.folder / "data/sample/protected/manifest.json").read_bytes()


def test_the_report_and_the_figures_are_there(clone: Clone) -> None:
    evaluation = json.loads((clone.folder / "data/sample/metrics/evaluation.json").read_text())
    assert evaluation["counts"]["clean"] == TINY["download"]["train_limit"]
    assert evaluation["accuracy"].keys() == {"clean", "protected", "recovered"}
    assert (clone.folder / "data/sample/report.html").stat().st_size > 10_000
    assert "data/sample/plots/test_accuracy.csv" in clone.dvc(
        "plots", "show", "--json"
    )  # leaves a folder that git ignores


def test_the_tree_stays_clean_and_dvc_runs_nothing(clone: Clone) -> None:
    assert clone.call("git", "status", "--porcelain") == ""
    said = clone.dvc("repro")
    assert clone.ran(said) == []
    assert "up to date" in said


def test_a_pipeline_for_which_nothing_changed_does_nothing(clone: Clone) -> None:
    objects = {path: path.stat().st_mtime_ns for path in (clone.folder / ".dmcp/objects").rglob("*") if path.is_file()}
    public = {path: time for path, time in objects.items() if "dmcp-public" in path.parts}
    said = clone.pipeline()
    assert clone.ran(said) == []
    assert "is published: nothing to do" in said and "came back" not in said
    assert public and {path: path.stat().st_mtime_ns for path in public} == public


def test_a_protect_parameter_concerns_protect_and_not_the_surrogate(clone: Clone, params) -> None:
    params(protect={"exact": {"set": {"amplitude": 12}}})
    assert clone.changed() == {"protect@sample", "report@sample"}  # what follows protect does once its output changes
    follow = clone.dvc("dag", "--dot", "--full", "protect@sample").splitlines()
    assert '"protect@sample" -> "restore@sample";' in follow
    assert '"protect@sample" -> "train@sample-protected-0";' in follow
    assert '"restore@sample" -> "train@sample-recovered-0";' in follow


def test_a_train_parameter_concerns_training_and_what_follows(clone: Clone, params) -> None:
    params(train={"lr": 0.005})
    assert clone.changed() == {*TRAINING, "report@sample"}
    follow = clone.dvc("dag", "--dot", "--full", "report@sample").splitlines()
    assert '"train@sample-clean-0" -> "evaluate@sample";' in follow
    assert '"evaluate@sample" -> "report@sample";' in follow


def test_another_data_set_leaves_this_one_alone(clone: Clone) -> None:
    before = (clone.folder / "dvc.lock").read_bytes()
    select = "from flows.graph import select_dataset; import sys; select_dataset(sys.argv[1])"
    clone.call(sys.executable, "-c", select, "cifar10")
    assert clone.changed() >= {"download@cifar10", "protect@cifar10"}
    clone.call(sys.executable, "-c", select, "sample")
    assert clone.changed() == set()
    assert (clone.folder / "dvc.lock").read_bytes() == before


def test_a_stage_that_fails_says_why_and_its_exit_code_comes_through(clone: Clone, params) -> None:
    params(protect={"exact": {"set": {"amplitude": 300}}})
    said = clone.pipeline(code=2)
    assert "Error: protect@sample: amplitude is 300" in said
    assert "Traceback" not in said


def closure(path: Path) -> set[str]:
    """The modules of tasks and storage that a file imports, directly or through others, as paths."""
    import ast

    found: set[str] = set()
    waiting = [path]
    while waiting:
        tree = ast.parse(waiting.pop().read_text())
        for node in ast.walk(tree):
            names: Sequence[str] = ()
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for name in names:
                file = PROJECT / (name.replace(".", "/") + ".py")
                relative = file.relative_to(PROJECT).as_posix()
                if file.exists() and relative.startswith("tasks/") and relative not in found:
                    found.add(relative)
                    waiting.append(file)
    return found


# What a task imports and DVC need not watch: effects and records, which change no output.
NOT_WATCHED = {"tasks/params.py", "tasks/tracking.py", "tasks/tracked_run.py", "tasks/machine.py", "tasks/digests.py"}


@pytest.mark.parametrize("stage", ["download", "surrogate", "protect", "restore", "train", "evaluate", "report"])
def test_stages_depend_on_the_code_they_run(stage: str) -> None:
    deps = yaml.safe_load((PROJECT / "dvc.yaml").read_text())["stages"][stage]["deps"]
    code = closure(PROJECT / "tasks" / f"{stage}.py") | {f"tasks/{stage}.py"}
    assert not {name for name in code - NOT_WATCHED if not any(name == d or name.startswith(f"{d}/") for d in deps)}
