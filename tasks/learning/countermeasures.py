"""What a person would try who trains on protected images all the same, by name.

A countermeasure either changes the images once, before the training (`prepare`), or steps in between each batch and
the network (`intervention`, for `train`). The list and the parameters are those of APBench (Qin and others, TMLR 2024)
and Image Shortcut Squeezing (Liu and others, ICML 2023), with orthogonal projection (Sandoval-Segura and others,
NeurIPS 2023); each `about` says where it departs from them.

Test images stay as they are, as in both, but for grayscale: a network that has seen no colour is asked about images
without colour.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from storage.errors import ParameterError
from tasks.learning.adversarial import AdversarialTraining
from tasks.learning.filtering import Filter, bit_depth, gaussian_blur, grayscale, jpeg
from tasks.learning.interventions import Intervention
from tasks.learning.mixing import cutmix, cutout, mixup
from tasks.learning.projection import fit_projection
from tasks.learning.training import LabelledImages


class Setting(NamedTuple):
    """What a filter may be fitted with; see `Countermeasure.prepare`."""

    classes: int
    seed: int
    device: str
    threads: int | None


@dataclass(frozen=True)
class Countermeasure:
    """One attempt to learn in spite of the protection.

    Attributes:
        name: in tables and parameters.
        title: for people.
        about: one sentence: source and parameters.
        fit: makes the filter of the training images; None: they stay as they are.
        test_too: the test images go through the filter as well.
        step_in: for each batch of the training; None: nothing.
    """

    name: str
    title: str
    about: str
    fit: Callable[[LabelledImages, Setting], Filter] | None = None
    test_too: bool = False
    step_in: Intervention | None = None

    def prepare(
        self,
        training: LabelledImages,
        test: LabelledImages,
        *,
        classes: int,
        seed: int,
        device: str = "auto",
        threads: int | None = None,
    ) -> tuple[LabelledImages, LabelledImages]:
        """The images to train on and to test with; what is not changed is returned itself. Labels stay.

        The same arguments give the same images on the same kind of machine.

        Args:
            seed: of the training; only the orthogonal projection draws from it.
            device: "auto", "cpu" or "cuda".
            threads: of the CPU; see `device.computing`.

        Raises:
            SettingsError: the device is not there.
        """
        if self.fit is None or not len(training.images):
            return training, test
        through = self.fit(training, Setting(classes, seed, device, threads))
        treated = replace(training, images=np.ascontiguousarray(through(training.images)))
        return treated, replace(test, images=through(test.images)) if self.test_too else test

    def intervention(self) -> Intervention | None:
        """For `train(..., intervention=...)`."""
        return self.step_in


def _fixed(through: Filter) -> Callable[[LabelledImages, Setting], Filter]:
    return lambda training, setting: through


def _fit_projection(training: LabelledImages, setting: Setting) -> Filter:
    return fit_projection(training.images, training.labels, **setting._asdict())


_ALL = (
    Countermeasure("none", "none", "The images are trained on as they were published."),
    Countermeasure(
        "grayscale",
        "grayscale",
        "Training and test images are reduced to their luma (ITU-R BT.601); APBench does so with training images only.",
        _fixed(grayscale),
        test_too=True,
    ),
    Countermeasure(
        "jpeg-10",
        "JPEG, quality 10",
        "Training images go through JPEG of quality 10 with colour at half resolution (Image Shortcut Squeezing).",
        _fixed(jpeg),
    ),
    Countermeasure(
        "gaussian-blur",
        "Gaussian blur",
        "Training images are smoothed, kernel 3 pixels, deviation 0.8; the 0.1 of APBench would change no image.",
        _fixed(gaussian_blur),
    ),
    Countermeasure(
        "bit-depth",
        "bit depth reduced",
        "Of each sample of the training images the 2 highest bits are kept (APBench).",
        _fixed(bit_depth),
    ),
    Countermeasure(
        "cutout",
        "cutout",
        "Each image gets a black box of half its height and width (DeVries and Taylor 2017; APBench: 16 of 32 pixels).",
        step_in=cutout,
    ),
    Countermeasure(
        "cutmix",
        "CutMix",
        "A box of each image, its area from Beta(1, 1), is another one's, and as much of the target (Yun et al. 2019).",
        step_in=cutmix,
    ),
    Countermeasure(
        "mixup",
        "mixup",
        "Each image and its target are averaged with another one's, the weight from Beta(1, 1) (Zhang et al. 2018).",
        step_in=mixup,
    ),
    Countermeasure(
        "adversarial",
        "adversarial training",
        "Trained on adversarial examples of at most 8/255, one step of 10/255 from a random start (Wong et al. 2020);"
        " APBench takes 10 steps.",
        step_in=AdversarialTraining(),
    ),
    Countermeasure(
        "orthogonal",
        "orthogonal projection",
        "What a logistic regression finds in the pixels is projected out of the training images"
        " (Sandoval-Segura et al. 2023).",
        _fit_projection,
    ),
)

COUNTERMEASURES: dict[str, Countermeasure] = {one.name: one for one in _ALL}


def countermeasure_named(name: str) -> Countermeasure:
    """A countermeasure by name.

    Raises:
        ParameterError: an unknown name.
    """
    if name not in COUNTERMEASURES:
        known = ", ".join(COUNTERMEASURES)
        raise ParameterError(f"The countermeasure {name!r} is unknown.", f"Choose one of {known}.")
    return COUNTERMEASURES[name]
