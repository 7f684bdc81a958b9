"""Train one model on one variant and write down how good it is on clean test images."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage.errors import DatasetError
from storage.files import Progress, csv_bytes, replace_directory, write_atomic
from tasks.models_io import load_model, save_model
from tasks.training_job import NetworkParams, Trained, TrainingJob, Twin

if TYPE_CHECKING:
    from tasks.tracked_run import TrackedRun
    from tasks.tracking import Tracking


TRAINING_NAME = "training.json"


def train_variant(
    variant_dir: Path,
    test_dir: Path,
    out_dir: Path,
    metrics_path: Path,
    params: Any,
    *,
    variant: str,
    seed: int,
    dataset: str,
    tracking: "Tracking | None" = None,
    device: str = "auto",
    threads: int | None = None,
    work: Path | None = None,
    images: Mapping[str, bytes] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train a model; a killed training is gone on with, in the same MLflow run.

    Args:
        variant_dir: the variant to train on; `test_dir`: the clean test split.
        out_dir: gets `model.pt`, `history.csv` (a row an epoch), `confusion.csv` (actual, predicted: a row a test
            image) and `training.json` (the digest of all that decided the model), and appears whole.
        metrics_path: gets what is returned, as JSON.
        params: section `train` of params.yaml, a mapping or an object: architecture, stem, recipe, epochs, lr,
            batch_size, image_size.
        variant: clean, protected or recovered; a label only.
        seed: of weights, order and augmentation.
        tracking: where the run is logged (`tasks.tracking.open_tracking`); None: nowhere.
        device: "auto", "cpu" or "cuda".
        threads: of the CPU; None: every usable core.
        work: folder for the state of the training; None: below HOME.
        images: pictures (PNG) to keep with the run, by file name.

    Returns:
        The fields of `tasks.metrics.TrainMetrics`, and `peak_epoch`, `images_per_second`, and `same_as`: the clean
        model, where the recovered variant is the same data and nothing was trained again, else None.

    Raises:
        DatasetError, CorruptManifest, CorruptShard, UnsupportedImage: a variant can not be used.
        ParameterError: a parameter can not be used.
        SettingsError: the device is not there.
        ServiceError: MLflow does not answer, before the training or after; the state of the training is kept.
    """
    wanted = NetworkParams.read(params)
    job = TrainingJob(variant_dir, test_dir, wanted, seed, device=device, threads=threads, work=work)
    twin = find_twin(variant, seed, out_dir.parent, job)
    run = _start(tracking, job, dataset, variant)
    try:
        trained = job.run(progress, on_history=run.curve if run is not None else None, twin=twin)
    except Exception:
        if run is not None:
            run.fail()
        raise
    if run is not None:
        run.finish(trained, images)
    metrics = {
        **trained.metrics(),
        "variant": variant,
        "seed": seed,
        "recipe": wanted.recipe.name,
        "seconds": trained.result.seconds,
        "images_per_second": trained.result.images_per_second,
        "mlflow_run": run.id if run is not None else None,
        "same_as": twin.name if twin is not None else None,
    }
    _write_outputs(out_dir, trained, job.digest())
    write_atomic(metrics_path, (json.dumps(metrics, indent=2, sort_keys=True) + "\n").encode())
    job.finish()
    return metrics


def find_twin(variant: str, seed: int, models: Path, job: TrainingJob) -> Twin | None:
    """The clean variant's model, where the recovered variant is the same data and all else is the same too.

    One way only: a clean model is always trained. What can not be read is no twin.
    """
    from tasks.learning.training import Epoch

    folder = models / f"clean-{seed}"
    if variant != "recovered":
        return None
    try:
        if json.loads((folder / TRAINING_NAME).read_text())["digest"] != job.digest():
            return None
        with (folder / "history.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        history = [Epoch(int(r.pop("epoch")), seconds=0.0, **{k: float(v) for k, v in r.items()}) for r in rows]
        model = load_model(folder / "model.pt").model
    except (OSError, ValueError, KeyError, TypeError, DatasetError):
        return None
    return Twin(folder.name, model, history) if len(history) == job.params.recipe.epochs else None


def _start(tracking: "Tracking | None", job: TrainingJob, dataset: str, variant: str) -> "TrackedRun | None":
    if tracking is None:
        return None
    from tasks.tracked_run import RunKey

    run = tracking.start(RunKey(dataset, variant, job.seed, job.digest()))
    run.describe(job.params, job.variant, job.test)
    return run


def _write_outputs(out_dir: Path, trained: Trained, digest: str) -> None:
    result, classes = trained.result, trained.info.classes
    history = [
        (line.epoch, line.train_loss, line.train_accuracy, line.test_accuracy, line.learning_rate)
        for line in result.history
    ]
    pairs = zip(result.test.labels.tolist(), result.test.predictions.tolist(), strict=True)
    with replace_directory(out_dir) as folder:
        save_model(folder / "model.pt", trained.model, trained.info)
        write_atomic(folder / TRAINING_NAME, (json.dumps({"digest": digest}) + "\n").encode())
        head = ["epoch", "train_loss", "train_accuracy", "test_accuracy", "learning_rate"]
        write_atomic(folder / "history.csv", csv_bytes(head, history))
        names = ((classes[actual], classes[predicted]) for actual, predicted in pairs)
        write_atomic(folder / "confusion.csv", csv_bytes(["actual", "predicted"], names))
