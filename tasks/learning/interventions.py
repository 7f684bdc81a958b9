"""What may step in between a batch and the network: other images, other targets, drawn from the batch's own generator.

An intervention draws everything random from `Batch.generator`, which is made on the CPU from (seed, epoch, first image
of the batch). So it keeps no state: a resumed training meets the same draws as an uninterrupted one, on every device.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch

from tasks.learning.device import Precision
from tasks.learning.models import Normalized


@dataclass(frozen=True)
class Batch:
    """A batch on its way into the network, after crop and flip.

    Attributes:
        images: uint8 [B, 3, H, W] on the network's device, channels last in memory.
        labels: int64 [B], there too.
        generator: on the CPU, of this batch alone.
        model: the network in training mode, as it is before this step.
        precision: that it computes in.
    """

    images: torch.Tensor
    labels: torch.Tensor
    classes: int
    generator: torch.Generator
    model: Normalized
    precision: Precision


Intervention = Callable[[Batch], tuple[torch.Tensor, torch.Tensor]]
"""Gives the images to train on, uint8 or float32 in 0..1 [B, 3, H, W], and their targets: int64 [B], or float32
[B, classes] that sum to 1."""


def batch_generator(seed: int, epoch: int, first: int) -> torch.Generator:
    """The generator of one batch, on the CPU.

    Args:
        epoch: counted from 1.
        first: position of the batch's first image in the epoch's order.
    """
    digest = hashlib.sha256(f"dmcp/batch/{seed}/{epoch}/{first}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
