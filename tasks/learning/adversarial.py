"""Adversarial training: each batch is replaced by images that the network, as it is, gets wrong.

Madry and others, 2018: projected gradient descent in the L-infinity ball, in pixels of 0..1. A perturbation that
protects lies in such a ball too, so a network that must not rely on any of them does not rely on that one.

One step from a random start is the default ("Fast is better than free", Wong and others, 2020): a step of 1.25 epsilon,
which costs one more forward and backward pass a batch, not ten, and comes close to PGD as long as trainings are short.
With more steps, each is 2.5 epsilon / steps, as Madry's; APBench takes 10 of about 2/255.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from storage.errors import ParameterError
from tasks.learning.device import autocast
from tasks.learning.interventions import Batch


@dataclass(frozen=True)
class AdversarialTraining:
    """An intervention: train on adversarial examples alone, with their true labels.

    The attack sees the network in training mode, with the statistics of the batch in batch normalisation, and leaves
    the running statistics alone. Predicted right while training then means: in spite of the attack.

    Attributes:
        epsilon: largest change of a sample, in units of 0..1.
        steps: of the attack.

    Raises:
        ParameterError: epsilon is not between 0 and 1, or there is no step.
    """

    epsilon: float = 8 / 255
    steps: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.epsilon <= 1:
            raise ParameterError(f"epsilon is {self.epsilon}.", "Choose a value above 0, up to 1.")
        if self.steps < 1:
            raise ParameterError(f"steps is {self.steps}.", "Choose a value from 1.")

    @property
    def step(self) -> float:
        """Length of one step, in units of 0..1."""
        return self.epsilon * (1.25 if self.steps == 1 else 2.5 / self.steps)

    def __call__(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Float32 [B, 3, H, W] in 0..1, channels last in memory, and the labels."""
        clean = batch.images.float() / 255
        low, high = (clean - self.epsilon).clamp(min=0), (clean + self.epsilon).clamp(max=1)
        images = torch.clamp(clean + self._start(batch), low, high)
        with _under_attack(batch.model):
            for _ in range(self.steps):
                images = torch.clamp(images + self.step * _ascent(batch, images), low, high)
        return images, batch.labels

    def _start(self, batch: Batch) -> torch.Tensor:
        """Uniform noise up to epsilon, drawn in the order of memory."""
        n, channels, height, width = batch.images.shape
        noise = torch.rand((n, height, width, channels), generator=batch.generator)
        return (noise * 2 - 1).mul_(self.epsilon).to(batch.images.device).permute(0, 3, 1, 2)


def _ascent(batch: Batch, images: torch.Tensor) -> torch.Tensor:
    """Signs of the loss's gradient by the images."""
    images = images.detach().requires_grad_()
    with autocast(images.device, batch.precision):
        logits = batch.model(images)
    loss = F.cross_entropy(logits.float(), batch.labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, images)
    return gradient.sign()


@contextmanager
def _under_attack(model: nn.Module) -> Iterator[None]:
    """Weights need no gradient, and running statistics stay as they are."""
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    tracking = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    for parameter in learnt:
        parameter.requires_grad_(False)
    for module in tracking:
        module.track_running_stats = False
    try:
        yield
    finally:
        for parameter in learnt:
            parameter.requires_grad_(True)
        for module in tracking:
            module.track_running_stats = True
