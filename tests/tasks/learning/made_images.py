"""Small labelled images that a network learns within an epoch or two."""

import numpy as np

from tasks.learning.training import LabelledImages


def coloured(count: int, classes: int = 4, side: int = 32, seed: int = 0) -> LabelledImages:
    """uint8 noise around one colour a class; labels in turn."""
    random = np.random.default_rng(seed)
    colours = np.random.default_rng(7).integers(40, 216, (classes, 3))
    labels = np.arange(count, dtype=np.int64) % classes
    noise = random.integers(-40, 40, (count, side, side, 3))
    return LabelledImages((colours[labels][:, None, None] + noise).astype(np.uint8), labels)
