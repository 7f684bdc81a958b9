"""What a trained network gets right."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tasks.learning.device import Precision, at_once, autocast

BATCH, PIXELS = 500, 1 << 20
"""Most images and pixels at once: what a network makes of them has to fit into memory."""


@dataclass(frozen=True)
class Evaluation:
    """Predictions of one network for n labelled images: int64 [n] each."""

    labels: NDArray[np.int64]
    predictions: NDArray[np.int64]
    classes: int

    @property
    def accuracy(self) -> float:
        """Share predicted right, 0 to 1."""
        return float((self.labels == self.predictions).mean()) if len(self.labels) else 0.0

    @property
    def confusion(self) -> NDArray[np.int64]:
        """int64 [classes, classes]: images by actual class (row) and predicted class (column)."""
        flat = np.bincount(self.labels * self.classes + self.predictions, minlength=self.classes**2)
        return flat.reshape(self.classes, self.classes).astype(np.int64)


def predict(model: nn.Module, images: torch.Tensor, precision: Precision, most: int = BATCH) -> torch.Tensor:
    """Predicted classes, int64 [N] on the images' device. The model is left in eval mode.

    Args:
        images: uint8 [N, H, W, 3] on the model's device.
        most: images at once.
    """
    model.eval()
    batch = at_once(most, PIXELS, *images.shape[1:3])
    with torch.inference_mode(), autocast(images.device, precision):
        parts = [model(part.permute(0, 3, 1, 2)).argmax(1) for part in images.split(batch)]
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64, device=images.device)


def evaluate(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, classes: int, precision: Precision
) -> Evaluation:
    """Compare predictions with labels.

    Args:
        images: uint8 [N, H, W, 3] on the model's device.
        labels: int64 [N].
    """
    predictions = predict(model, images, precision)
    return Evaluation(labels.cpu().numpy(), predictions.cpu().numpy(), classes)
