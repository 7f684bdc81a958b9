"""The evaluation's tables, below `data/DATASET/plots`: what the report draws, and `dvc plots`.

curves.csv              epoch, variant, seed, train_loss, train_accuracy, test_accuracy: a row an epoch of a model
test_accuracy.csv       epoch, clean, protected, recovered: test accuracy, mean over seeds
train_accuracy.csv      the same of training accuracy
accuracy.csv            variant, seed, train_accuracy, test_accuracy, peak_test_accuracy: a row a model
confusion-VARIANT.csv   actual, predicted: a row a test image and model (class names)
errors.csv              error, protected, recovered: share of samples with this absolute error;
                        protected_images, recovered_images: images whose largest error this is
quality.csv             variant, key, psnr, ssim: a row a sampled image (psnr empty: identical)
payload.csv             from_bytes, to_bytes, images: a row a bin
rungs.csv               rung, images: which step of the ladder of fallbacks was taken
"""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from storage.errors import DatasetError
from storage.files import csv_bytes
from tasks.fidelity import COMPARED, Comparison, Pairs
from tasks.metrics import VARIANTS, Histogram, ProtectMetrics, TrainMetrics

CURVE_COLUMNS = ("train_loss", "train_accuracy", "test_accuracy")


def write_plots(
    folder: Path,
    dataset_dir: Path,
    models: Sequence[TrainMetrics],
    protect: ProtectMetrics,
    comparison: Comparison,
) -> None:
    """Write the tables into `folder`.

    Raises:
        DatasetError: a model's `history.csv` or `confusion.csv` is missing or lacks a column.
    """
    _write_training(folder, dataset_dir, models)
    _write_payloads(folder, protect)
    _write_csv(folder / "errors.csv", _error_columns(), _errors(comparison.pairs))
    _write_csv(folder / "quality.csv", ["variant", "key", "psnr", "ssim"], _quality(comparison.pairs))


def _write_training(folder: Path, dataset_dir: Path, models: Sequence[TrainMetrics]) -> None:
    curves: list[list[object]] = []
    means = {name: _Means() for name in ("test_accuracy", "train_accuracy")}
    confusion: dict[str, list[list[object]]] = {variant: [] for variant in VARIANTS}
    for model in models:
        at = dataset_dir / "models" / f"{model.variant}-{model.seed}"
        for row in _read_csv(at / "history.csv", ("epoch", *CURVE_COLUMNS)):
            curves.append([row["epoch"], model.variant, model.seed, *(row[name] for name in CURVE_COLUMNS)])
            for name, mean in means.items():
                mean.add(int(float(row["epoch"])), model.variant, float(row[name]))
        confusion[model.variant] += [
            [row["actual"], row["predicted"]] for row in _read_csv(at / "confusion.csv", ("actual", "predicted"))
        ]
    _write_csv(folder / "curves.csv", ["epoch", "variant", "seed", *CURVE_COLUMNS], curves)
    for name, mean in means.items():
        _write_csv(folder / f"{name}.csv", ["epoch", *VARIANTS], mean.rows())
    for variant, rows in confusion.items():
        _write_csv(folder / f"confusion-{variant}.csv", ["actual", "predicted"], rows)
    names = ["train_accuracy", "test_accuracy", "peak_test_accuracy"]
    accuracy = [[m.variant, m.seed, m.train_accuracy, m.test_accuracy, m.peak_test_accuracy] for m in models]
    _write_csv(folder / "accuracy.csv", ["variant", "seed", *names], accuracy)


def _write_payloads(folder: Path, protect: ProtectMetrics) -> None:
    sizes = protect.payload_bytes.histogram if protect.payload_bytes else Histogram()
    rows = zip(sizes.edges[:-1], sizes.edges[1:], sizes.counts, strict=True)
    _write_csv(folder / "payload.csv", ["from_bytes", "to_bytes", "images"], rows)
    _write_csv(folder / "rungs.csv", ["rung", "images"], protect.rungs.items())


class _Means:
    """Values by epoch and variant, averaged over whatever was added."""

    def __init__(self) -> None:
        self._values: dict[int, dict[str, list[float]]] = {}

    def add(self, epoch: int, variant: str, value: float) -> None:
        self._values.setdefault(epoch, {}).setdefault(variant, []).append(value)

    def rows(self) -> list[list[object]]:
        """A row an epoch: epoch, then the mean of each variant (empty where it has no such epoch)."""
        return [
            [epoch, *(f"{fmean(found[name]):.6f}" if found.get(name) else "" for name in VARIANTS)]
            for epoch, found in sorted(self._values.items())
        ]


def _error_columns() -> list[str]:
    return ["error", *COMPARED, *(f"{name}_images" for name in COMPARED)]


def _errors(pairs: Mapping[str, Pairs]) -> list[list[object]]:
    tallies = [pairs[name].errors for name in COMPARED]
    totals = [max(1, int(tally.samples.sum())) for tally in tallies]
    largest = max((tally.max_error or 0) for tally in tallies)
    return [
        [
            error,
            *(f"{int(tally.samples[error]) / total:.8f}" for tally, total in zip(tallies, totals, strict=True)),
            *(int(tally.worst[error]) for tally in tallies),
        ]
        for error in range(largest + 1)
    ]


def _quality(pairs: Mapping[str, Pairs]) -> list[list[object]]:
    return [
        [variant, key, "" if math.isinf(psnr) else f"{psnr:.4f}", f"{ssim:.6f}"]
        for variant, found in pairs.items()
        for key, psnr, ssim in zip(found.quality_keys, found.quality.psnr, found.quality.ssim, strict=True)
    ]


def _read_csv(path: Path, needed: Sequence[str]) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError as error:
        raise DatasetError(f"{path} is missing.", "Train the model again: dvc repro.") from error
    if missing := [name for name in needed if not rows or rows[0].get(name) is None]:
        raise DatasetError(
            f"{path} has no column {missing[0]}, or no row.", "Train the model again: dvc repro --force."
        )
    return rows


def _write_csv(path: Path, header: list[str], rows: Iterable[Sequence[object]]) -> None:
    path.write_bytes(csv_bytes(header, rows))
