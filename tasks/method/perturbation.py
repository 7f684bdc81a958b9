"""Perturbations: what makes the protected images teach a network the wrong thing.

`FeatureSpacePerturbation` is the activation attack of Inkawhich et al. (Feature Space Perturbations Yield More
Transferable Adversarial Examples, CVPR 2019), which the paper uses: momentum sign steps that bring the activations of
a late layer of a surrogate towards those of a target of another class. Ours: activations are averaged over positions,
so that images of every size share one library of targets; and the choice of targets (`TARGETS`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from storage.errors import ParameterError

Images = NDArray[np.uint8]
Features = Callable[[torch.Tensor], torch.Tensor]

TARGETS = {
    "random": "a random image of a random other class",
    "furthest": "of the library's images of other classes, the one whose activations are furthest",
    "permuted": "a random image of the one class that a secret derangement of the classes names",
    "permuted-mean": "the mean activations of that class, so that every image of a class has one target",
}


class Perturbation(Protocol):
    """Perturbs clean images; the perturbed look is what a profile then gives to the clean image's blocks."""

    def perturb(self, images: Images, labels: NDArray[np.int64], seeds: list[bytes]) -> Images:
        """uint8 [n, h, w, 3] to the same; `seeds` (16 secret bytes each) decide whatever is random."""


@dataclass(frozen=True)
class FspParameters:
    """Parameters of the feature space perturbation, with the values of the source work.

    Attributes:
        epsilon: largest change of a sample, of a range of 1.
        steps: sign steps of size epsilon / steps.
        momentum: of the accumulated gradient.
        targets: one of `TARGETS`.
        library: target images a class.
        batch_size: images at once; part of the parameters because floating point results depend on it.
    """

    epsilon: float = 0.07
    steps: int = 10
    momentum: float = 1.0
    targets: str = "permuted-mean"
    library: int = 100
    batch_size: int = 250

    def __post_init__(self) -> None:
        if self.targets not in TARGETS:
            raise ParameterError(f"targets is {self.targets!r}.", f"Choose one of {', '.join(TARGETS)}.")
        for name, value, low, high in (
            ("epsilon", self.epsilon, 1 / 255, 0.5),
            ("steps", self.steps, 1, 1000),
            ("momentum", self.momentum, 0, 1),
            ("library", self.library, 1, 10_000),
            ("batch_size", self.batch_size, 1, 10_000),
        ):
            if not low <= value <= high:
                raise ParameterError(f"{name} is {value}.", f"Choose a value from {low:g} to {high:g}.")


Work = Callable[[Images, NDArray[np.int64], list[bytes]], Images]


BATCH_PIXELS = 1 << 20
"""Of a batch, at most, unless one image has more: a ResNet-18 takes about 300 bytes a pixel in bf16, twice in fp32."""


def in_batches(work: Work, size: int, images: Images, labels: NDArray[np.int64], seeds: list[bytes]) -> Images:
    """`work` on so many images at a time, or on fewer large ones (`BATCH_PIXELS`), put together."""
    size = min(size, max(1, BATCH_PIXELS // (images.shape[1] * images.shape[2])))
    parts = [work(images[i : i + size], labels[i : i + size], seeds[i : i + size]) for i in range(0, len(images), size)]
    return np.concatenate(parts) if parts else images.copy()


def as_input(images: Images, device: str) -> torch.Tensor:
    """uint8 [n, h, w, 3] as a network takes it: float32 [n, 3, h, w] in 0..1, channels last in memory."""
    pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float().div_(255)
    return pixels.contiguous(memory_format=torch.channels_last)


def as_images(pixels: torch.Tensor) -> Images:
    """Back to the nearest bytes, uint8 [n, h, w, 3]; writes into `pixels`."""
    return pixels.mul_(255).round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def derangement(classes: int, seed: bytes) -> NDArray[np.int64]:
    """A permutation of the classes that maps none to itself (Sattolo's algorithm), the same on every machine."""
    if classes < 2:
        raise ParameterError("The data set has a single class.", "A perturbation needs a second class to aim at.")
    generator = np.random.RandomState(np.frombuffer(seed[:16], ">u4").astype(np.uint32))  # its stream is frozen
    result = np.arange(classes)
    for i in range(classes - 1, 0, -1):
        j = generator.randint(i)
        result[[i, j]] = result[[j, i]]
    return result


class FeatureSpacePerturbation:
    """FSP against one surrogate.

    Args:
        features: float32 images [n, 3, h, w] in 0..1 to activations [n, d], differentiable.
        library: float32 [classes, l, d], activations of target images by class.
        seed: at least 16 bytes, derived from the data set's key: names the secret derangement.
        device: where the surrogate is.
    """

    def __init__(
        self,
        features: Features,
        library: NDArray[np.float32],
        parameters: FspParameters,
        seed: bytes,
        device: str = "cpu",
    ) -> None:
        self.features = features
        self.library = torch.from_numpy(library).to(device)
        self.parameters = parameters
        self.target_class = derangement(len(library), seed)
        self.device = device

    def perturb(self, images: Images, labels: NDArray[np.int64], seeds: list[bytes]) -> Images:
        """uint8 [n, h, w, 3] to the perturbed images, uint8 [n, h, w, 3]."""
        return in_batches(self._batch, self.parameters.batch_size, images, labels, seeds)

    def _batch(self, images: Images, labels: NDArray[np.int64], seeds: list[bytes]) -> Images:
        p = self.parameters
        clean = as_input(images, self.device)
        target = self._targets(clean, labels, seeds)
        delta, momentum = torch.zeros_like(clean), torch.zeros_like(clean)
        for _ in range(p.steps):
            point = (clean + delta).requires_grad_()
            distance = (self.features(point) - target).norm(dim=1).sum()
            (gradient,) = torch.autograd.grad(distance, point)
            scale = gradient.abs().sum((1, 2, 3), keepdim=True).clamp_min_(1e-30)
            momentum.mul_(p.momentum).add_(gradient / scale)
            delta = (delta - momentum.sign() * (p.epsilon / p.steps)).clamp_(-p.epsilon, p.epsilon)
            delta = (clean + delta).clamp_(0, 1) - clean
        return as_images(clean + delta)

    def _targets(self, clean: torch.Tensor, labels: NDArray[np.int64], seeds: list[bytes]) -> torch.Tensor:
        """Target activations [n, d]. Seeds are keyed hashes, uniform already, so they choose by remainder."""
        classes, size, _ = self.library.shape
        number = np.array([int.from_bytes(s[:8], "big") for s in seeds], np.uint64)
        entry = (number // np.uint64(classes)).astype(np.int64) % size
        kind = self.parameters.targets
        if kind == "random":
            other = (labels + 1 + (number % np.uint64(classes - 1)).astype(np.int64)) % classes
            return self.library[other, entry]
        if kind == "permuted":
            return self.library[self.target_class[labels], entry]
        if kind == "permuted-mean":
            return self.library.mean(1)[self.target_class[labels]]
        return self._furthest(clean, labels)

    def _furthest(self, clean: torch.Tensor, labels: NDArray[np.int64]) -> torch.Tensor:
        classes, size, width = self.library.shape
        with torch.no_grad():
            distance = torch.cdist(self.features(clean), self.library.reshape(-1, width))
        own = torch.from_numpy(labels).to(self.device)
        of_class = torch.arange(classes, device=self.device).repeat_interleave(size)
        distance[own[:, None] == of_class[None, :]] = -1
        return self.library.reshape(-1, width)[distance.argmax(1)]


def build_library(features: Features, images: list[list[Images]], size: int, device: str) -> NDArray[np.float32]:
    """Activations of the target images.

    Args:
        images: for each class its target images, uint8 [h, w, 3], of any sizes.
        size: targets a class; classes with fewer repeat theirs.

    Returns:
        float32 [classes, size, d].

    Raises:
        ParameterError: a class has no image.
    """
    rows = []
    for c, members in enumerate(images):
        if not members:
            raise ParameterError(f"Class {c} has no image.", "Every class needs one, as a target of the perturbation.")
        found = np.stack([_activations(features, image, device) for image in members[:size]])
        rows.append(np.resize(found, (size, found.shape[1])))
    return np.stack(rows)


def _activations(features: Features, image: Images, device: str) -> NDArray[np.float32]:
    """Of one image at a time: the sizes of target images may differ."""
    with torch.no_grad():
        return features(as_input(image[None], device))[0].float().cpu().numpy()
