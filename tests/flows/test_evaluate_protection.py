"""The evaluation of a protection, whole: every kind of row on a few images, twice; and its stage in DVC's graph."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.graph import SELECTION, is_current, select_dataset, stages
from storage.errors import ParameterError
from storage.settings import settings
from tasks.evidence.outputs import figures, main_rows
from tasks.evidence.presets import cells_of
from tasks.evidence.report import read_evidence
from tasks.params import deep_merge, load_params
from tests.flows.world import PROJECT, entered, write_tiny_params

NO_ROWS: dict[str, Any] = {"names": [], "of": []}
MAIN_ONLY = {
    "countermeasures": NO_ROWS, "attacks": NO_ROWS, "architectures": NO_ROWS, "shares": {"shares": [], "of": []},
}  # fmt: skip


def runs_of(dataset: str) -> list[Any]:
    from tasks.tracking import open_tracking

    tracking = open_tracking(settings())
    return tracking.finished(tracking.experiment(f"{dataset}-evidence"))


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory, prefect_api: str) -> Iterator[Path]:
    """The preset `tiny` on generated images; the working directory for the tests of this module."""
    from flows.download import download
    from flows.evaluate_protection import evaluate_protection

    with entered(tmp_path_factory.mktemp("evaluated")) as folder:
        write_tiny_params(folder)
        download("sample")
        evaluate_protection("sample", "tiny")
        yield folder


def test_every_row_is_answered(evaluated: Path) -> None:
    evidence = read_evidence(evaluated / "data/sample/evidence/tiny")
    asked = [cell for group in cells_of(load_params("sample").evidence.presets["tiny"]).values() for cell in group]
    assert [result.cell for result in evidence.cells] == asked
    assert {facts.name for facts in evidence.protections} == {"paper", "exact"}
    assert all(result.mlflow_run for result in evidence.cells)


def test_exact_comes_back_whole_and_its_recovered_row_is_the_clean_one(evaluated: Path) -> None:
    evidence = read_evidence(evaluated / "data/sample/evidence/tiny")
    exact = next(facts for facts in evidence.protections if facts.name == "exact")
    assert (exact.identical, exact.restored, exact.refused, exact.max_error) == (exact.images, exact.images, 0, 0)
    assert 20 < exact.psnr_mean < 40
    assert sum(exact.ssim.counts) == min(exact.images, load_params("sample").evaluate.quality_images)
    rows = {name: results[0] for name, results in main_rows(evidence).items()}
    assert rows["exact-recovered"].digest == rows["clean"].digest
    assert rows["exact"].digest != rows["clean"].digest
    assert len(runs_of("sample")) == len({result.digest for result in evidence.cells}) == len(evidence.cells) - 1


def test_keys_are_tried_and_nothing_wrong_comes_out(evaluated: Path) -> None:
    trials = read_evidence(evaluated / "data/sample/evidence/tiny").keys
    assert {trial.protection for trial in trials} == {"paper", "exact"}
    assert all(trial.tried and not trial.wrong for trial in trials)


def test_what_is_left_behind(evaluated: Path) -> None:
    folder = evaluated / "data/sample/evidence/tiny"
    names = {"results.json", "cells.csv", "curves.csv", "quality.csv", "images.png", "accuracy.svg", "report.html"}
    assert {path.name for path in folder.iterdir()} == names
    assert (folder / "curves.csv").read_text().startswith("epoch,clean,paper,exact,exact-recovered\n1,")
    evidence = read_evidence(folder)
    metrics = json.loads((evaluated / "data/sample/metrics/evidence-tiny.json").read_text())
    assert metrics == figures(evidence, "exact")
    assert metrics["objective"] == metrics["exact_peak"]
    attacks = [r.peak_test_accuracy for r in evidence.cells if r.cell.attack != "none"]
    assert metrics["exact_best_adaptive"] == pytest.approx(max(attacks), abs=1e-6)
    assert (evaluated / ".dmcp/evidence").stat().st_mode & 0o077 == 0


def test_nothing_is_computed_twice(evaluated: Path) -> None:
    from flows.evaluate_protection import evaluate_protection

    folder = evaluated / "data/sample/evidence/tiny"
    before, logged = read_evidence(folder), len(runs_of("sample"))
    shutil.rmtree(folder)
    evaluate_protection("sample", "tiny")
    after = read_evidence(folder)
    assert after.cells == before.cells  # with the seconds that each took
    assert after.protections == before.protections
    assert len(runs_of("sample")) == logged


def test_real_images(mirror: Path, tmp_path: Path, prefect_api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.download import download
    from flows.evaluate_protection import evaluate_protection

    monkeypatch.setenv("DMCP_MIRROR", str(mirror))
    with entered(tmp_path):
        raw = yaml.safe_load((PROJECT / "params.yaml").read_text())
        few = {
            "download": {"train_limit": 40, "test_limit": 20},
            "surrogate": {"epochs": 1},
            "evidence": {"presets": {"tiny": MAIN_ONLY | {"key_trials": 0, "protections": ["clean", "exact"]}}},
        }
        raw["datasets"]["cifar10"] = deep_merge(raw["datasets"]["cifar10"], few)
        Path("params.yaml").write_text(yaml.safe_dump(raw))
        download("cifar10")
        evaluate_protection("cifar10", "tiny")
        evidence = read_evidence(Path("data/cifar10/evidence/tiny"))
    assert [result.cell.protection for result in evidence.cells] == ["clean", "exact"]
    assert [(facts.images, facts.identical) for facts in evidence.protections] == [(40, 40)]


@pytest.fixture
def graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DVC repository with this project's graph, in which nothing has run."""
    from dvc.repo import Repo

    monkeypatch.chdir(tmp_path)
    shutil.copy(PROJECT / "dvc.yaml", tmp_path)
    write_tiny_params(tmp_path)
    Repo.init(no_scm=True).close()
    return tmp_path


def test_there_is_no_stage_unless_asked_for(graph: Path) -> None:
    select_dataset("sample")
    assert not [name for name in stages() if name.startswith("evaluate-protection")]
    select_dataset("sample", ["tiny", "quick"])
    found = [name for name in stages() if name.startswith("evaluate-protection")]
    assert found == ["evaluate-protection@sample-quick", "evaluate-protection@sample-tiny"]
    select_dataset("sample")
    assert "presets" not in yaml.safe_load(SELECTION.read_text())


def test_it_needs_the_images_and_nothing_else(graph: Path) -> None:
    select_dataset("cifar10", ["quick"])
    assert stages("evaluate-protection@cifar10-quick") == ["download@cifar10", "evaluate-protection@cifar10-quick"]
    assert not is_current("evaluate-protection@cifar10-quick")


def test_an_unknown_preset_leaves_the_selection(graph: Path) -> None:
    select_dataset("sample")
    with pytest.raises(ParameterError, match=r"slow.*full, quick, search, tiny"):
        select_dataset("sample", ["slow"])
    assert "presets" not in yaml.safe_load(SELECTION.read_text())
