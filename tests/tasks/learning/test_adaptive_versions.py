"""Why two versions must not be public together: what they give away, without a key."""

import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.learning.adaptive_carrier import strip_carrier
from tasks.learning.adaptive_versions import combine_versions
from tasks.method.exact import ExactParameters, ExactProfile
from tasks.method.profiles import Fitted
from tasks.method.seal import DataKey
from tests.tasks.method.images import make

CLEAN = np.stack([make(kind, 32, 32, seed) for seed in range(6) for kind in ("photo", "gradient", "saturated")])


def version(amplitude: int, seed: int) -> NDArray[np.uint8]:
    """The images under a key of their own, with signs of their own."""
    key, profile = DataKey(bytes([seed] * 32), "toy"), ExactProfile(ExactParameters(amplitude=amplitude))
    wanted = np.random.default_rng(seed).integers(0, 2, (*CLEAN.shape[:3], 1)) * 255
    fitted = profile.fit(CLEAN, np.broadcast_to(wanted, CLEAN.shape).astype(np.uint8))
    kept = [f for f in fitted if isinstance(f, Fitted)]
    ids = [key.image_id("train", str(n)) for n in range(len(kept))]
    return np.stack([c.image for c in profile.carry(kept, CLEAN, [None] * len(kept), ids, key)])


def exact(images: NDArray[np.uint8]) -> float:
    return float((images == CLEAN).mean())


@pytest.mark.parametrize(("amplitudes", "least"), [((14, 16), 0.9), ((14, 8), 0.9), ((14, 14), 0.4)])
def test_two_versions_give_the_clean_images_away(amplitudes: tuple[int, int], least: float) -> None:
    first, second = version(amplitudes[0], 1), version(amplitudes[1], 2)
    assert exact(strip_carrier(first)) < 0.4, "one version alone tells little: samples that could not move"
    assert exact(combine_versions(first, second, amplitudes)) > least


def test_the_same_version_twice_tells_nothing_more() -> None:
    """Of photographs: where samples lie at the ends of their range, the amplitude alone tells some of them."""
    first = version(14, 1)
    found, photos = combine_versions(first, first, (14, 14)), slice(0, None, 3)
    assert (found[photos] == CLEAN[photos]).mean() < 0.1
