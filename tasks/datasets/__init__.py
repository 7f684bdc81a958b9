"""Data sets: one module each, found by name.

cifar10        50,000 + 10,000 images of 32x32 in 10 classes (Krizhevsky 2009)
tinyimagenet   500 + 50 images of 64x64 a class, up to 200 classes (CS231n)
imagefolder    one's own folder of class folders, PNG or JPEG, any sizes from 16x16
sample         2,000 + 500 generated images of 32x32 in 8 classes; needs no download
"""

from importlib import import_module
from typing import cast

from storage.errors import NotFound
from tasks.datasets.source import DatasetModule

NAMES = ("cifar10", "imagefolder", "sample", "tinyimagenet")


def get(name: str) -> DatasetModule:
    """The module of a data set.

    Raises:
        NotFound: there is none of this name.
    """
    if name not in NAMES:
        raise NotFound(f"There is no data set {name!r}.", f"Choose one of {', '.join(NAMES)}.")
    return cast(DatasetModule, import_module(f"tasks.datasets.{name}"))
