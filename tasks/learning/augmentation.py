"""What happens to the training images from epoch to epoch: their order, and the shift and mirroring of each.

Everything random of an epoch is drawn before it starts, on the CPU, from (seed, epoch). So an epoch is the same on
every device, and after a resumption as in an uninterrupted run.
"""

import hashlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class EpochPlan:
    """One pass over n images; all tensors have length n and lie on the CPU.

    Attributes:
        order: int64, a permutation.
        rows, columns: int64, where the image begins in itself padded on all sides; None without augmentation.
        mirrored: bool; None without augmentation.
    """

    order: torch.Tensor
    rows: torch.Tensor | None = None
    columns: torch.Tensor | None = None
    mirrored: torch.Tensor | None = None


def plan_epoch(images: int, seed: int, epoch: int, crop_padding: tuple[int, int] | None) -> EpochPlan:
    """Draw an epoch.

    Args:
        images: how many there are.
        seed: of the training.
        epoch: counted from 1.
        crop_padding: padding (rows, columns) of crop and flip; None: no augmentation.
    """
    digest = hashlib.sha256(f"dmcp/epoch/{seed}/{epoch}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    order = torch.randperm(images, generator=generator)
    if crop_padding is None:
        return EpochPlan(order)
    rows, columns = (torch.randint(0, 2 * p + 1, (images,), generator=generator) for p in crop_padding)
    mirrored = torch.rand(images, generator=generator) < 0.5
    return EpochPlan(order, rows, columns, mirrored)


def crop_padding(height: int, width: int) -> tuple[int, int]:
    """Largest shift of crop and flip: an eighth of each side (4 pixels at 32x32), at least one pixel."""
    return max(1, height // 8), max(1, width // 8)


def crop_and_flip(
    images: torch.Tensor,
    rows: torch.Tensor,
    columns: torch.Tensor,
    mirrored: torch.Tensor,
    padding: tuple[int, int],
) -> torch.Tensor:
    """Cut each image out of itself padded with zeros, and mirror some, in one gather.

    Args:
        images: uint8 [N, H, W, C] on any device.
        rows, columns: int64 [N], 0 to twice the padding; the padding itself is no shift.
        mirrored: bool [N], left and right exchanged.
        padding: zeros on each side (rows, columns).

    Returns:
        uint8 [N, H, W, C].
    """
    n, height, width, _ = images.shape
    padded = F.pad(images, (0, 0, padding[1], padding[1], padding[0], padding[0]))
    device = images.device
    y = rows[:, None] + torch.arange(height, device=device)
    x = torch.arange(width, device=device).expand(n, width)
    x = columns[:, None] + torch.where(mirrored[:, None], width - 1 - x, x)
    return padded[torch.arange(n, device=device)[:, None, None], y[:, :, None], x[:, None, :]]
