"""Attack `learned-inverse`: a small network that learns from leaked originals how to undo the perturbation.

It sees the images with their carrier undone and what another attack makes of them, whichever comes nearest to the
leaked originals (`nearest_start`), and starts from there: an attacker uses all there is. It works on a quarter of the
pixels with four times the channels, as FFDNet does (Zhang et al., 2018), so that it sees 26 pixels across at little
cost; each layer has a gain and an offset a class. It learns what is left of the difference to the originals, on crops,
mirrored both ways.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

Images = NDArray[np.uint8]

_APPLY = 256


@dataclass(frozen=True)
class InverseParameters:
    """How the network is built and trained; the values suit 100 images of 32x32 and a minute of one core.

    Attributes:
        width: channels of its inner layers.
        layers: convolutions of 3x3.
        steps: of Adam, cosine schedule.
        rate: highest learning rate.
        batch_size: crops a step.
        crop: side of a crop as a share of the image's.
    """

    width: int = 48
    layers: int = 6
    steps: int = 400
    rate: float = 2e-3
    batch_size: int = 20
    crop: float = 0.75


class _Inverse(nn.Module):
    """float32 [n, 6, h, w] (even sides; images and start) and classes int64 [n] to float32 [n, 3, h, w]."""

    def __init__(self, classes: int, p: InverseParameters) -> None:
        super().__init__()
        sizes = [4 * 6, *[p.width] * (p.layers - 1), 12]
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(sizes))
        self.gains = nn.ModuleList(nn.Embedding(classes, 2 * p.width) for _ in sizes[1:-1])
        for gain in self.gains:
            nn.init.zeros_(gain.weight)  # type: ignore[arg-type]
        for parameter in self.convolutions[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        x = F.pixel_unshuffle(images, 2)
        for convolution, gain in zip(self.convolutions, self.gains, strict=False):
            scale, offset = gain(classes)[..., None, None].chunk(2, 1)
            x = F.relu(convolution(x) * (1 + scale) + offset)
        return images[:, 3:] - F.pixel_shuffle(self.convolutions[-1](x), 2)


def learned_inverse(
    images: Images,
    labels: NDArray[np.int64],
    classes: int,
    indices: NDArray[np.int64],
    clean: Images,
    start: Images,
    seed: int,
    device: torch.device,
    parameters: InverseParameters | None = None,
) -> Images:
    """What the network makes of all images.

    Args:
        images: uint8 [N, H, W, 3], their carrier undone.
        indices, clean: int64 [M] and uint8 [M, H, W, 3], the leaked originals.
        start: uint8 [N, H, W, 3], what another attack makes of them.

    Returns:
        uint8 [N, H, W, 3].
    """
    p = parameters or InverseParameters()
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _Inverse(classes, p).to(device)
    known = torch.from_numpy(labels).to(device)
    _fit(network, _input(images, start, indices, device), known[indices], _colours(clean, device), p, generator)
    result = np.empty_like(images)
    with torch.no_grad():
        for first in range(0, len(images), _APPLY):
            part = np.arange(first, min(first + _APPLY, len(images)))
            seen = _input(images, start, part, device)
            height, width = seen.shape[2:]
            even = F.pad(seen, (0, width % 2, 0, height % 2), mode="replicate")
            found = network(even, known[part])[:, :, :height, :width]
            result[part] = (found * 64 + 128).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    return result


def nearest_start(candidates: list[Images], indices: NDArray[np.int64], clean: Images) -> Images:
    """The candidate, uint8 [N, H, W, 3], with the smallest squared error to the leaked originals."""
    errors = [np.square(images[indices].astype(np.int32) - clean).mean() for images in candidates]
    return candidates[int(np.argmin(errors))]


def _fit(
    network: _Inverse,
    seen: torch.Tensor,
    labels: torch.Tensor,
    wanted: torch.Tensor,
    p: InverseParameters,
    generator: torch.Generator,
) -> None:
    """Train on crops, mirrored both ways, drawn from the generator."""
    optimizer = torch.optim.Adam(network.parameters(), p.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, p.steps)
    height, width = seen.shape[2:]
    tall, wide = (max(8, 2 * round(p.crop * side / 2)) for side in (height, width))
    both = torch.cat([seen, wanted], 1)
    for _ in range(p.steps):
        rows = torch.randint(len(both), (min(p.batch_size, 4 * len(both)),), generator=generator)
        top, left = (int(torch.randint(space + 1, (), generator=generator)) for space in (height - tall, width - wide))
        crop = both[rows.to(both.device), :, top : top + tall, left : left + wide]
        mirrored = [axis for axis in (2, 3) if int(torch.randint(2, (), generator=generator))]
        crop = crop.flip(mirrored)
        loss = F.mse_loss(network(crop[:, :-3], labels[rows.to(labels.device)]), crop[:, -3:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def _colours(images: Images, device: torch.device) -> torch.Tensor:
    """float32 [n, 3, h, w], about -2 to 2."""
    return (torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() - 128) / 64


def _input(images: Images, start: Images, rows: NDArray[np.int64], device: torch.device) -> torch.Tensor:
    """Some images and their start, float32 [m, 6, h, w]."""
    return torch.cat([_colours(images[rows], device), _colours(start[rows], device)], 1)
