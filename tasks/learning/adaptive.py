"""Attacks of someone who knows the algorithm, all of it, but not the key: what can be done to the images first.

Each attack is a pure operation on the published images, before anything is trained on them: the same images and seed
give the same result. It may read everything that is in clear (docs/format.md): the headers with their settings, the
classes, and all images of a class together. How much accuracy comes back when a network is trained on the result is
what the evaluation suite measures.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from storage.errors import ParameterError
from tasks.learning.adaptive_bands import remove_bands
from tasks.learning.adaptive_carrier import strip_carrier
from tasks.learning.adaptive_filters import smooth_blocks, subtract_class_average
from tasks.learning.adaptive_inverse import learned_inverse, nearest_start
from tasks.learning.device import computing, resolve_device
from tasks.learning.training import LabelledImages

Images = NDArray[np.uint8]


@dataclass(frozen=True)
class Leaked:
    """Clean originals that the attacker came by.

    Attributes:
        indices: int64 [M], places in the protected images.
        clean: uint8 [M, H, W, 3], their originals.
    """

    indices: NDArray[np.int64]
    clean: Images


@dataclass(frozen=True)
class Sight:
    """What the attacker has: images uint8 [N, H, W, 3], labels int64 [N], and what leaked."""

    images: Images
    labels: NDArray[np.int64]
    classes: int
    leaked: Leaked | None
    seed: int
    device: torch.device


@dataclass(frozen=True)
class Attack:
    """One way to undo a protection without its key.

    Attributes:
        name: as in `ATTACKS`.
        title: for tables and figures.
        about: what is assumed and done, for people.
        leaks: share of the training images of which the attacker has the clean original.
    """

    name: str
    title: str
    about: str
    undo: Callable[[Sight], Images]
    leaks: float = 0.0

    def apply(
        self,
        protected: LabelledImages,
        *,
        classes: int,
        leaked: Leaked | None,
        seed: int,
        device: str,
        threads: int | None,
    ) -> LabelledImages:
        """The images as the attacker would train on them; labels, order and size stay.

        Args:
            leaked: needed where `leaks` is above 0, else ignored.
            device: "auto", "cpu" or "cuda".
            threads: of the CPU; None: every usable core.

        Raises:
            ParameterError: the attack needs leaked originals, and there are none, or they do not fit.
            SettingsError: the device is not there.
        """
        where = resolve_device(device)
        if self.leaks:
            _check(protected, leaked)
        with computing(where, threads):
            sight = Sight(protected.images, protected.labels, classes, leaked if self.leaks else None, seed, where)
            return LabelledImages(np.ascontiguousarray(self.undo(sight)), protected.labels)


def draw_leaked(clean: Images, share: float, seed: int) -> Leaked:
    """A seeded draw of the originals (uint8 [N, H, W, 3], aligned with the protected images) that leaked.

    At least two, or all there are.
    """
    count = min(len(clean), max(2, round(share * len(clean))))
    chosen = np.sort(np.random.RandomState(seed).permutation(len(clean))[:count]).astype(np.int64)
    return Leaked(chosen, clean[chosen])


def _check(protected: LabelledImages, leaked: Leaked | None) -> None:
    cure = "Hand in the clean originals of some of the protected images (draw_leaked)."
    if leaked is None or not len(leaked.indices):
        raise ParameterError("This attack needs leaked originals, and there are none.", cure)
    if leaked.clean.shape != (len(leaked.indices), *protected.images.shape[1:]) or not (
        leaked.indices.min() >= 0 and leaked.indices.max() < len(protected.images)
    ):
        raise ParameterError("The leaked originals do not fit the protected images.", cure)


def _class_average(sight: Sight) -> Images:
    return subtract_class_average(strip_carrier(sight.images), sight.labels, sight.classes, sight.device)


def _block_smoothing(sight: Sight) -> Images:
    return smooth_blocks(sight.images, strip_carrier(sight.images), sight.device)


def _band_filter(sight: Sight) -> Images:
    return remove_bands(strip_carrier(sight.images), sight.labels, sight.classes, sight.device)


def _learned_inverse(sight: Sight) -> Images:
    assert sight.leaked is not None  # apply has checked
    leaked, tried = sight.leaked, [strip_carrier(sight.images), _block_smoothing(sight), _band_filter(sight)]
    start = nearest_start(tried, leaked.indices, leaked.clean)
    found = learned_inverse(
        tried[0], sight.labels, sight.classes, leaked.indices, leaked.clean, start, sight.seed, sight.device
    )
    found[leaked.indices] = leaked.clean  # whoever has the originals trains on them
    return found


_ALL = (
    Attack("none", "as published", "The images are used as they are published.", lambda sight: sight.images),
    Attack(
        "class-average",
        "class average",
        "Undoes the carrier, subtracts from each image what the images of its class have on average beyond those of "
        "all classes, and lowers the class's mean power spectrum to that of the median class; fine detail only.",
        _class_average,
    ),
    Attack(
        "lsb-plane",
        "carrier undone",
        "Reads the header, which is in clear, and undoes the carrier of the payload, which needs no key: bits that "
        "carry are set to the middle of their range, expanded samples are contracted.",
        lambda sight: strip_carrier(sight.images),
    ),
    Attack(
        "block-smoothing",
        "block smoothing",
        "Undoes the carrier, reads block side and step from the header, and takes back the shift of each block that a "
        "denoised image suggests.",
        _block_smoothing,
    ),
    Attack(
        "band-filter",
        "band filter",
        "Undoes the carrier, finds the band of frequencies that names each class in its images' power spectra, "
        "estimates each image's signs by Wiener's filter for that band, and subtracts them.",
        _band_filter,
    ),
    Attack(
        "learned-inverse",
        "learned inverse",
        "Has the clean originals of 1 % of the images. Trains a small convolutional network on these pairs, which also "
        "sees what the best of the other attacks makes of the images, and applies it to all.",
        _learned_inverse,
        leaks=0.01,
    ),
)

ATTACKS: dict[str, Attack] = {attack.name: attack for attack in _ALL}
"""By name, in the order of tables."""


def attack_named(name: str) -> Attack:
    """An attack by name.

    Raises:
        ParameterError: there is none of this name.
    """
    if name not in ATTACKS:
        raise ParameterError(f"The attack {name!r} is unknown.", f"Choose one of {', '.join(ATTACKS)}.")
    return ATTACKS[name]
