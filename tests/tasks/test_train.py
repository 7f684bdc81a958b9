import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from storage.errors import CorruptManifest, DatasetError, ParameterError
from tasks.learning.device import resolve_precision
from tasks.metrics import TrainMetrics, read_record
from tasks.models_io import load_model, load_models
from tasks.surrogate import train_surrogate
from tasks.train import train_variant
from tasks.training_job import NetworkParams, TrainingJob
from tasks.variants import load_arrays
from tests.tasks.learning_data import PARAMS, sample

__all__ = ["sample"]

ROOT = Path(__file__).resolve().parents[2]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def trained(sample: Path, out: Path, params: Any = PARAMS, seed: int = 0, **other: Any) -> dict[str, Any]:
    return train_variant(
        sample / "clean", sample / "test", out / "model", out / "metrics.json", params,
        variant="clean", seed=seed, dataset="sample", device="cpu", threads=1, work=out / "work", **other,
    )  # fmt: skip


def test_it_writes_what_the_evaluation_reads(sample: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    metrics = trained(sample, tmp_path, progress=lambda *call: seen.append(call))
    record = read_record(tmp_path / "metrics.json", TrainMetrics)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert (record.n_train, record.n_test, record.epochs, record.mlflow_run) == (96, 32, 3, None)
    made = ["confusion.csv", "history.csv", "model.pt", "training.json"]
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == made

    history = rows(tmp_path / "model" / "history.csv")
    assert [row["epoch"] for row in history] == ["1", "2", "3"]
    assert max(float(row["test_accuracy"]) for row in history) == record.peak_test_accuracy
    assert float(history[-1]["test_accuracy"]) == record.test_accuracy

    arrays = load_arrays(sample / "test")
    confusion = rows(tmp_path / "model" / "confusion.csv")
    assert Counter(row["actual"] for row in confusion) == Counter(arrays.classes[label] for label in arrays.labels)
    right = sum(row["actual"] == row["predicted"] for row in confusion)
    assert right / len(confusion) == record.test_accuracy

    loaded = load_model(tmp_path / "model" / "model.pt")
    assert loaded.info.classes == arrays.classes and (loaded.info.height, loaded.info.width) == arrays.images.shape[1:3]
    with torch.no_grad():
        predicted = loaded.model(torch.from_numpy(arrays.images).permute(0, 3, 1, 2)).argmax(1).tolist()
    agree = sum(arrays.classes[p] == row["predicted"] for p, row in zip(predicted, confusion, strict=True))
    assert agree >= 31  # float32 here, perhaps bfloat16 there
    assert seen[-1][1:] == (3 * 96, 3 * 96)
    assert list((tmp_path / "work").iterdir()) == []


def test_the_same_seed_gives_the_same_files(sample: Path, tmp_path: Path) -> None:
    short = PARAMS | {"epochs": 1}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        trained(sample, tmp_path / name, SimpleNamespace(**short), seed)
    for file in ("model.pt", "history.csv", "confusion.csv"):
        one, same, other = ((tmp_path / name / "model" / file).read_bytes() for name in "abc")
        assert one == same and (file == "confusion.csv" or one != other)


def test_the_same_data_beside_a_finished_model_is_not_trained_again(sample: Path, tmp_path: Path) -> None:
    def run(variant: str, data: str, seed: int = 0) -> dict[str, Any]:
        return train_variant(
            sample / data, sample / "test", tmp_path / "models" / f"{variant}-{seed}",
            tmp_path / "metrics" / f"train-{variant}-{seed}.json", PARAMS | {"epochs": 2}, variant=variant, seed=seed,
            dataset="sample", device="cpu", threads=1, work=tmp_path / "work",
        )  # fmt: skip

    first, twin = run("clean", "clean"), run("recovered", "clean")
    assert (first["same_as"], twin["same_as"]) == (None, "clean-0")
    for file in ("model.pt", "history.csv", "confusion.csv"):
        one, other = ((tmp_path / "models" / name / file).read_bytes() for name in ("clean-0", "recovered-0"))
        assert one == other
    assert first["test_accuracy"] == twin["test_accuracy"] and first["train_accuracy"] == twin["train_accuracy"]
    assert run("clean", "clean")["same_as"] is None  # trained again, though a twin lies beside it
    assert run("recovered", "clean", 1)["same_as"] is None
    assert run("recovered", "test")["same_as"] is None
    (tmp_path / "models" / "clean-0" / "history.csv").write_text("epoch\n1\n")
    assert run("recovered", "clean")["same_as"] is None


STOPS = """
import os, signal, sys
from pathlib import Path
from tasks.training_job import NetworkParams, TrainingJob

params = {params!r}
job = TrainingJob(Path({sample!r}) / "clean", Path({sample!r}) / "test", NetworkParams.read(params), 0,
                  device="cpu", threads=1, work=Path({work!r}), checkpoint_seconds=0, snapshots={snapshots})
def stop(lines):
    if lines[-1].epoch == 2:
        os.kill(os.getpid(), signal.SIGKILL)
job.run(on_history=stop)
"""


def test_a_killed_training_goes_on_and_gives_the_same_files(sample: Path, tmp_path: Path) -> None:
    trained(sample, tmp_path / "whole")
    out = tmp_path / "killed"
    code = STOPS.format(params=PARAMS, sample=str(sample), work=str(out / "work"), snapshots=1)
    killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, timeout=300)
    assert killed.returncode == -signal.SIGKILL
    assert len(list((out / "work").glob("*.pt"))) == 1

    epochs: list[str] = []
    trained(sample, out, progress=lambda what, done, total: epochs.append(what))
    assert set(epochs) == {"epoch 3 of 3"}
    for file in ("model.pt", "history.csv", "confusion.csv"):
        assert (out / "model" / file).read_bytes() == (tmp_path / "whole" / "model" / file).read_bytes()


def test_a_killed_surrogate_has_all_its_snapshots(sample: Path, tmp_path: Path) -> None:
    params = PARAMS | {"snapshots": 3, "seed": 0}
    how: dict[str, Any] = {"device": "cpu", "threads": 1}
    places = sample / "clean", sample / "test"
    train_surrogate(*places, tmp_path / "whole", params, work=tmp_path / "other", **how)

    work = tmp_path / "work"
    code = STOPS.format(params=PARAMS, sample=str(sample), work=str(work), snapshots=3)
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == -signal.SIGKILL
    assert len(list(work.glob("*.pt"))) == 3, "the state, and two snapshots"
    wanted = NetworkParams.read(PARAMS)
    for whole in (True, False):
        copied = tmp_path / f"copied-{whole}"
        shutil.copytree(work, copied)
        if not whole:
            next(copied.glob("*.1.pt")).unlink()
        job = TrainingJob(*places, wanted, 0, work=copied, snapshots=3, **how)
        assert (job._state() is not None) == whole, "without a snapshot of before, it begins again"
    epochs: set[str] = set()
    train_surrogate(
        *places, tmp_path / "again", params, work=work, progress=lambda what, done, total: epochs.add(what), **how
    )
    assert epochs == {"epoch 3 of 3"}
    assert (tmp_path / "again/model.pt").read_bytes() == (tmp_path / "whole/model.pt").read_bytes()
    assert len(load_models(tmp_path / "again/model.pt")) == 3
    assert list(work.iterdir()) == []


def test_other_inputs_are_another_training(sample: Path, tmp_path: Path) -> None:
    def digest(params: dict[str, Any], seed: int = 0, variant: str = "clean", **other: Any) -> str:
        wanted = NetworkParams.read(params)
        return TrainingJob(
            sample / variant, sample / "test", wanted, seed, device="cpu", work=tmp_path, **other
        ).digest()

    base = digest(PARAMS)
    assert base == digest(PARAMS, threads=2) == digest(PARAMS | {"lr": 0.02})
    others = [
        digest(PARAMS | {"epochs": 4}), digest(PARAMS | {"lr": None}), digest(PARAMS | {"stem": "small"}),
        digest(PARAMS | {"image_size": 32}), digest(PARAMS, 1), digest(PARAMS, variant="test"),
        digest(PARAMS, precision="fp32" if resolve_precision("auto", torch.device("cpu")) == "bf16" else "bf16"),
    ]  # fmt: skip
    assert len({base, *others}) == 8


def test_states_are_not_written_more_often_than_asked(sample: Path, tmp_path: Path) -> None:
    job = TrainingJob(
        sample / "clean", sample / "test", NetworkParams.read(PARAMS), 0, device="cpu", threads=1, work=tmp_path,
        checkpoint_seconds=3600,
    )  # fmt: skip
    job._saved = time.monotonic()
    found: list[bool] = []
    job.run(on_history=lambda lines: found.append(job.state_path.exists()))
    assert found == [False, False, True]
    job.finish()
    assert not job.state_path.exists()


def test_a_missing_variant_or_parameter_is_refused(sample: Path, tmp_path: Path) -> None:
    with pytest.raises((DatasetError, CorruptManifest)):
        trained(tmp_path, tmp_path)
    with pytest.raises(ParameterError, match="image_size"):
        trained(sample, tmp_path, {name: value for name, value in PARAMS.items() if name != "image_size"})
    with pytest.raises(ParameterError, match="resnet9"):
        trained(sample, tmp_path, PARAMS | {"architecture": "resnet9"})
    assert not (tmp_path / "model").exists()


def test_the_surrogate_is_a_model_and_its_folder_the_same_each_time(sample: Path, tmp_path: Path) -> None:
    params = PARAMS | {"seed": 3, "epochs": 2, "snapshots": 2}
    for name in ("a", "b"):
        metrics = train_surrogate(
            sample / "clean", sample / "test", tmp_path / name, params, device="cpu", threads=1, work=tmp_path / "work"
        )
    for file in ("model.pt", "metrics.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    written = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert written.items() <= metrics.items() and metrics["seconds"] > 0
    assert written["seed"] == 3 and written["recipe"] == "modern"
    assert [one.info.architecture for one in load_models(tmp_path / "a" / "model.pt")] == ["resnet18"] * 2
    assert list((tmp_path / "work").iterdir()) == []
