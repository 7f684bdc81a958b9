"""Answers accumulate: on disk, and in MLflow when the disk has lost them."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from storage.settings import Settings
from tasks.evidence.cells import CellJob, Networks, digest_of
from tasks.evidence.images import write_set
from tasks.evidence.records import Cell, CellResult
from tasks.evidence.store import DIGEST_TAG, Answers
from tasks.learning.recipes import recipe_named
from tasks.tracking import Tracking, open_tracking


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tracking]:
    yield open_tracking(Settings(home=tmp_path_factory.mktemp("home")))


def job(folder: Path, **fields: object) -> CellJob:
    labels = np.arange(8) % 2
    images = write_set(folder / "clean", np.zeros((8, 32, 32, 3), np.uint8), labels, np.arange(8))
    networks = Networks(recipe_named("paper", 3), "imagenet", 2, "cpu")
    cell = Cell.model_validate({"protection": "exact", **fields})
    digest = digest_of(cell, images, images, images, networks)
    return CellJob(cell, digest, images, images, images, networks, folder / f"{digest}.json")


def result(asked: CellJob) -> CellResult:
    return CellResult(
        cell=asked.cell, digest=asked.digest, train_accuracy=0.75, test_accuracy=0.5, peak_test_accuracy=0.625,
        peak_epoch=2, history=[0.25, 0.625, 0.5], n_train=8, n_test=8, seconds=1.5, device="cpu, 1 thread",
        precision="fp32",
    )  # fmt: skip


def runs(tracking: Tracking, digest: str) -> int:
    experiment = tracking.experiment("cats-evidence")
    return sum(run.data.tags.get(DIGEST_TAG) == digest for run in tracking.finished(experiment))


def test_what_was_never_answered_is_not_found(tracking: Tracking, tmp_path: Path) -> None:
    assert Answers(tracking, "cats").find(job(tmp_path, seed=90)) is None


def test_an_answer_is_found_on_disk_and_logged_once(tracking: Tracking, tmp_path: Path) -> None:
    asked = job(tmp_path, seed=1)
    recorded = Answers(tracking, "cats").record(asked, result(asked))
    assert recorded.mlflow_run is not None
    written = asked.result.stat().st_mtime_ns
    found = Answers(tracking, "cats").find(asked)
    assert found == recorded
    assert asked.result.stat().st_mtime_ns == written
    assert runs(tracking, asked.digest) == 1


def test_an_answer_the_disk_lost_comes_from_mlflow(tracking: Tracking, tmp_path: Path) -> None:
    asked = job(tmp_path, seed=2, share=0.4, rest_only=True, countermeasure="cutout")
    recorded = Answers(tracking, "cats").record(asked, result(asked))
    asked.result.unlink()
    assert Answers(tracking, "cats").find(asked) == recorded
    assert asked.result.exists()
    assert runs(tracking, asked.digest) == 1


def test_an_answer_mlflow_has_not_heard_of_is_logged(tracking: Tracking, tmp_path: Path) -> None:
    asked = job(tmp_path, seed=3)
    asked.result.write_text(result(asked).model_dump_json())
    found = Answers(tracking, "cats").find(asked)
    assert found is not None
    assert found.mlflow_run is not None
    assert runs(tracking, asked.digest) == 1


def test_a_damaged_file_or_another_answer_is_none(tracking: Tracking, tmp_path: Path) -> None:
    asked, other = job(tmp_path, seed=4), job(tmp_path, seed=5)
    for text in ("{", result(other).model_dump_json()):
        asked.result.write_text(text)
        assert Answers(tracking, "cats").find(asked) is None


def test_an_answer_gets_the_name_of_the_cell_that_asks(tracking: Tracking, tmp_path: Path) -> None:
    asked, twin = job(tmp_path, seed=6), job(tmp_path, seed=6, protection="exact-recovered")
    assert asked.digest == twin.digest
    Answers(tracking, "cats").record(asked, result(asked))
    found = Answers(tracking, "cats").find(twin)
    assert found is not None
    assert found.cell == twin.cell


def test_the_runs_are_no_models_of_variants(tracking: Tracking, tmp_path: Path) -> None:
    asked = job(tmp_path, seed=7)
    Answers(tracking, "cats").record(asked, result(asked))
    assert tracking.compare("cats-evidence") == []
