"""One run in MLflow, from the first epoch to the model."""

import json
import logging
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage.errors import ServiceError
from tasks.digests import dvc_digest
from tasks.tracking import translated

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow.entities import Metric

    from tasks.learning.training import Epoch
    from tasks.tracking import Tracking
    from tasks.training_job import NetworkParams, Trained

CURVES = ("train_loss", "train_accuracy", "test_accuracy", "learning_rate")

DATA_DIGEST, ACCURACY = "data_digest", "test_accuracy"
"""Tags of a registered model's version."""
BEST = "best"
"""Alias of the version with the highest test accuracy among those of the newest version's data."""

_EPOCHS_A_CALL = 200  # MLflow takes 1000 metrics in one


@dataclass(frozen=True)
class RunKey:
    """Which run: `identity` is the digest of everything that decides its result (`TrainingJob.digest`)."""

    dataset: str
    variant: str
    seed: int
    identity: str

    @property
    def name(self) -> str:
        """How MLflow's pages call it."""
        return f"{self.variant}-{self.seed}"

    @property
    def model_name(self) -> str:
        """The registered model that the network becomes a version of."""
        return f"{self.dataset}-{self.variant}"

    def tags(self) -> dict[str, str]:
        """Tags of the run, the state of the source code among them where git knows it."""
        commit = _git_commit()
        tags = {"dataset": self.dataset, "variant": self.variant, "seed": str(self.seed), "identity": self.identity}
        return tags | ({"git_commit": commit} if commit else {})


class TrackedRun:
    """A run that is under way. Made by `Tracking.start`.

    While a network trains, a store that stops answering costs nothing: what could not be written is written with the
    next epoch, and only `finish` raises.
    """

    def __init__(self, tracking: "Tracking", key: RunKey, experiment: str, run_id: str) -> None:
        self.tracking = tracking
        self.key = key
        self.experiment = experiment
        self.id = run_id
        logged = tracking.client.get_metric_history(run_id, CURVES[0])
        self._logged = max((metric.step for metric in logged), default=0)
        self._waiting: list[Epoch] = []

    def describe(self, params: "NetworkParams", training: Path, test: Path) -> None:
        """Log the parameters, and the variants as inputs.

        Raises:
            ServiceError: MLflow does not answer.
        """
        from mlflow.entities import Param

        values = {"architecture": params.architecture, "stem": params.stem, "image_size": params.image_size}
        recipe = asdict(params.recipe)
        values |= {"recipe": recipe.pop("name"), **recipe, "variant": self.key.variant, "seed": self.key.seed}
        inputs = [self._input(training, self.key.variant, "training"), self._input(test, "test", "evaluation")]
        with translated(self.tracking.uri):
            self.tracking.client.log_batch(self.id, params=[Param(name, str(v)) for name, v in values.items()])
            self.tracking.client.log_inputs(self.id, inputs)

    def _input(self, folder: Path, name: str, context: str) -> Any:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source = json.dumps({"uri": folder.as_posix()})
        dataset = Dataset(f"{self.key.dataset}/{name}", dvc_digest(folder), "local", source)
        return DatasetInput(dataset, [InputTag("mlflow.data.context", context)])

    def curve(self, lines: "Sequence[Epoch]") -> None:
        """Log epochs; those that the run has already are left out."""
        self._waiting += [line for line in lines if line.epoch > self._logged]
        try:
            self._write_curve()
        except ServiceError as error:
            logging.getLogger(__name__).warning("%s It is tried again after the next epoch.", error.what)

    def _write_curve(self) -> None:
        with translated(self.tracking.uri):
            while self._waiting:
                part = self._waiting[:_EPOCHS_A_CALL]
                self.tracking.client.log_batch(self.id, metrics=_metrics(part))
                self._logged = part[-1].epoch
                del self._waiting[: len(part)]

    def finish(self, trained: "Trained", images: Mapping[str, bytes] | None = None) -> None:
        """Log what came out and close the run; older runs of the same identity are marked as superseded.

        Args:
            images: pictures (PNG) to keep with the run, by file name.

        Raises:
            ServiceError: MLflow does not answer. Nothing is lost: start it and run the training again.
        """
        from mlflow.entities import RunStatus

        self._write_curve()
        with translated(self.tracking.uri):
            self.tracking.client.log_batch(self.id, metrics=_final(trained))
            self._log_pictures(trained, images or {})
            self._log_model(trained)
            self.tracking.client.set_terminated(self.id, RunStatus.to_string(RunStatus.FINISHED))
            self.tracking.supersede(self.experiment, self.key, self.id)

    def fail(self) -> None:
        """Close the run as failed; says nothing when MLflow does not answer."""
        from mlflow.entities import RunStatus

        with suppress(ServiceError), translated(self.tracking.uri):
            self.tracking.client.set_terminated(self.id, RunStatus.to_string(RunStatus.FAILED))

    def _log_pictures(self, trained: "Trained", images: Mapping[str, bytes]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for name, data in images.items():
                path = Path(folder) / Path(name).name
                path.write_bytes(data)
                self.tracking.client.log_artifact(self.id, str(path), "images")
        figure = confusion_figure(trained.result.test.confusion.tolist(), trained.info.classes)
        self.tracking.client.log_figure(self.id, figure, "confusion.png")

    def _log_model(self, trained: "Trained") -> None:
        """The network out of torchvision's parts, pickled, so that it loads and trains without this project.

        MLflow's default format (pt2) is a compiled graph: it can not be put into training mode.
        """
        import mlflow
        import numpy as np
        import torch
        from mlflow.models import ModelSignature
        from mlflow.types import Schema, TensorSpec

        shape = (-1, 3, trained.info.height, trained.info.width)
        single = np.dtype(np.float32)
        signature = ModelSignature(
            Schema([TensorSpec(single, shape)]), Schema([TensorSpec(single, (-1, len(trained.info.classes)))])
        )
        example = np.full((1, *shape[1:]), 0.5, np.float32)
        network = trained.model.portable().to("cpu", memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
        with _default_store(self.tracking.uri):
            with mlflow.start_run(run_id=self.id):
                logged = mlflow.pytorch.log_model(
                    network,
                    name="model",
                    signature=signature,
                    input_example=example,
                    pip_requirements=[f"{name}=={version(name)}" for name in ("torch", "torchvision")],
                    serialization_format="pickle",
                )
            self._register(logged.model_uri, logged.model_id, trained)

    def _register(self, uri: str, model_id: str, trained: "Trained") -> None:
        """Make the logged model a version of the variant's registered model, with tags, and set the aliases."""
        from mlflow.exceptions import MlflowException

        client, name = self.tracking.client, self.key.model_name
        with suppress(MlflowException):  # there is one already
            client.create_registered_model(name)
        tags = self._version_tags(trained)
        made = client.create_model_version(name, uri, self.id, tags=tags, await_creation_for=0, model_id=model_id)
        client.set_registered_model_alias(name, f"seed-{self.key.seed}", str(made.version))
        alike = [
            version
            for version in client.search_model_versions(f"name = '{name}'")
            if version.tags.get(DATA_DIGEST) == tags[DATA_DIGEST] and ACCURACY in version.tags
        ]
        best = max(alike, key=lambda version: (float(version.tags[ACCURACY]), int(version.version)))
        client.set_registered_model_alias(name, BEST, str(best.version))

    def _version_tags(self, trained: "Trained") -> dict[str, str]:
        """What the model was made of and how good it is, to be read without its run."""
        inputs = self.tracking.client.get_run(self.id).inputs
        found = inputs.dataset_inputs if inputs else []
        digests = {tag.value: entry.dataset.digest for entry in found for tag in entry.tags}
        return {
            "dataset": self.key.dataset,
            "variant": self.key.variant,
            "seed": str(self.key.seed),
            DATA_DIGEST: digests.get("training", ""),
            "test_digest": digests.get("evaluation", ""),
            ACCURACY: f"{trained.result.test_accuracy:.6f}",
            "peak_test_accuracy": f"{trained.result.peak.test_accuracy:.6f}",
        }


@contextmanager
def _default_store(uri: str) -> Iterator[None]:
    """Parts of MLflow, among them saving a model, know no client, only the process's store."""
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)


def _metrics(lines: "Sequence[Epoch]") -> "list[Metric]":
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    return [Metric(name, float(getattr(line, name)), now, line.epoch) for line in lines for name in CURVES]


def _final(trained: "Trained") -> "list[Metric]":
    from mlflow.entities import Metric

    result = trained.result
    values = {
        "final_train_accuracy": result.train_accuracy,
        "final_test_accuracy": result.test_accuracy,
        "peak_test_accuracy": result.peak.test_accuracy,
        "seconds": result.seconds,
        "images_per_second": result.images_per_second,
    }
    now = int(time.time() * 1000)
    return [Metric(name, float(value), now, len(result.history)) for name, value in values.items()]


def confusion_figure(matrix: list[list[int]], classes: Sequence[str]) -> "Figure":
    """A confusion matrix as a picture: shares of each actual class (row), with numbers up to 20 classes."""
    import numpy as np
    from matplotlib.figure import Figure

    counts = np.array(matrix, np.float64)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(12.0, 2.5 + 0.45 * len(classes))
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    few = len(classes) <= 20
    axes.set_xlabel("predicted")
    axes.set_ylabel("actual")
    if few:
        axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
        axes.set_yticks(range(len(classes)), classes)
        for (row, column), share in np.ndenumerate(shares):
            colour = "white" if share > 0.5 else "black"
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(picture, label="share of the actual class")
    return figure


def _git_commit() -> str:
    """The commit of the working folder, with "-dirty" when it was changed; empty where there is none."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout.strip()
