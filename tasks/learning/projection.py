"""Orthogonal projection: what a linear classifier finds in the pixels is taken out of them.

Sandoval-Segura and others, "What Can We Learn from Unlearnable Datasets?", NeurIPS 2023 (psandovalsegura/
learn-from-unlearnable). A logistic regression without a bias is trained on the pixels, where perturbations that are
the same for a class are linearly separable; QR makes an orthonormal basis of its weights; the part of every image in
that basis is removed. The classifier's training is theirs (plain SGD, learning rate 0.1, a tenth of it at half and
again at three quarters, batches of 1024, and their 980 steps for CIFAR-10) with these differences:

* The images are shuffled, from the seed; 980 steps are made for every size of the data set.
* The learning rate is scaled by 3072 / samples of an image: it moves the logits as much for larger images.
* The mean image's part stays, so that fewer samples fall out of 0..255, where they have to be clipped; a constant image
  is all that this changes. Theirs goes on with numbers out of range.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from tasks.learning.device import computing, resolve_device

STEPS = 980
BATCH = 1024
RATE, RATE_SAMPLES = 0.1, 3072
PART = 1024


@dataclass(frozen=True)
class OrthogonalProjection:
    """Takes the span of a basis out of images.

    Attributes:
        mean: float32 [d] in units of 0..1.
        basis: float32 [d, k], columns orthonormal.
    """

    mean: torch.Tensor
    basis: torch.Tensor

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """uint8 [N, H, W, 3] to the same, rounded and clipped."""
        result = np.empty_like(images)
        for start in range(0, len(images), PART):
            part = images[start : start + PART]
            values = self.project(torch.from_numpy(part).to(self.basis.device).flatten(1).float() / 255)
            rounded = (values * 255).round_().clamp_(0, 255).to(torch.uint8)
            result[start : start + PART] = rounded.cpu().numpy().reshape(part.shape)
        return result

    def project(self, values: torch.Tensor) -> torch.Tensor:
        """Float32 [N, d] to the same, neither rounded nor clipped."""
        return values - ((values - self.mean) @ self.basis) @ self.basis.t()


def fit_projection(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    *,
    classes: int,
    seed: int,
    device: str = "auto",
    threads: int | None = None,
) -> OrthogonalProjection:
    """Find the projection that takes the classes' linear patterns out.

    Args:
        images: uint8 [N, H, W, 3], N at least 1; labels: int64 [N].
        seed: of first weights and order.
        device, threads: see `training.train`.

    Raises:
        SettingsError: the device is not there.
    """
    where = resolve_device(device)
    with computing(where, threads):
        on_device = torch.from_numpy(images).to(where).flatten(1)
        weights = linear_weights(on_device, torch.from_numpy(labels).to(where), classes, seed)
        columns = F.normalize(weights.cpu().double(), dim=1).t()
        basis = torch.linalg.qr(columns).Q.float().contiguous().to(where)
        mean = torch.from_numpy(images.reshape(len(images), -1).mean(0, dtype=np.float64) / 255).float().to(where)
    return OrthogonalProjection(mean, basis)


def linear_weights(
    images: torch.Tensor, labels: torch.Tensor, classes: int, seed: int, steps: int = STEPS
) -> torch.Tensor:
    """Weights of a logistic regression on pixels in 0..1, without a bias.

    Args:
        images: uint8 [N, d]; labels: int64 [N], on the same device.

    Returns:
        float32 [classes, d] on that device.
    """
    n, d = images.shape
    generator = torch.Generator().manual_seed(seed)
    weights = (torch.rand((classes, d), generator=generator) * 2 - 1).div_(d**0.5).to(images.device)
    order, at = torch.empty(0, dtype=torch.int64), 0
    for step in range(steps):
        if at >= len(order):
            order, at = torch.randperm(n, generator=generator), 0
        chosen = order[at : at + BATCH].to(images.device)
        at += BATCH
        rate = RATE * RATE_SAMPLES / d * 0.1 ** ((step >= steps // 2) + (step >= steps * 3 // 4))
        pixels = images[chosen].float() / 255
        errors = (pixels @ weights.t()).softmax(1) - F.one_hot(labels[chosen], classes)
        weights -= errors.t() @ pixels * (rate / len(chosen))
    return weights
