"""Answers that are there already: HOME/evidence/DIGEST.json, and MLflow.

Every answered cell is a run of the experiment DATASET-evidence, with its fields as tags, the curve, and the images it
was trained on as an input. The tag `cell_digest` is its identity, which no preset is part of. So results accumulate: a
cell is looked for in the file, then among the finished runs, and trained only when neither has it. A cell answered by a
process that was killed before MLflow heard of it is logged by the next run.
"""

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage.files import make_private, write_atomic
from storage.settings import Settings
from tasks.evidence.cells import CellJob
from tasks.evidence.records import CLEAN, Cell, CellResult
from tasks.tracking import Tracking, translated

if TYPE_CHECKING:
    from mlflow.entities import Run

DIGEST_TAG = "cell_digest"
CURVE = "test_accuracy"
_METRICS = ("train_accuracy", "test_accuracy", "peak_test_accuracy", "peak_epoch", "n_train", "n_test", "seconds")
_TEXTS = ("device", "precision")
_FINAL = "final_"
_DIGEST_LENGTH = 36  # of a data set, MLflow's limit
_METRICS_A_CALL = 1000


def evidence_home(settings: Settings) -> Path:
    """Where the evaluation keeps images, surrogates and answers: its owner's only."""
    return make_private(settings.home_path(), "evidence")


class Answers:
    """What was answered, on disk and in MLflow."""

    def __init__(self, tracking: Tracking, dataset: str) -> None:
        self.tracking = tracking
        self.dataset = dataset
        with translated(tracking.uri):
            self.experiment = tracking.experiment(f"{dataset}-evidence")
            runs = tracking.finished(self.experiment)
        self._runs = {run.data.tags[DIGEST_TAG]: run for run in reversed(runs) if DIGEST_TAG in run.data.tags}

    def find(self, job: CellJob) -> CellResult | None:
        """The answer to a cell, under the name that this cell has; None: it has to be trained.

        Raises:
            ServiceError: MLflow does not answer.
        """
        result = self._on_disk(job) or self._tracked(job)
        return None if result is None else self.record(job, result)

    def record(self, job: CellJob, result: CellResult) -> CellResult:
        """See that the answer is in MLflow and on disk; returned with the cell's own name and the run's id.

        Raises:
            ServiceError: MLflow does not answer; the answer stays on disk.
        """
        run = self._runs.get(job.digest)
        if run is None:
            with translated(self.tracking.uri):
                run = self._runs[job.digest] = self._log(job, result)
        known = result.model_copy(update={"mlflow_run": run.info.run_id})
        if result.mlflow_run != run.info.run_id or not job.result.exists():
            write_atomic(job.result, known.model_dump_json(indent=1).encode())
        return known.model_copy(update={"cell": job.cell})

    def _on_disk(self, job: CellJob) -> CellResult | None:
        try:
            result = CellResult.model_validate_json(job.result.read_bytes())
        except (OSError, ValueError):
            return None
        return result if result.digest == job.digest else None

    def _tracked(self, job: CellJob) -> CellResult | None:
        run = self._runs.get(job.digest)
        if run is None:
            return None
        with translated(self.tracking.uri):
            curve = self.tracking.client.get_metric_history(run.info.run_id, CURVE)
        return _read(run, [metric.value for metric in sorted(curve, key=lambda metric: metric.step)])

    def _log(self, job: CellJob, result: CellResult) -> "Run":
        from mlflow.entities import Metric, Param, RunStatus

        client, cell = self.tracking.client, result.cell
        networks, now = job.networks, int(time.time() * 1000)
        tags = {DIGEST_TAG: job.digest, "dataset": self.dataset} | {k: str(v) for k, v in cell.model_dump().items()}
        run = client.create_run(self.experiment, tags=tags, run_name=_name(cell))
        recipe = networks.recipe
        params = {"architecture": cell.architecture, "stem": networks.stem, "recipe": recipe.name}
        params |= {name: getattr(recipe, name) for name in ("epochs", "lr", "batch_size", "augment")}
        params |= {name: getattr(result, name) for name in _TEXTS}
        metrics = [Metric(CURVE, value, now, epoch) for epoch, value in enumerate(result.history, 1)]
        metrics += [Metric(_FINAL + name, float(getattr(result, name)), now, result.peak_epoch) for name in _METRICS]
        client.log_batch(run.info.run_id, params=[Param(name, str(value)) for name, value in params.items()])
        for first in range(0, len(metrics), _METRICS_A_CALL):
            client.log_batch(run.info.run_id, metrics=metrics[first : first + _METRICS_A_CALL])
        client.log_inputs(run.info.run_id, self._inputs(job))
        client.set_terminated(run.info.run_id, RunStatus.to_string(RunStatus.FINISHED))
        return run

    def _inputs(self, job: CellJob) -> list[Any]:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        used = [] if job.cell.rest_only else [("training", job.cell.protection, job.shown)]
        if job.cell.share < 1:
            used.append(("training", CLEAN, job.clean))
        inputs = []
        for context, name, images in [*used, ("evaluation", "test", job.test)]:
            source = json.dumps({"sha256": images.digest, "images": images.count})
            dataset = Dataset(f"{self.dataset}/{name}", images.digest[:_DIGEST_LENGTH], "local", source)
            inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", context)]))
        return inputs


def _name(cell: Cell) -> str:
    parts: Iterable[str] = (
        cell.protection,
        cell.architecture,
        cell.countermeasure if cell.countermeasure != "none" else "",
        cell.attack if cell.attack != "none" else "",
        f"{'rest without' if cell.rest_only else 'share'} {cell.share:g}" if cell.share < 1 else "",
        f"seed {cell.seed}",
    )
    return ", ".join(part for part in parts if part)


def _read(run: "Run", history: list[float]) -> CellResult | None:
    tags, metrics, params = run.data.tags, run.data.metrics, run.data.params
    try:
        return CellResult.model_validate(
            {
                "cell": {name: _plain(tags[name]) for name in Cell.model_fields},
                "digest": tags[DIGEST_TAG],
                "history": history,
                "mlflow_run": run.info.run_id,
                **{name: metrics[_FINAL + name] for name in _METRICS},
                **{name: params[name] for name in _TEXTS},
            }
        )
    except (KeyError, ValueError):
        return None  # a run of an older form


def _plain(text: str) -> Any:
    return {"True": True, "False": False}.get(text, text)
