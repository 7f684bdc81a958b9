"""Attacks `class-average` and `block-smoothing`, on images whose carrier is undone (`adaptive_carrier`).

*Class average.* A perturbation that depends on the class shows in what the images of the class have on average beyond
those of all classes. Two averages: of the pixels, which is subtracted, and of the power spectra, against which each
image's spectrum is evened out. The second bites where patterns vary from image to image and only their frequencies
name the class. Both above 0.1 periods a pixel only: what classes have in common below that is sky, sea and grass.

*Block smoothing.* Profile `paper` shifts each block by a multiple of a step; block side and step stand in the header.
The means of blocks are denoised: sliding cosine transforms of 4x4 in opponent colours, whose small coefficients are set
to zero (Yu and Sapiro, 2011). What that takes from a block is the estimate of its shift: multiples of the step are
likelier, and more than a step is not taken. Where the header tells no step (profile `exact`), the default amplitude is
taken for it.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from tasks.learning.adaptive_carrier import headers_of
from tasks.learning.device import at_once
from tasks.method.exact import ExactParameters
from tasks.method.header import PROFILE_PAPER, Header
from tasks.method.paper import Geometry

Images = NDArray[np.uint8]

_COARSE = 0.1
"""Periods a pixel up to which a class's average is left alone."""

_SIDE = 4
"""Of the cosine transform; 8x8 is no better on images of 32x32, by experiment."""

_THRESHOLD = 2.3
"""In standard deviations of the perturbation; by experiment, where 1.9 and 2.7 differ by 0.1 dB."""

_POWER = 0.9
"""Standard deviation of the perturbation, in steps: most samples are shifted by one."""

_SNAP = 1.5
"""Slope of the tanh that pulls a shift towards a multiple of the step."""

_BATCH, _PIXELS = 256, 1 << 18
"""Most images and pixels at once: spectra and patches take some hundred bytes a pixel."""


def subtract_class_average(images: Images, labels: NDArray[np.int64], classes: int, device: torch.device) -> Images:
    """Even out each class's mean image and mean power spectrum; uint8 [N, H, W, 3].

    A class's spectrum is only ever lowered, to the median over the classes.
    """
    members, result = [rows for c in range(classes) if len(rows := np.flatnonzero(labels == c))], images.copy()
    if not members:
        return result
    found = [_averages(images, rows, device) for rows in members]
    overall = sum(mean * len(rows) for (mean, _), rows in zip(found, members, strict=True)) / len(images)
    median, fine = torch.stack([power for _, power in found]).median(0).values, _fine(images.shape, device)
    for rows, (mean, power) in zip(members, found, strict=True):
        gain = torch.where(fine, (median / power.clamp_min(1e-9)).sqrt().clamp_max(1), 1)
        for part in _portions(rows, images):
            spectrum = torch.fft.rfft2(_mirrored(_on(images[part], device))) - fine * (mean - overall)
            result[part] = _off(_quarter(torch.fft.irfft2(spectrum * gain, s=_twice(images.shape)), images.shape))
    return result


def _averages(images: Images, rows: NDArray[np.int64], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean spectrum, complex64, and mean power spectrum of some images, smoothed a little; both [3, 2h, w + 1]."""
    mean, power = torch.zeros(1, device=device), torch.zeros(1, device=device)
    for part in _portions(rows, images):
        spectra = torch.fft.rfft2(_mirrored(_on(images[part], device)))
        mean, power = mean + spectra.sum(0), power + spectra.abs().square().sum(0)
    smooth = F.avg_pool2d(F.pad(power[None] / len(rows), (1, 1, 1, 1), mode="replicate"), 3, 1)[0]
    return mean / len(rows), smooth


def _fine(shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Where a mirrored image's spectrum is above `_COARSE`, bool [2h, w + 1]."""
    height, width = _twice(shape)
    down, across = torch.fft.fftfreq(height, device=device), torch.fft.rfftfreq(width, device=device)
    return torch.hypot(down[:, None], across[None].expand(height, -1)) > _COARSE


def _mirrored(values: torch.Tensor) -> torch.Tensor:
    """Continued by their mirror image below and to the right, so that opposite sides join up; [n, 3, 2h, 2w]."""
    values = torch.cat([values, values.flip(2)], 2)
    return torch.cat([values, values.flip(3)], 3)


def _quarter(values: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """The part that `_mirrored` continued."""
    return values[:, :, : shape[1], : shape[2]]


def _twice(shape: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of mirrored images."""
    return 2 * shape[1], 2 * shape[2]


def smooth_blocks(published: Images, images: Images, device: torch.device) -> Images:
    """Estimate each block's shift and take it back; uint8 [N, H, W, 3].

    Args:
        published: as published: their headers tell blocks and steps.
        images: the same, their carrier undone.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for row, header in enumerate(headers_of(published)):
        groups.setdefault(_blocks(header), []).append(row)
    result = images.copy()
    for (side, step), rows in groups.items():
        for part in _portions(np.array(rows), images):
            values = _on(images[part], device)
            result[part] = _off(values - _shifts(values, side, step))
    return result


def _blocks(header: Header | None) -> tuple[int, int]:
    """Block side and step of an image."""
    if header is not None and header.profile == PROFILE_PAPER:
        found = Geometry.of(header)
        return found.block, found.step
    return 1, ExactParameters.amplitude


def _shifts(values: torch.Tensor, side: int, step: int) -> torch.Tensor:
    """Estimated shift of each sample, float32 as `values` [n, 3, h, w]; samples outside whole blocks get none."""
    height, width = (side * (s // side) for s in values.shape[2:])
    means = F.avg_pool2d(values[:, :, :height, :width], side)
    small = means.shape[2] < _SIDE or means.shape[3] < _SIDE
    taken = means - (
        F.avg_pool2d(means, 3, 1, 1, count_include_pad=False) if small else _denoised(means, step * _POWER)
    )
    shifts = (step * torch.tanh(_SNAP * taken / step)).repeat_interleave(side, 2).repeat_interleave(side, 3)
    return F.pad(shifts, (0, values.shape[3] - width, 0, values.shape[2] - height))


def _denoised(values: torch.Tensor, deviation: float) -> torch.Tensor:
    """Sliding cosine transforms, small coefficients set to zero; float32 [n, 3, h, w]."""
    reach = _SIDE - 1
    opponent, cosine = (m.to(values.device) for m in (_opponent(), torch.kron(_cosine(), _cosine())))
    wide = F.pad(torch.einsum("oc,nchw->nohw", opponent, values), (reach,) * 4, mode="reflect")
    n, _, height, width = wide.shape
    found = cosine @ F.unfold(wide.reshape(-1, 1, height, width), _SIDE)
    kept = found.abs() > _THRESHOLD * deviation
    kept[:, 0] = True
    weight = 1 / kept.sum(1, keepdim=True)  # patches that fewer coefficients describe are smoother, and count more
    fold = partial(F.fold, output_size=(height, width), kernel_size=_SIDE)
    total, weights = fold(cosine.T @ (found * kept) * weight), fold(weight.expand(-1, _SIDE**2, -1).contiguous())
    smooth = (total / weights).view(n, 3, height, width)[:, :, reach:-reach, reach:-reach]
    return torch.einsum("oc,nohw->nchw", opponent, smooth)


def _opponent() -> torch.Tensor:
    """Orthonormal: brightness and two differences of colour, float32 [3, 3]."""
    rows = torch.tensor([[1.0, 1, 1], [1, -1, 0], [1, 1, -2]])
    return rows / rows.norm(dim=1, keepdim=True)


def _cosine() -> torch.Tensor:
    """The orthonormal cosine transform, float32 [4, 4]."""
    k = torch.arange(_SIDE)[:, None]
    rows = torch.cos(np.pi * (torch.arange(_SIDE) + 0.5) * k / _SIDE)
    return rows / rows.norm(dim=1, keepdim=True)


def _portions(rows: NDArray[np.int64], images: Images) -> Iterator[NDArray[np.int64]]:
    """The rows in order, some at a time."""
    batch = at_once(_BATCH, _PIXELS, *images.shape[1:3])
    yield from (rows[first : first + batch] for first in range(0, len(rows), batch))


def _on(images: Images, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float()


def _off(values: torch.Tensor) -> Images:
    found: Images = values.round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    return found
