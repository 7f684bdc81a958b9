"""Networks by name, nearly all of them torchvision's, and the normalisation that belongs to a trained one.

The stem "imagenet" is torchvision's own, which scales a 32x32 image down to 8x8 before the first block (fast, and some
points of accuracy lower on small images). The stem "small" is the customary change for small images: the first
convolution is 3x3 with stride 1, and the first pooling is left out.
"""

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from storage.errors import ParameterError

Stem = Literal["imagenet", "small"]
STEMS: tuple[str, ...] = get_args(Stem)


def build_model(architecture: str, classes: int, stem: str = "imagenet", seed: int = 0) -> nn.Module:
    """A network with random weights: float [N, 3, H, W], normalised, to float [N, classes].

    Args:
        architecture: one of `ARCHITECTURES`.
        classes: number of outputs, at least 2.
        stem: one of `STEMS`.
        seed: of the weights; the same seed gives the same weights. The global random state is left alone.

    Raises:
        ParameterError: an unknown architecture or stem, or fewer than 2 classes.
    """
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ParameterError(f"The architecture {architecture!r} is unknown.", f"Choose one of {known}.")
    if stem not in STEMS:
        raise ParameterError(f"The stem {stem!r} is unknown.", f"Choose one of {', '.join(STEMS)}.")
    if classes < 2:
        raise ParameterError(f"A network for {classes} classes can not be trained.", "Two classes are the fewest.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ARCHITECTURES[architecture](classes, stem == "small")


def _resnet(name: str) -> Callable[[int, bool], nn.Module]:
    def build(classes: int, small: bool) -> nn.Module:
        import torchvision

        network = getattr(torchvision.models, name)(num_classes=classes)
        if small:
            network.conv1 = _first_convolution(64)
            network.maxpool = nn.Identity()
        return network

    return build


def _mobilenet_v2(classes: int, small: bool) -> nn.Module:
    import torchvision

    network = torchvision.models.mobilenet_v2(num_classes=classes)
    if small:  # a quarter of the scaling: the first convolution and the first block that halves the image
        network.features[0][0].stride = (1, 1)
        network.features[2].conv[1][0].stride = (1, 1)
    return network


def _densenet121(classes: int, small: bool) -> nn.Module:
    import torchvision

    network = torchvision.models.densenet121(num_classes=classes)
    if small:
        network.features.conv0 = _first_convolution(64)
        network.features.pool0 = nn.Identity()
    return network


def _vgg11_bn(classes: int, small: bool) -> nn.Module:
    import torchvision

    if not small:
        return torchvision.models.vgg11_bn(num_classes=classes)
    # Its convolutions keep the size anyway; what ImageNet needs and small images do not is the 7x7 classifier.
    network = torchvision.models.vgg11_bn(num_classes=1)
    network.avgpool = nn.AdaptiveAvgPool2d(1)
    network.classifier = nn.Sequential(nn.Linear(512, classes))
    return network


def _vit_small(classes: int, small: bool) -> nn.Module:
    """A transformer for small images: 6 layers, 192 wide, patches of 8x8 or, with the small stem, 4x4 of 32x32 pixels.

    Its positions are learned for one size, so images of others are scaled to it.
    """
    import torchvision
    from torchvision.transforms import Resize

    transformer = torchvision.models.VisionTransformer(
        image_size=32,
        patch_size=4 if small else 8,
        num_layers=6,
        num_heads=6,
        hidden_dim=192,
        mlp_dim=384,
        num_classes=classes,
    )
    # The last layer would start at zero, as is right for a network that is pretrained: here nothing below would learn.
    nn.init.trunc_normal_(transformer.heads.head.weight, std=0.02)
    return nn.Sequential(Resize((32, 32), antialias=True), transformer)


def _linear(classes: int, small: bool) -> nn.Module:
    """One layer on the pixels, scaled to 32x32: the surrogate of Perturbation-Induced Linearization (ICLR 2026).

    A surrogate to compare with, far cheaper than a network; both stems are the same.
    """
    return nn.Sequential(nn.AdaptiveAvgPool2d(32), nn.Flatten(), nn.Linear(3 * 32 * 32, classes))


def _first_convolution(channels: int) -> nn.Conv2d:
    convolution = nn.Conv2d(3, channels, 3, 1, 1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution


ARCHITECTURES: dict[str, Callable[[int, bool], nn.Module]] = {
    "resnet18": _resnet("resnet18"),
    "resnet50": _resnet("resnet50"),
    "mobilenet_v2": _mobilenet_v2,
    "densenet121": _densenet121,
    "vgg11_bn": _vgg11_bn,
    "vit_small": _vit_small,
    "linear": _linear,
}


class Normalized(nn.Module):
    """A network together with the normalisation it was trained with.

    Takes images [N, 3, H, W], float in 0..1 or uint8, and gives logits [N, classes]. Mean and deviation are buffers:
    they move with the network and are saved with it.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """uint8, or float in 0..1, to normalised float32; differentiable in float images."""
        scaled = images.float() / 255 if images.dtype == torch.uint8 else images
        return (scaled - self.mean) / self.std

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[N, 3, H, W] to logits [N, classes]."""
        return self.network(self.normalise(images))

    def portable(self) -> nn.Sequential:
        """The same network out of torchvision's own parts (weights shared): float in 0..1 to logits.

        Loads from a pickle where this project is not installed.
        """
        from torchvision.transforms import Normalize

        mean, std = self.mean.flatten().tolist(), self.std.flatten().tolist()
        return nn.Sequential(Normalize(mean, std), self.network)


def channel_statistics(images: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, in units of 0..1, over all pixels.

    Sums are integers, so the result does not depend on order, batches or the machine. A channel that never changes has
    deviation 0, which nothing can be divided by: 1 is given.

    Args:
        images: uint8 [N, H, W, 3], N at least 1.
    """
    values = np.arange(256, dtype=np.int64)
    counts = np.zeros((3, 256), np.int64)
    step = max(1, (1 << 22) // max(1, images[0].size))  # bincount makes 8 bytes of each sample
    for start in range(0, len(images), step):
        part = images[start : start + step].reshape(-1, 3)
        for channel in range(3):
            counts[channel] += np.bincount(part[:, channel], minlength=256)
    means, deviations = [], []
    for row in counts:
        n, total, squares = int(row.sum()), int((row * values).sum()), int((row * values**2).sum())
        means.append(total / (n * 255))
        deviations.append((n * squares - total**2) ** 0.5 / (n * 255) or 1.0)
    return tuple(means), tuple(deviations)
