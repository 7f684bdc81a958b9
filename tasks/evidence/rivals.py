"""Figures that others published for their own protections: ResNet-18 on CIFAR-10, test accuracy after training.

None was measured here. Settings differ from ours: APBench and Image Shortcut Squeezing train longer (APBench: 200
epochs of SGD) and on all 50,000 images; only values of one source can be set against each other. The figures of the
method's own paper are in `tasks.published`.

Sources:
    APBench, leaderboard of lafeat/apbench (TMLR 2024).
    Image Shortcut Squeezing, liuzrcc/ImageShortcutSqueezing (ICML 2023).
    Learnability Lock, its own notebook, jinghuichen/Learnability-Lock (ICLR 2022).
"""

from collections.abc import Mapping
from dataclasses import dataclass

APBENCH = "APBench, TMLR 2024"
ISS = "Image Shortcut Squeezing, ICML 2023"
LEARNABILITY_LOCK = "Learnability Lock, ICLR 2022"
DATASET = "CIFAR-10"

SETTINGS = {
    APBENCH: "ResNet-18, 200 epochs of SGD, 50,000 images",
    ISS: "ResNet-18, 50,000 images",
    LEARNABILITY_LOCK: "its authors' own notebook",
}

_COLUMNS = (
    "none", "cutout", "cutmix", "mixup", "gaussian-blur", "bit-depth", "grayscale", "jpeg-10", "ueraser-max", "avatar",
    "adversarial",
)  # fmt: skip
EXTRA_COLUMNS = {"ueraser-max": "UEraser-max", "avatar": "AVATAR"}
"""Countermeasures of APBench that are not among ours."""

_APBENCH = {
    "DC": (15.19, 19.94, 17.91, 25.07, 16.10, 67.73, 85.55, 83.57, 92.17, 82.10, 76.85),
    "EM": (20.78, 18.79, 22.28, 31.14, 14.71, 37.94, 92.03, 80.72, 93.61, 75.62, 82.51),
    "REM": (17.47, 21.96, 26.22, 43.07, 21.80, 58.60, 92.27, 85.44, 92.43, 82.42, 77.46),
    "HYPO": (70.38, 69.04, 67.12, 74.25, 62.17, 74.82, 63.35, 85.21, 88.44, 85.94, 81.49),
    "NTGA": (22.76, 13.78, 12.91, 20.59, 19.95, 59.32, 70.41, 68.72, 86.78, 86.22, 69.70),
    "TAP": (6.27, 9.88, 14.21, 15.46, 7.88, 70.75, 11.01, 84.08, 79.05, 87.75, 79.92),
    "LSP": (13.06, 14.96, 17.69, 18.77, 18.61, 53.86, 64.70, 80.14, 92.83, 76.90, 81.38),
    "AR": (11.74, 10.95, 12.60, 14.15, 13.83, 36.14, 35.17, 84.75, 90.12, 88.60, 81.15),
    "OPS": (14.69, 52.98, 64.72, 49.27, 13.38, 37.32, 19.88, 78.48, 77.99, 66.16, 14.95),
}
_ISS = {
    "clean": (94.68, 92.41, 85.38),
    "TAP": (8.2, 9.1, 83.9),
    "SEP": (3.85, 3.57, 84.4),
    "LSP": (19.1, 82.5, 83.0),
    "AR": (13.3, 34.0, 85.2),
    "OPS": (36.6, 42.4, 82.5),
    "EM": (21.1, 93.0, 81.5),
    "REM": (25.4, 92.8, 81.5),
}
_LOCK = 18.70
UNBOUNDED = frozenset({"OPS"})
"""Changes single pixels by any amount: no perturbation with a bound on every sample, or on the whole image."""


@dataclass(frozen=True)
class Rival:
    """One method's published accuracies, as shares, by countermeasure."""

    name: str
    source: str
    accuracy: dict[str, float]


def _rivals(table: Mapping[str, tuple[float, ...]], columns: tuple[str, ...], source: str) -> list[Rival]:
    return [
        Rival(name, source, {column: value / 100 for column, value in zip(columns, values, strict=True)})
        for name, values in table.items()
    ]


RIVALS: list[Rival] = [
    *_rivals(_APBENCH, _COLUMNS, APBENCH),
    *_rivals(_ISS, ("none", "grayscale", "jpeg-10"), ISS),
    Rival("Learnability Lock", LEARNABILITY_LOCK, {"none": _LOCK / 100}),
]
"""Every method; `clean` of a source is what clean images gave there."""


def of_source(source: str) -> list[Rival]:
    """The methods of one source, clean images left out."""
    return [rival for rival in RIVALS if rival.source == source and rival.name != "clean"]


def clean_published(countermeasure: str) -> tuple[float, bool]:
    """What clean images gave (Image Shortcut Squeezing), and whether that is under this very countermeasure.

    No source has clean figures for every countermeasure; those of none stand in, which makes the way back longer.
    """
    accuracy = next(rival.accuracy for rival in RIVALS if rival.source == ISS and rival.name == "clean")
    return accuracy.get(countermeasure, accuracy["none"]), countermeasure in accuracy


def halfway_back(countermeasure: str, source: str = APBENCH) -> tuple[list[Rival], list[Rival]]:
    """Methods that this brings more than half of the way back to clean accuracy, and those it does not.

    Both are empty where the source has no figures for it.
    """
    clean = clean_published(countermeasure)[0]
    back: list[Rival] = []
    held: list[Rival] = []
    for rival in of_source(source):
        if countermeasure in rival.accuracy and countermeasure != "none":
            plain, treated = rival.accuracy["none"], rival.accuracy[countermeasure]
            (back if treated > (plain + clean) / 2 else held).append(rival)
    return back, held
