import hashlib

import numpy as np

from tasks.datasets import sample
from tasks.datasets.source import CommonParameters, Place

PLACE = Place(None, None)  # type: ignore[arg-type]


def test_counts_classes_and_pixels() -> None:
    with sample.open_source(CommonParameters(), PLACE) as source:
        train, test = source.splits["train"], source.splits["test"]
        assert np.bincount(train.labels).tolist() == [250] * 8
        assert len(test.labels) == 500 and set(test.labels) == set(range(8))
        assert source.classes == sorted(source.classes)
        image = train.read(0)
        assert image.shape == (32, 32, 3) and image.dtype == np.uint8
        assert not np.array_equal(image, test.read(0))


def test_every_machine_draws_the_same_bytes() -> None:
    """The data set is fixed for good: published versions and results refer to it."""
    digest = hashlib.sha256()
    with sample.open_source(CommonParameters(), PLACE) as source:
        for split in ("train", "test"):
            for index in range(0, len(source.splits[split].labels), 25):
                digest.update(source.splits[split].read(index).tobytes())
    assert digest.hexdigest() == "1ff8451c02215d15c61df97409fc85a81f936ae0eae326468af2d3c22eb63973"


def test_colour_and_place_say_nothing_about_the_class() -> None:
    """A nearest-mean classifier on raw pixels stays near chance: what is to be learnt is shape and texture."""
    with sample.open_source(CommonParameters(), PLACE) as source:
        train = np.stack([source.splits["train"].read(i) for i in range(400)]).reshape(400, -1).astype(np.float64)
        test = np.stack([source.splits["test"].read(i) for i in range(160)]).reshape(160, -1).astype(np.float64)
    means = np.stack([train[label::8].mean(axis=0) for label in range(8)])
    guessed = ((test[:, None] - means[None]) ** 2).sum(axis=2).argmin(axis=1)
    assert (guessed == np.arange(160) % 8).mean() < 0.35
