"""The perturbation of profile `exact`: signs, optimised inside the set that can be carried and taken back.

Sign steps with momentum as in FSP (`perturbation.py`), but on a field of numbers whose signs, times the amplitude, are
the perturbation: the network sees the signs, the gradient passes them straight through (Bengio et al., 2013). It lowers
the cross-entropy towards a target class (the loss of targeted adversarial poisoning, Fowl et al., NeurIPS 2021), or the
distance of activations to that class's mean, which is FSP's. The target class is that of a secret derangement, the same
for all images of a class. The field may start from a class-keyed pattern (`patterns.py`), whose weight says how much of
it is left when the steps are done.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from storage.errors import ParameterError
from tasks.method.patterns import bands, texture
from tasks.method.perturbation import Features, Images, as_images, as_input, derangement, in_batches

PATTERNS = {
    "bands": "a texture in a narrow band of frequencies that names the class",
    "none": "a little noise, so that the steps have a beginning",
}


@dataclass(frozen=True)
class SignParameters:
    """Parameters of the optimisation.

    Attributes:
        pattern: one of `PATTERNS`: where the field starts.
        spread: of a band, standard deviation in periods a pixel.
        weight: standard deviation of the pattern in the field, whose numbers stay within -1..1.
        steps: steps of the optimisation; 0: the pattern alone.
        rate: mean size of a step.
        momentum: of the accumulated gradient.
        smoothing: standard deviation, in pixels, of the Gaussian that smooths each gradient; 0: none.
        flips: whether every other step of each network sees the images mirrored from left to right.
        shift: each step sees the images moved by up to so many pixels, down or up and sideways; 0: as they are.
        library: target images a class; their mean activations are the target.
        batch_size: images at once; part of the parameters because floating point results depend on it.
    """

    pattern: str = "none"
    spread: float = 0.02
    weight: float = 1.0
    steps: int = 32
    rate: float = 0.1
    momentum: float = 0.5
    smoothing: float = 0.7
    flips: bool = True
    shift: int = 2
    library: int = 100
    batch_size: int = 250

    def __post_init__(self) -> None:
        if self.pattern not in PATTERNS:
            raise ParameterError(f"pattern is {self.pattern!r}.", f"Choose one of {', '.join(PATTERNS)}.")
        if self.pattern == "none" and not self.steps:
            raise ParameterError("pattern is none and steps is 0.", "Choose a pattern, or at least one step.")
        for name, value, low, high in (
            ("spread", self.spread, 0.001, 0.5),
            ("weight", self.weight, 0, 10),
            ("steps", self.steps, 0, 1000),
            ("rate", self.rate, 1e-4, 10),
            ("momentum", self.momentum, 0, 1),
            ("smoothing", self.smoothing, 0, 8),
            ("shift", self.shift, 0, 64),
            ("library", self.library, 1, 10_000),
            ("batch_size", self.batch_size, 1, 10_000),
        ):
            if not low <= value <= high:
                raise ParameterError(f"{name} is {value}.", f"Choose a value from {low:g} to {high:g}.")


class SignPerturbation:
    """Signs against one surrogate, or against several that take turns: a step each (tasks/learning/snapshots.py).

    Args:
        features: float32 images [n, 3, h, w] in 0..1 to activations or logits [n, d], differentiable; one or more.
        library: float32 [classes, l, d], activations of target images by class.
        logits: whether `features` are logits of the classes: then cross-entropy, else the distance of activations.
        amplitude: how far a sample moves, of 255.
        per_pixel: 1 (one sign for R, G and B) or 3.
        derangement_seed, band_seed: at least 16 bytes each, derived from the data set's key for these purposes: bands
            can be found by looking, and must not tell the derangement.
        device: where the surrogate is.
    """

    def __init__(
        self,
        features: Sequence[Features],
        library: NDArray[np.float32],
        parameters: SignParameters,
        *,
        logits: bool,
        amplitude: int,
        per_pixel: int,
        derangement_seed: bytes,
        band_seed: bytes,
        device: str = "cpu",
    ) -> None:
        self.features, self.parameters, self.logits, self.device = features, parameters, logits, device
        self.amplitude, self.per_pixel = amplitude / 255, per_pixel
        self.target_class = derangement(len(library), derangement_seed)
        self.means = torch.from_numpy(library.mean(1)).to(device)
        self.bands = bands(len(library), band_seed)
        # The same for every image, so that bytes do not depend on batches. Nothing about them is secret.
        self.moves = np.random.RandomState(0).randint(-parameters.shift, parameters.shift + 1, (parameters.steps, 2))

    def perturb(self, images: Images, labels: NDArray[np.int64], seeds: list[bytes]) -> Images:
        """uint8 [n, h, w, 3] to the perturbed images: a sample moves by the amplitude, or not where it can not."""
        return in_batches(self._batch, self.parameters.batch_size, images, labels, seeds)

    def _batch(self, images: Images, labels: NDArray[np.int64], seeds: list[bytes]) -> Images:
        p = self.parameters
        clean = as_input(images, self.device)
        target = torch.from_numpy(self.target_class[labels]).to(self.device)
        field = self._start(images, labels, seeds)
        momentum = torch.zeros_like(field)
        for step in range(p.steps):
            change = self._change(clean, field)
            point = (clean + change).requires_grad_()
            (gradient,) = torch.autograd.grad(self._loss(point, target, step), point)
            gradient = gradient * (change != 0)
            if self.per_pixel == 1:
                gradient = gradient.sum(1, keepdim=True)
            gradient = smoothed(gradient, p.smoothing)
            momentum.mul_(p.momentum).add_(gradient / _mean_size(gradient))
            field = (field - p.rate * momentum / _mean_size(momentum)).clamp_(-1, 1)
        return as_images(clean + self._change(clean, field))

    def _start(self, images: Images, labels: NDArray[np.int64], seeds: list[bytes]) -> torch.Tensor:
        """The field before the first step, float32 [n, 1 or 3, h, w]."""
        _, height, width, _ = images.shape
        p = self.parameters
        if p.pattern == "bands":
            rows = [
                p.weight * texture(self.bands[label], seed, height, width, p.spread)
                for label, seed in zip(labels, seeds, strict=True)
            ]
        else:
            rows = [np.random.RandomState(list(seed)).uniform(-0.1, 0.1, (height, width)) for seed in seeds]
        pattern = np.stack(rows)
        field = torch.from_numpy(pattern.astype(np.float32)).to(self.device)
        return field[:, None].repeat(1, self.per_pixel, 1, 1).clamp_(-1, 1)

    def _change(self, clean: torch.Tensor, field: torch.Tensor) -> torch.Tensor:
        """The perturbation that the signs of the field name, zero where a sample would leave its range."""
        change = torch.where(field >= 0, self.amplitude, -self.amplitude).expand_as(clean)
        moved = clean + change
        # Half a step of 1/255 of slack: sums of floats miss the ends by less.
        return change * ((moved > -0.5 / 255) & (moved < 255.5 / 255))

    def _loss(self, point: torch.Tensor, target: torch.Tensor, step: int) -> torch.Tensor:
        rounds, turn = divmod(step, len(self.features))
        seen = point.flip(3) if self.parameters.flips and rounds % 2 else point
        found = self.features[turn](moved(seen, *self.moves[step]) if self.parameters.shift else seen)
        if self.logits:
            return F.cross_entropy(found, target, reduction="sum")
        return (found - self.means[target]).norm(dim=1).sum()


def moved(images: torch.Tensor, down: int, right: int) -> torch.Tensor:
    """Images [n, c, h, w] moved by so many pixels, zeros where nothing was; as those who train on them crop them.

    A perturbation that holds under the transformations of a training is an expectation over them (Athalye et al., ICML
    2018); one draw a step is enough, since momentum averages over the steps.
    """
    height, width = images.shape[2:]
    down, right = (int(np.clip(by, 1 - side, side - 1)) for by, side in ((down, height), (right, width)))
    return F.pad(images, (right, -right, down, -down))


def smoothed(values: torch.Tensor, std: float) -> torch.Tensor:
    """A Gaussian over height and width, float32 [n, c, h, w], standard deviation in pixels; 0 leaves all as it is.

    Translation-invariant attacks (Dong et al., CVPR 2019): averaged over small shifts, a gradient depends less on the
    surrogate. Here neighbouring signs become alike besides, so that they are cheaper to carry and survive blur better.
    Beyond the edge is nothing; torchvision's blur has a mirror image there, and needs images larger than its kernel.
    """
    if not std:
        return values
    reach = max(1, round(3 * std))
    weights = torch.exp(-(torch.arange(-reach, reach + 1, device=values.device) ** 2) / (2 * std * std))
    kernel = (weights / weights.sum()).repeat(values.shape[1], 1, 1, 1)
    across = F.conv2d(values, kernel, padding=(0, reach), groups=values.shape[1])
    return F.conv2d(across, kernel.transpose(2, 3), padding=(reach, 0), groups=values.shape[1])


def _mean_size(values: torch.Tensor) -> torch.Tensor:
    return values.abs().mean((1, 2, 3), keepdim=True).clamp_min_(1e-30)
