import errno
import json
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from storage.errors import DiskFault, ServiceError
from storage.settings import Settings
from tasks.digests import dvc_digest
from tasks.learning.training import Epoch
from tasks.tracked_run import RunKey, confusion_figure
from tasks.tracking import SUPERSEDED, Tracking, artifact_folder, open_tracking, tracking_uri, translated
from tasks.train import train_variant
from tests.tasks.learning_data import PARAMS, sample

__all__ = ["sample"]

PICTURE = b"\x89PNG\r\n\x1a\n picture"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def tracking(home: Path) -> Tracking:
    return open_tracking(Settings(home=home))


@pytest.fixture(scope="module")
def first(sample: Path, home: Path, tracking: Tracking) -> dict[str, Any]:
    return trained(sample, home, tracking, "first")


def trained(sample: Path, home: Path, tracking: Tracking, out: str, seed: int = 0, **params: Any) -> dict[str, Any]:
    at = home / out
    return train_variant(
        sample / "clean", sample / "test", at / "model", at / "metrics.json", PARAMS | params,
        variant="clean", seed=seed, dataset="sample", tracking=tracking, device="cpu", threads=1, work=at / "work",
        images={"grid.png": PICTURE},
    )  # fmt: skip


def epochs(*numbers: int) -> list[Epoch]:
    return [Epoch(n, 1.0 / n, 0.1 * n, 0.2 * n, 0.01, 1.0) for n in numbers]


def test_a_run_holds_all_that_was_found(
    first: dict[str, Any], sample: Path, home: Path, tracking: Tracking, tmp_path: Path
) -> None:
    client = tracking.client
    run = client.get_run(first["mlflow_run"])
    assert run.info.status == "FINISHED" and run.info.run_name == "clean-0"
    assert run.data.tags.items() >= {"dataset": "sample", "variant": "clean", "seed": "0"}.items()
    assert run.data.params.items() >= {"recipe": "modern", "epochs": "3", "lr": "0.02", "stem": "imagenet"}.items()
    curve = client.get_metric_history(run.info.run_id, "test_accuracy")
    assert [point.step for point in curve] == [1, 2, 3]
    assert curve[-1].value == run.data.metrics["final_test_accuracy"] == first["test_accuracy"]
    assert run.data.metrics["peak_test_accuracy"] == first["peak_test_accuracy"]
    assert run.data.metrics["final_train_accuracy"] == first["train_accuracy"]

    inputs = {entry.tags[0].value: entry.dataset for entry in run.inputs.dataset_inputs}
    assert inputs["training"].name == "sample/clean" and inputs["training"].digest == dvc_digest(sample / "clean")
    assert inputs["evaluation"].digest == dvc_digest(sample / "test")
    assert json.loads(inputs["training"].source)["uri"] == (sample / "clean").as_posix()

    names = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {"confusion.png", "images"} <= names
    grid = client.download_artifacts(run.info.run_id, "images/grid.png", str(tmp_path))
    assert Path(grid).read_bytes() == PICTURE
    assert (home / "mlruns" / "sample").is_dir() and (home / "mlflow.db").is_file()


def test_the_logged_model_loads_predicts_and_trains(first: dict[str, Any], tracking: Tracking) -> None:
    import mlflow

    mlflow.set_tracking_uri(tracking.uri)
    (logged,) = [output.model_id for output in tracking.client.get_run(first["mlflow_run"]).outputs.model_outputs]
    model = mlflow.pytorch.load_model(f"models:/{logged}")
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        expected = model.eval()(images).numpy()
    served = mlflow.pyfunc.load_model(f"models:/{logged}").predict(images.numpy())
    np.testing.assert_allclose(served, expected, rtol=1e-4, atol=1e-4)

    named = mlflow.pytorch.load_model("models:/sample-clean@seed-0").eval()
    with torch.no_grad():
        np.testing.assert_allclose(named(images).numpy(), expected, rtol=1e-5, atol=1e-5)

    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = next(model.parameters()).detach().clone()
    model(images).square().sum().backward()
    optimizer.step()
    assert not torch.equal(before, next(model.parameters()))


def test_a_repetition_supersedes_and_another_seed_stands_beside(
    first: dict[str, Any], sample: Path, home: Path, tracking: Tracking
) -> None:
    again = trained(sample, home, tracking, "again")
    assert again["mlflow_run"] != first["mlflow_run"] and again["test_accuracy"] == first["test_accuracy"]
    assert tracking.client.get_run(first["mlflow_run"]).data.tags[SUPERSEDED] == again["mlflow_run"]
    other = trained(sample, home, tracking, "other", seed=1, epochs=1)
    longer = trained(sample, home, tracking, "longer", seed=1, epochs=2)
    lines = tracking.compare("sample")
    assert [(line.variant, line.seed, line.run_id) for line in lines] == [
        ("clean", 0, again["mlflow_run"]),
        ("clean", 1, longer["mlflow_run"]),  # the latest; the other was trained otherwise, so it is not superseded
    ]
    assert SUPERSEDED not in tracking.client.get_run(other["mlflow_run"]).data.tags
    registered = {seed: tracking.client.get_model_version_by_alias("sample-clean", f"seed-{seed}") for seed in (0, 1)}
    assert [registered[seed].run_id for seed in (0, 1)] == [again["mlflow_run"], longer["mlflow_run"]]
    tags = registered[0].tags
    assert tags["data_digest"] == dvc_digest(sample / "clean") and tags["test_digest"] == dvc_digest(sample / "test")
    assert (tags["dataset"], tags["variant"], tags["seed"]) == ("sample", "clean", "0")
    assert float(tags["test_accuracy"]) == pytest.approx(again["test_accuracy"], abs=1e-6)
    assert float(tags["peak_test_accuracy"]) == pytest.approx(again["peak_test_accuracy"], abs=1e-6)
    best = tracking.client.get_model_version_by_alias("sample-clean", "best")
    assert float(best.tags["test_accuracy"]) == max(
        float(made.tags["test_accuracy"]) for made in tracking.client.search_model_versions("name = 'sample-clean'")
    )
    assert lines[0].data_digest == lines[1].data_digest == dvc_digest(sample / "clean")
    assert (lines[0].test_accuracy, lines[0].epochs) == (again["test_accuracy"], 3)
    assert tracking.compare("nothing") == []


def test_a_killed_run_is_gone_on_with(tracking: Tracking) -> None:
    key = RunKey("killed", "protected", 2, "abc")
    run = tracking.start(key)
    run.curve(epochs(1, 2))
    resumed = tracking.start(key)
    assert resumed.id == run.id
    resumed.curve(epochs(1, 2))
    resumed.curve(epochs(3))
    points = tracking.client.get_metric_history(run.id, "train_loss")
    assert [(point.step, point.value) for point in points] == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert tracking.compare("killed") == []
    assert tracking.start(RunKey("killed", "protected", 2, "other")).id != run.id
    resumed.fail()
    assert tracking.client.get_run(run.id).info.status == "FAILED"
    assert tracking.start(key).id != run.id


def test_many_epochs_are_logged_in_few_calls(tracking: Tracking) -> None:
    run = tracking.start(RunKey("many", "clean", 0, "abc"))
    run.curve(epochs(*range(1, 601)))
    assert len(tracking.client.get_metric_history(run.id, "train_accuracy")) == 600


def test_variants_stand_in_the_order_of_the_job(tracking: Tracking) -> None:
    from mlflow.entities import Metric

    for variant, seed in (("recovered", 0), ("protected", 1), ("clean", 10), ("clean", 9), ("protected", 0)):
        run = tracking.start(RunKey("order", variant, seed, f"{variant}{seed}"))
        final = [Metric("final_test_accuracy", 0.5, int(time.time() * 1000), 1)]
        tracking.client.log_batch(run.id, metrics=final)
        tracking.client.set_terminated(run.id)
    assert [(line.variant, line.seed) for line in tracking.compare("order")] == [
        ("clean", 9), ("clean", 10), ("protected", 0), ("protected", 1), ("recovered", 0)
    ]  # fmt: skip


def test_a_server_that_does_not_answer_is_an_error_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = time.monotonic()
    with pytest.raises(ServiceError, match=f"127.0.0.1:{port}.*DMCP_MLFLOW_URI") as caught:
        open_tracking(Settings(home=tmp_path, mlflow_uri=f"http://user:hush@127.0.0.1:{port}"))
    assert time.monotonic() - start < 120, "MLflow's own patience is four minutes"
    assert "hush" not in str(caught.value)
    with pytest.raises(ServiceError):
        open_tracking(Settings(home=tmp_path, mlflow_uri="sqlite:////proc/none/mlflow.db"))


def test_a_store_that_goes_away_costs_no_training(tmp_path: Path) -> None:
    tracking = open_tracking(Settings(home=tmp_path))
    run = tracking.start(RunKey("gone", "clean", 0, "abc"))
    database, aside = tmp_path / "mlflow.db", tmp_path / "aside.db"
    tracking.client._tracking_client.store.engine.dispose()
    database.rename(aside)
    database.mkdir()
    run.curve(epochs(1))
    run.curve(epochs(2))
    database.rmdir()
    aside.rename(database)
    run.curve(epochs(3))
    assert [point.step for point in tracking.client.get_metric_history(run.id, "test_accuracy")] == [1, 2, 3]


def test_a_full_disk_is_none_of_mlflows_faults() -> None:
    with pytest.raises(DiskFault, match="The disk is full"), translated("sqlite:////x/mlflow.db"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(ServiceError, match="MLflow does not answer"), translated("http://x"):
        raise ConnectionResetError("gone")


def test_addresses_are_absolute_and_below_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings(home=Path("state"))
    assert tracking_uri(settings) == f"sqlite:///{tmp_path}/state/mlflow.db"
    assert artifact_folder(settings) == f"{tmp_path}/state/mlruns"
    assert tracking_uri(Settings(mlflow_uri="http://there")) == "http://there"


@pytest.mark.parametrize("classes", [2, 10, 60])
def test_the_confusion_picture_is_drawn_for_any_number_of_classes(classes: int, tmp_path: Path) -> None:
    matrix = np.random.default_rng(0).integers(0, 9, (classes, classes)).tolist()
    figure = confusion_figure(matrix, [f"class {i}" for i in range(classes)])
    figure.savefig(tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 1000
