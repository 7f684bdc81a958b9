"""Cutout, CutMix and mixup, as APBench applies them: to every image of every batch, each with draws of its own."""

import torch
import torch.nn.functional as F

from tasks.learning.interventions import Batch


def cutout(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """A black box half as high and half as wide as the image (16 of 32 pixels), its centre anywhere, cut at the edges.

    DeVries and Taylor, 2017.
    """
    n, _, height, width = batch.images.shape
    box = _boxes(batch, torch.full((n,), height // 2), torch.full((n,), width // 2))
    return batch.images.masked_fill(box, 0).contiguous(memory_format=torch.channels_last), batch.labels


def cutmix(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """A box of each image is that of another one; the targets are mixed by the pixels.

    The box's share of the area is drawn from Beta(1, 1), its centre anywhere; what lies outside is cut off, and the
    share counted again. Yun and others, 2019.
    """
    n, _, height, width = batch.images.shape
    side = torch.rand(n, generator=batch.generator).sqrt()
    box = _boxes(batch, (side * height).long(), (side * width).long())
    partner = _partners(batch)
    images = torch.where(box, batch.images[partner], batch.images).contiguous(memory_format=torch.channels_last)
    return images, _mixed_targets(batch, partner, box.float().mean((1, 2, 3)))


def mixup(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Each image and its target are a weighted mean with another one's; the weight is drawn from Beta(1, 1).

    Zhang and others, 2018.
    """
    share = torch.rand(len(batch.labels), generator=batch.generator).to(batch.images.device)
    partner = _partners(batch)
    images = batch.images.float() / 255
    images = torch.lerp(images, images[partner], share.view(-1, 1, 1, 1))
    return images.contiguous(memory_format=torch.channels_last), _mixed_targets(batch, partner, share)


def _partners(batch: Batch) -> torch.Tensor:
    """A permutation of the batch: int64 [B] on its device."""
    return torch.randperm(len(batch.labels), generator=batch.generator).to(batch.labels.device)


def _mixed_targets(batch: Batch, partner: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Float32 [B, classes]; `share`, float [B], is the partner's."""
    own = F.one_hot(batch.labels, batch.classes).float()
    return torch.lerp(own, own[partner], share[:, None])


def _boxes(batch: Batch, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Bool [B, 1, H, W]: inside a box of this size (int64 [B] each) around a pixel drawn for each image."""
    n, _, height, width = batch.images.shape
    device = batch.images.device
    inside = []
    for side, size in ((height, rows), (width, columns)):
        centre = torch.randint(0, side, (n,), generator=batch.generator)
        first, last = (centre - size // 2).to(device), (centre + size // 2).to(device)
        at = torch.arange(side, device=device)
        inside.append((at >= first[:, None]) & (at < last[:, None]))
    return (inside[0][:, :, None] & inside[1][:, None, :])[:, None]
