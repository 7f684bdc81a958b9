"""The training loop: a whole data set on the device as bytes, a recipe, a seed.

No image is touched one by one: batches are gathered, augmented and normalised on the device. With the same seed, data,
machine and number of threads the result on the CPU is the same bit for bit, whether or not it was interrupted between
two epochs and resumed from the state that `checkpoint` was given.
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from storage.errors import DatasetError, ParameterError
from tasks.learning.augmentation import EpochPlan, crop_and_flip, crop_padding, plan_epoch
from tasks.learning.device import Precision, autocast, computing, describe_device, resolve_device, resolve_precision
from tasks.learning.evaluation import Evaluation, evaluate
from tasks.learning.fitting import fitted
from tasks.learning.interventions import Batch, Intervention, batch_generator
from tasks.learning.models import Normalized
from tasks.learning.recipes import Recipe, make_optimizer, make_schedule

Progress = Callable[[str, int, int | None], None]
"""Called as `progress(what, done, total)` after each batch: the epoch in words, and images over all epochs."""


@dataclass(frozen=True)
class LabelledImages:
    """uint8 [N, H, W, 3] and int64 [N]; all images of one size."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Epoch:
    """One line of the history. Accuracies are shares; loss and training accuracy are running means of the epoch."""

    epoch: int
    train_loss: float
    train_accuracy: float
    test_accuracy: float
    learning_rate: float
    seconds: float


TrainingState = dict[str, Any]
"""All that is needed to go on after an epoch: tensors, numbers and text, so that torch loads it with weights_only."""


@dataclass(frozen=True)
class TrainResult:
    """What came out.

    Attributes:
        history: one line an epoch.
        train_accuracy: of the final network, in eval mode, over the training images without augmentation.
        test: predictions of the final network for the test images.
        images_per_second: of training alone, median over the epochs of this process; 0 if there was none.
        seconds: of all epochs, those before a resumption included.
    """

    history: list[Epoch]
    train_accuracy: float
    test: Evaluation
    device: str
    precision: Precision
    images_per_second: float
    seconds: float

    @property
    def test_accuracy(self) -> float:
        """Of the final network."""
        return self.test.accuracy

    @property
    def peak(self) -> Epoch:
        """The first epoch with the highest test accuracy."""
        return max(self.history, key=lambda line: line.test_accuracy)


@dataclass
class _Run:
    """What the epochs of one training share."""

    model: Normalized
    images: torch.Tensor
    labels: torch.Tensor
    recipe: Recipe
    seed: int
    classes: int
    precision: Precision
    intervention: Intervention | None
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    progress: Progress | None
    history: list[Epoch] = field(default_factory=list)

    def state(self) -> TrainingState:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "history": [asdict(line) for line in self.history],
        }

    def resume(self, state: TrainingState) -> None:
        self.history = [Epoch(**line) for line in state["history"]]
        if len(self.history) < self.recipe.epochs or "model" in state:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])


def train(
    model: Normalized,
    training: LabelledImages,
    test: LabelledImages,
    *,
    classes: int,
    recipe: Recipe,
    seed: int,
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    intervention: Intervention | None = None,
    progress: Progress | None = None,
    resume: TrainingState | None = None,
    checkpoint: Callable[[TrainingState], None] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> TrainResult:
    """Train the network in place; it is left on the device, in eval mode.

    Args:
        seed: of order and augmentation (the weights' seed is `build_model`'s).
        device: "auto", "cpu" or "cuda".
        precision: "auto", "bf16" or "fp32".
        threads: of the CPU; see `device.computing`.
        intervention: changes each batch of the training, never the images that accuracies are measured with.
        resume: a state that `checkpoint` was given, by a training with the same arguments; or only the `history` of
            a finished one, when `model` is what came out of it: then it is evaluated and nothing more.
        checkpoint: called after each epoch. The state holds the live tensors: write it before returning.
        on_epoch: called after each epoch, after `checkpoint`; not for epochs before a resumption.

    Raises:
        ParameterError: images too small for the network, or the loss is no longer finite.
        DatasetError: sizes or labels do not fit, or there are fewer than 2 training images.
        SettingsError: the device is not there.
    """
    _check(training, test, classes)
    where = resolve_device(device)
    number_format = resolve_precision(precision, where)
    model.to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
    height, width = training.images.shape[1:3]
    with computing(where, threads) as count, fitted(model, height, width):
        optimizer = make_optimizer(recipe, model.network.parameters())
        steps = recipe.epochs * len(_batches(len(training.images), recipe.batch_size))
        images, labels = _on(where, training)
        schedule = make_schedule(recipe, optimizer, steps)
        run = _Run(
            model, images, labels, recipe, seed, classes, number_format, intervention, optimizer, schedule, progress
        )
        if resume is not None:
            run.resume(resume)
        test_images, test_labels = _on(where, test)
        speeds = []
        for epoch in range(len(run.history) + 1, recipe.epochs + 1):
            start = time.perf_counter()
            with _dropout_seeded(where, seed, epoch):
                loss, accuracy, rate = _train_epoch(run, epoch)
            speeds.append(len(images) / (time.perf_counter() - start))
            measured = evaluate(model, test_images, test_labels, classes, number_format)
            seconds = time.perf_counter() - start
            run.history.append(Epoch(epoch, loss, accuracy, measured.accuracy, rate, seconds))
            if checkpoint is not None:
                checkpoint(run.state())
            if on_epoch is not None:
                on_epoch(run.history[-1])
        return TrainResult(
            history=run.history,
            train_accuracy=evaluate(model, images, labels, classes, number_format).accuracy,
            test=evaluate(model, test_images, test_labels, classes, number_format),
            device=describe_device(where, count),
            precision=number_format,
            images_per_second=float(np.median(speeds)) if speeds else 0.0,
            seconds=sum(line.seconds for line in run.history),
        )


def _train_epoch(run: _Run, epoch: int) -> tuple[float, float, float]:
    """One pass. Returns mean loss, share predicted right while training, and the learning rate it began with."""
    n, device = len(run.images), run.images.device
    padding = crop_padding(*run.images.shape[1:3]) if run.recipe.augment == "crop-flip" else None
    plan = plan_epoch(n, run.seed, epoch, padding)
    rate = float(run.optimizer.param_groups[0]["lr"])
    loss_sum = torch.zeros((), device=device)
    right = torch.zeros((), dtype=torch.float64, device=device)
    run.model.train()
    done = 0
    for part in _batches(n, run.recipe.batch_size):
        images, targets = _gather(run, plan, part, padding)
        if run.intervention is not None:
            generator = batch_generator(run.seed, epoch, part.start)
            batch = Batch(images, targets, run.classes, generator, run.model, run.precision)
            images, targets = run.intervention(batch)
        with autocast(device, run.precision):
            logits = run.model(images)
        logits = logits.float()
        loss = F.cross_entropy(logits, targets, label_smoothing=run.recipe.label_smoothing)
        loss.backward()
        run.optimizer.step()
        run.optimizer.zero_grad()
        run.schedule.step()
        loss_sum += loss.detach() * len(targets)
        right += _right(logits.detach().argmax(1), targets)
        done += len(targets)
        if run.progress is not None:
            epochs = run.recipe.epochs
            run.progress(f"epoch {epoch} of {epochs}", (epoch - 1) * n + done, epochs * n)
    loss_mean = float(loss_sum) / n
    if not math.isfinite(loss_mean):
        raise ParameterError(f"The loss is no longer finite in epoch {epoch}.", "Lower lr in params.yaml.")
    return loss_mean, float(right) / n, rate


@contextmanager
def _dropout_seeded(device: torch.device, seed: int, epoch: int) -> Iterator[None]:
    """Dropout knows no generator but torch's own: seed that for an epoch, and leave it as it was."""
    digest = hashlib.sha256(f"dmcp/dropout/{seed}/{epoch}".encode()).digest()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        yield


def _gather(
    run: _Run, plan: EpochPlan, part: slice, padding: tuple[int, int] | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch as the model takes it: uint8 [B, 3, H, W], channels last in memory, and int64 [B]."""
    device = run.images.device
    chosen = plan.order[part].to(device)
    images, labels = run.images[chosen], run.labels[chosen]
    if padding is not None and plan.rows is not None and plan.columns is not None and plan.mirrored is not None:
        shifts = (plan.rows[part].to(device), plan.columns[part].to(device), plan.mirrored[part].to(device))
        images = crop_and_flip(images, *shifts, padding)
    return images.permute(0, 3, 1, 2), labels


def _right(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """How many are right; where targets are mixed, the sum of the predicted classes' shares."""
    if targets.dim() == 1:
        return (predictions == targets).sum()
    return targets.gather(1, predictions[:, None]).sum()


def _batches(n: int, size: int) -> list[slice]:
    """Slices of at most `size`, equal but for one image: no small batch at the end, whose statistics would be noise.

    None is a single image, which batch normalisation refuses: so a batch of 3 where an odd n is cut into pairs.
    """
    count = max(1, min(-(-n // size), n // 2))
    bounds = [n * i // count for i in range(count + 1)]
    return [slice(low, high) for low, high in pairwise(bounds)]


def _on(device: torch.device, data: LabelledImages) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(data.images).to(device), torch.from_numpy(data.labels).to(device)


def _check(training: LabelledImages, test: LabelledImages, classes: int) -> None:
    if len(training.images) < 2:
        raise DatasetError("There are fewer than 2 training images.", "Training needs more.")
    if training.images.shape[1:] != test.images.shape[1:]:
        sizes = " and ".join(f"{d.images.shape[2]} x {d.images.shape[1]}" for d in (training, test))
        raise DatasetError(
            f"Training and test images differ in size ({sizes} pixels).", "Set image_size in params.yaml to scale them."
        )
    for name, data in (("training", training), ("test", test)):
        if len(data.images) != len(data.labels) or (len(data.labels) and not _in_range(data.labels, classes)):
            raise DatasetError(f"The {name} labels do not fit {classes} classes.", "Build the variant again.")


def _in_range(labels: NDArray[np.int64], classes: int) -> bool:
    return bool(labels.min() >= 0 and labels.max() < classes)
