"""MLflow: every trained model is a run, and runs are compared by the digest of the data they were trained on.

A data set is an experiment; a run is one (variant, seed). It holds the parameters, the curves, final and peak accuracy,
a picture of the confusion matrix, image grids, the model, and the training and test variants as inputs whose digests
are DVC's. A run carries an identity, a digest of everything that decides its result:

* A training that was killed goes on in its own run.
* A training that is repeated with the same identity makes a new run and marks the older one with the tag
  `superseded_by`: nothing is deleted, and comparisons leave it out.

The models of a variant are versions of the registered model DATASET-VARIANT. Their tags name the data they were trained
on by digest, the seed and the accuracy; the alias seed-SEED names the latest, `best` the best one on the same data.
Without a setting everything lies below HOME: `mlflow.db` (SQLite) and `mlruns/` (models, pictures).
"""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage.disk import disk_fault
from storage.errors import ServiceError
from storage.settings import Settings

if TYPE_CHECKING:
    from mlflow.entities import Run

    from tasks.tracked_run import RunKey, TrackedRun

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",  # its default of 7 stalls a training for minutes
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",  # it warns of pickles, which `tracked_run` chooses knowingly
}

SUPERSEDED = "superseded_by"


def tracking_uri(settings: Settings) -> str:
    """Address of MLflow's tracking store: the setting, or SQLite at an absolute path below HOME."""
    return settings.mlflow_uri or f"sqlite:///{settings.home_path('mlflow.db')}"


def artifact_folder(settings: Settings) -> str:
    """Where the runs of a store without a server keep models and pictures: an absolute path below HOME."""
    return str(settings.home_path("mlruns"))


@dataclass(frozen=True)
class ComparedRun:
    """One line of a comparison. Accuracies are shares; digests are DVC's (empty when the run has none)."""

    variant: str
    seed: int
    train_accuracy: float
    test_accuracy: float
    peak_test_accuracy: float
    epochs: int
    architecture: str
    stem: str
    recipe: str
    data_digest: str
    test_digest: str
    started: datetime
    run_id: str


class Tracking:
    """A tracking store that answered. Made by `open_tracking`."""

    def __init__(self, uri: str, artifacts: str | None) -> None:
        from mlflow import MlflowClient

        self.uri = uri
        self.artifacts = artifacts
        self.client: MlflowClient = MlflowClient(uri, uri)

    def start(self, key: "RunKey") -> "TrackedRun":
        """Begin a run, or go on with the one that a killed process left.

        Raises:
            ServiceError: MLflow does not answer.
        """
        from mlflow.entities import RunStatus

        from tasks.tracked_run import TrackedRun

        with translated(self.uri):
            experiment = self.experiment(key.dataset)
            own = f"{_of(key.variant, key.seed)} and tags.identity = '{key.identity}'"
            left = self._runs(experiment, f"{own} and attributes.status = 'RUNNING'")
            if left:
                return TrackedRun(self, key, experiment, left[0].info.run_id)
            run = self.client.create_run(experiment, tags=key.tags(), run_name=key.name)
            self.client.update_run(run.info.run_id, RunStatus.to_string(RunStatus.RUNNING))
            return TrackedRun(self, key, experiment, run.info.run_id)

    def compare(self, dataset: str) -> list[ComparedRun]:
        """The latest finished run of each variant and seed, superseded ones left out; variants together, seeds rising.

        Raises:
            ServiceError: MLflow does not answer.
        """
        with translated(self.uri):
            experiment = self.client.get_experiment_by_name(dataset)
            if experiment is None:
                return []
            latest: dict[tuple[str, int], ComparedRun] = {}
            for run in self._runs(experiment.experiment_id, "attributes.status = 'FINISHED'"):
                if SUPERSEDED not in run.data.tags and "identity" in run.data.tags:
                    line = _compared(run)
                    latest.setdefault((line.variant, line.seed), line)
        order = {"clean": 0, "protected": 1, "recovered": 2}
        return sorted(latest.values(), key=lambda line: (order.get(line.variant, 3), line.variant, line.seed))

    def supersede(self, experiment: str, key: "RunKey", by: str) -> None:
        """Mark the finished runs of the same identity but `by`."""
        own = f"{_of(key.variant, key.seed)} and tags.identity = '{key.identity}'"
        for run in self._runs(experiment, own):
            if run.info.run_id != by and SUPERSEDED not in run.data.tags:
                self.client.set_tag(run.info.run_id, SUPERSEDED, by)

    def _runs(self, experiment: str, where: str) -> "list[Run]":
        """All runs, the latest first."""
        runs: list[Run] = []
        token = None
        while True:
            page = self.client.search_runs(
                [experiment], where, order_by=["attributes.start_time DESC"], page_token=token
            )
            runs += page
            token = page.token
            if not token:
                return runs

    def finished(self, experiment: str) -> "list[Run]":
        """All finished runs of an experiment, the latest first."""
        return self._runs(experiment, "attributes.status = 'FINISHED'")

    def experiment(self, dataset: str) -> str:
        """Id of the experiment of this name, made when there is none."""
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(dataset)
        if found is None:
            location = None if self.artifacts is None else (Path(self.artifacts) / dataset).as_uri()
            try:
                return str(self.client.create_experiment(dataset, location))
            except MlflowException:  # another process was faster
                found = self.client.get_experiment_by_name(dataset)
                if found is None:
                    raise
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)


def open_tracking(settings: Settings) -> Tracking:
    """Reach MLflow; the database is made when there is none.

    Call it before training starts, so that a server that is not there costs no training.

    Raises:
        ServiceError: it does not answer, or the address can not be used.
    """
    uri = tracking_uri(settings)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    remote = uri.startswith(("http://", "https://"))
    if remote:
        _ask(uri)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    with translated(uri), _one_at_a_time(settings.home_path("mlflow.lock")):
        tracking = Tracking(uri, None if remote else artifact_folder(settings))
        tracking.client.search_experiments(max_results=1)
    return tracking


def _ask(uri: str) -> None:
    import httpx

    try:
        answer = httpx.get(f"{uri.rstrip('/')}/health", timeout=10)
        answer.raise_for_status()
    except httpx.HTTPError as error:
        raise _unreachable(uri, error) from error


@contextmanager
def _one_at_a_time(lock: Path) -> Iterator[None]:
    """Two processes that both make the tables of a new database would fail each other."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def translated(uri: str) -> Iterator[None]:
    """Raise what MLflow, its database or the network raise as ServiceError, and what the disk does as DiskFault."""
    import requests
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, requests.RequestException, OSError) as error:
        fault = disk_fault(error) if isinstance(error, OSError) else None
        raise fault or _unreachable(uri, error) from error


def _unreachable(uri: str, error: Exception) -> ServiceError:
    reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
    cure = "Start it, or correct DMCP_MLFLOW_URI (unset: SQLite below HOME). A training under way goes on where it was."
    return ServiceError(f"MLflow does not answer at {_without_password(uri)}: {reason}.", cure)


def _without_password(uri: str) -> str:
    from urllib.parse import urlsplit, urlunsplit

    parts = urlsplit(uri)
    if parts.password is None:
        return uri
    return urlunsplit(parts._replace(netloc=f"{parts.username}:***@{parts.netloc.rpartition('@')[2]}"))


def _of(variant: str, seed: int) -> str:
    return f"tags.variant = '{variant}' and tags.seed = '{seed}'"


def _compared(run: "Run") -> ComparedRun:
    tags, metrics, params = run.data.tags, run.data.metrics, run.data.params
    digests = {_context(entry): entry.dataset.digest for entry in (run.inputs.dataset_inputs if run.inputs else [])}
    return ComparedRun(
        variant=tags["variant"],
        seed=int(tags["seed"]),
        train_accuracy=metrics.get("final_train_accuracy", 0.0),
        test_accuracy=metrics.get("final_test_accuracy", 0.0),
        peak_test_accuracy=metrics.get("peak_test_accuracy", 0.0),
        epochs=int(params.get("epochs", 0)),
        architecture=params.get("architecture", ""),
        stem=params.get("stem", ""),
        recipe=params.get("recipe", ""),
        data_digest=digests.get("training", ""),
        test_digest=digests.get("evaluation", ""),
        started=datetime.fromtimestamp(run.info.start_time / 1000, UTC),
        run_id=run.info.run_id,
    )


def _context(entry: Any) -> str:
    return next((tag.value for tag in entry.tags if tag.key == "mlflow.data.context"), "")
