"""Training a network on a variant from disk, in a way that a killed process loses little.

The state after an epoch is kept in a work folder under a name that is the digest of everything that decides the result.
Whoever starts the same training again goes on from there, and gets what the uninterrupted training would have given.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage.errors import DatasetError, ParameterError
from storage.files import Progress, sha256_file
from storage.manifest import MANIFEST_NAME
from storage.settings import settings
from tasks.models_io import ModelInfo, TrainingState, load_state, save_state
from tasks.variants import Arrays, load_arrays

if TYPE_CHECKING:
    from tasks.learning.models import Normalized
    from tasks.learning.recipes import Recipe
    from tasks.learning.training import Epoch, LabelledImages, TrainResult

CHECKPOINT_SECONDS = 10.0
"""States are written at most this often: the shortest epochs take less time than the disk."""


@dataclass(frozen=True)
class NetworkParams:
    """The part of `surrogate` and `train` in params.yaml that says what is trained and how."""

    architecture: str
    stem: str
    recipe: "Recipe"
    image_size: int | None

    @classmethod
    def read(cls, section: Any) -> "NetworkParams":
        """From a mapping, or an object with these attributes.

        Raises:
            ParameterError: a value is missing, unknown or out of range.
        """
        from tasks.learning.recipes import recipe_named

        values = section if isinstance(section, Mapping) else vars(section)
        try:
            recipe = recipe_named(values["recipe"], values["epochs"], values["lr"], values["batch_size"])
            return cls(values["architecture"], values["stem"], recipe, values["image_size"])
        except KeyError as error:
            raise ParameterError(f"The parameter {error.args[0]!r} is missing.", "Add it to params.yaml.") from error


@dataclass(frozen=True)
class Twin:
    """A finished training of the same digest: what it made is what training again would make."""

    name: str
    model: "Normalized"
    history: "list[Epoch]"


@dataclass(frozen=True)
class Trained:
    """A network that was trained, on its device, in eval mode; `earlier`: what it was after the epochs of snapshots."""

    model: "Normalized"
    info: ModelInfo
    result: "TrainResult"
    n_train: int
    n_test: int
    earlier: "tuple[Normalized, ...]" = ()

    def metrics(self) -> dict[str, Any]:
        """Accuracies (shares) and what they were reached with; plain values."""
        return {
            "train_accuracy": self.result.train_accuracy,
            "test_accuracy": self.result.test_accuracy,
            "peak_test_accuracy": self.result.peak.test_accuracy,
            "peak_epoch": self.result.peak.epoch,
            "epochs": len(self.result.history),
            "architecture": self.info.architecture,
            "stem": self.info.stem,
            "n_train": self.n_train,
            "n_test": self.n_test,
            "device": self.result.device,
            "precision": self.result.precision,
        }


class TrainingJob:
    """One training. `run` it, put its results in place, then `finish` it.

    Args:
        variant: folder to train on; `test`: folder of the test split.
        params: what is trained and how.
        seed: of weights, order and augmentation.
        device, precision, threads: see `tasks.learning.training.train`.
        work: folder for states; None: below HOME.
        snapshots: so many networks are wanted, from along the training; the trained one is the last.
    """

    def __init__(
        self,
        variant: Path,
        test: Path,
        params: NetworkParams,
        seed: int,
        *,
        device: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
        work: Path | None = None,
        checkpoint_seconds: float = CHECKPOINT_SECONDS,
        snapshots: int = 1,
    ) -> None:
        from tasks.learning.snapshots import snapshot_epochs

        self.variant, self.test, self.params, self.seed = variant, test, params, seed
        self.device, self.precision, self.threads = device, precision, threads
        self.checkpoint_seconds = checkpoint_seconds
        self.snapshot_epochs = snapshot_epochs(params.recipe.epochs, snapshots)[:-1]
        folder = work if work is not None else settings().home_path("work", "training")
        self.state_path = folder / f"{self.digest()}.pt"
        self._saved = 0.0

    def digest(self) -> str:
        """SHA-256 (hex) of all that decides the network: data, parameters, seed, code, kind of device, torch.

        The number of threads is left out: it changes rounding only.
        """
        import torch

        from tasks.learning.device import resolve_device, resolve_precision

        device = resolve_device(self.device)
        facts = {
            "code": _code_digest(),
            "variant": _manifest_digest(self.variant),
            "test": _manifest_digest(self.test),
            "params": asdict(self.params),
            "seed": self.seed,
            "snapshots": self.snapshot_epochs,
            "device": device.type,
            "precision": resolve_precision(self.precision, device),
            "torch": torch.__version__,
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def run(
        self,
        progress: Progress | None = None,
        on_history: "Callable[[list[Epoch]], None] | None" = None,
        twin: Twin | None = None,
    ) -> Trained:
        """Train, or go on from where an earlier process was, or only measure what a twin made.

        Args:
            on_history: called with the lines of the epochs before a resumption, then with each new line.

        Raises:
            DatasetError, CorruptManifest, CorruptShard, UnsupportedImage: a variant can not be used.
            ParameterError: see `tasks.learning.training.train`.
            SettingsError: the device is not there.
        """
        from tasks.learning.models import Normalized, build_model, channel_statistics
        from tasks.learning.snapshots import with_weights
        from tasks.learning.training import Epoch, train

        training, test = self._load()
        state: TrainingState | None
        if twin is not None:
            model, state = twin.model, {"history": [asdict(line) for line in twin.history]}
        else:
            network = build_model(self.params.architecture, len(training.classes), self.params.stem, self.seed)
            model = Normalized(network, *channel_statistics(training.images))
            state = self._state()
        if state is not None and on_history is not None:
            on_history([Epoch(**line) for line in state["history"]])
        result = train(
            model,
            _labelled(training),
            _labelled(test),
            classes=len(training.classes),
            recipe=self.params.recipe,
            seed=self.seed,
            device=self.device,
            precision=self.precision,
            threads=self.threads,
            progress=progress,
            resume=state,
            checkpoint=self._checkpoint,
            on_epoch=(lambda line: on_history([line])) if on_history is not None else None,
        )
        height, width = training.images.shape[1:3]
        info = ModelInfo(self.params.architecture, self.params.stem, training.classes, height, width)
        earlier = tuple(with_weights(model, self._weights(e), height, width) for e in self.snapshot_epochs)
        return Trained(model, info, result, len(training.images), len(test.images), earlier)

    def finish(self) -> None:
        """Remove the states; call it when the results lie where they belong."""
        for path in (self.state_path, *map(self._snapshot_path, self.snapshot_epochs)):
            path.unlink(missing_ok=True)

    def _snapshot_path(self, epoch: int) -> Path:
        return self.state_path.with_suffix(f".{epoch}.pt")

    def _weights(self, epoch: int) -> dict[str, Any]:
        state = load_state(self._snapshot_path(epoch))
        if state is None:
            raise DatasetError(f"{self._snapshot_path(epoch)} is gone.", "Train again; leave the work folder alone.")
        return dict(state["model"])

    def _state(self) -> TrainingState | None:
        """Where an earlier process was; nowhere, if a snapshot of before is gone."""
        state = load_state(self.state_path)
        done = len(state["history"]) if state else 0
        whole = all(self._snapshot_path(epoch).exists() for epoch in self.snapshot_epochs if epoch <= done)
        return state if whole else None

    def _checkpoint(self, state: dict[str, Any]) -> None:
        epoch = len(state["history"])
        if epoch in self.snapshot_epochs:  # first, so that whoever goes on from the state below finds it
            save_state(self._snapshot_path(epoch), {"model": state["model"]})
        last = epoch == self.params.recipe.epochs
        if last or time.monotonic() - self._saved >= self.checkpoint_seconds:
            save_state(self.state_path, state)
            self._saved = time.monotonic()

    def _load(self) -> tuple[Arrays, Arrays]:
        training = load_arrays(self.variant, self.params.image_size)
        test = load_arrays(self.test, self.params.image_size)
        if training.classes != test.classes:
            raise DatasetError(
                f"{self.variant} and {self.test} name different classes.", "Build both from the same data set."
            )
        return training, test


@cache
def _code_digest() -> str:
    """Of the sources that decide a network: other code may train another one."""
    import tasks.learning

    around = [Path(__file__).with_name(name) for name in ("models_io.py", "training_job.py", "variants.py")]
    digest = hashlib.sha256()
    for path in [*sorted(Path(tasks.learning.__path__[0]).glob("*.py")), *around]:
        digest.update(f"{path.name} {sha256_file(path)}\n".encode())
    return digest.hexdigest()


def _manifest_digest(folder: Path) -> str:
    """A manifest names every shard by its digest, so its own digest stands for the variant."""
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise DatasetError(f"{folder} is no variant: it has no {MANIFEST_NAME}.", "Run the stage that builds it.")
    return sha256_file(path)


def _labelled(arrays: Arrays) -> "LabelledImages":
    from tasks.learning.training import LabelledImages

    return LabelledImages(arrays.images, arrays.labels)
