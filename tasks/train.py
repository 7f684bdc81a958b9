"""Train one model on one variant and write down how good it is on clean test images."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage.files import Progress, replace_directory, write_atomic
from tasks.models_io import load_model, save_model
from tasks.training_job import NetworkParams, Trained, TrainingJob, Twin

if TYPE_CHECKING:
    from tasks.tracked_run import TrackedRun
    from tasks.tracking import Tracking


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
        out_dir: gets `model.pt`, `history.csv` (a row an epoch) and `confusion.csv` (actual, predicted: a row a test
            image), and appears whole.
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
        The fields of `tasks.metrics.TrainMetrics`, and `peak_epoch`, `images_per_second`, `training` (the digest of
        all that decided the model) and `same_as` (the model beside this one that has the same digest, or None: then
        nothing was trained again).

    Raises:
        DatasetError, CorruptManifest, CorruptShard, UnsupportedImage: a variant can not be used.
        ParameterError: a parameter can not be used.
        SettingsError: the device is not there.
        ServiceError: MLflow does not answer, before the training or after; the state of the training is kept.
    """
    wanted = NetworkParams.read(params)
    job = TrainingJob(variant_dir, test_dir, wanted, seed, device=device, threads=threads, work=work)
    twin = find_twin(out_dir.parent, metrics_path.parent, out_dir.name, job.digest())
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
        "training": job.digest(),
        "same_as": twin.name if twin is not None else None,
    }
    _write_outputs(out_dir, trained)
    write_atomic(metrics_path, (json.dumps(metrics, indent=2, sort_keys=True) + "\n").encode())
    job.finish()
    return metrics


def find_twin(models: Path, metrics: Path, name: str, digest: str) -> Twin | None:
    """A model beside `name` that was trained on the same data in the same way, as the recovered variant's often is.

    Args:
        models, metrics: the folders of finished models and their records.
        digest: `TrainingJob.digest`.
    """
    from tasks.learning.training import Epoch

    for path in sorted(metrics.glob("train-*.json")):
        other = path.stem.removeprefix("train-")
        if other == name or not (models / other / "model.pt").is_file():
            continue
        if json.loads(path.read_text()).get("training") == digest:
            with (models / other / "history.csv").open(newline="") as file:
                rows = list(csv.DictReader(file))
            history = [Epoch(int(r.pop("epoch")), seconds=0.0, **{k: float(v) for k, v in r.items()}) for r in rows]
            return Twin(other, load_model(models / other / "model.pt").model, history)
    return None


def _start(tracking: "Tracking | None", job: TrainingJob, dataset: str, variant: str) -> "TrackedRun | None":
    if tracking is None:
        return None
    from tasks.tracked_run import RunKey

    run = tracking.start(RunKey(dataset, variant, job.seed, job.digest()))
    run.describe(job.params, job.variant, job.test)
    return run


def _write_outputs(out_dir: Path, trained: Trained) -> None:
    result, classes = trained.result, trained.info.classes
    history = [
        (line.epoch, line.train_loss, line.train_accuracy, line.test_accuracy, line.learning_rate)
        for line in result.history
    ]
    pairs = zip(result.test.labels.tolist(), result.test.predictions.tolist(), strict=True)
    with replace_directory(out_dir) as folder:
        save_model(folder / "model.pt", trained.model, trained.info)
        head = ["epoch", "train_loss", "train_accuracy", "test_accuracy", "learning_rate"]
        write_atomic(folder / "history.csv", _csv(head, history))
        names = ((classes[actual], classes[predicted]) for actual, predicted in pairs)
        write_atomic(folder / "confusion.csv", _csv(["actual", "predicted"], names))


def _csv(head: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return text.getvalue().encode()
