"""The screen of perturbations aims at the row's networks and sees what a training sees."""

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.transfer import perturbed, taken
from storage.errors import UsageError
from tasks.learning.models import Normalized

IMAGES = np.random.default_rng(0).integers(30, 220, (12, 32, 32, 3), dtype=np.uint8)
LABELS = np.arange(12) % 10
ROW = "exact,perturbation.steps=8,perturbation.smoothing=0"


@pytest.fixture(scope="module")
def models() -> list[Normalized]:
    """Random networks that do not mind where in the image something is."""
    return [Normalized(network(seed), [0.5] * 3, [0.25] * 3) for seed in range(4)]


def network(seed: int) -> nn.Module:
    """A class is how much of its own random texture there is, the same from both sides."""
    texture = torch.randn(10, 1, 5, 5, generator=torch.Generator().manual_seed(seed))
    texture = texture + texture.flip(3)
    texture = (texture - texture.mean((2, 3), keepdim=True)) / texture.std((2, 3), keepdim=True)
    layer = nn.Conv2d(3, 10, 5, bias=False)
    layer.weight = nn.Parameter(texture.repeat(1, 3, 1, 1))
    return nn.Sequential(layer, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_the_networks_aimed_at_take_images_for_their_targets(models: list[Normalized]) -> None:
    shown, target = perturbed(f"{ROW}@2", IMAGES, LABELS, models)
    assert shown.shape == IMAGES.shape and (target != LABELS).all()
    aimed, before = taken(models[1], shown, target), taken(models[1], IMAGES, target)
    assert aimed > before
    other, _ = perturbed(f"{ROW}@4", IMAGES, LABELS, models)
    assert (other != shown).any() and taken(models[1], other, target) < aimed
    usual, _ = perturbed(ROW, IMAGES, LABELS, models)
    spread, _ = perturbed(f"{ROW}@1,2,3,4", IMAGES, LABELS, models)
    assert np.array_equal(usual, spread), "as section surrogate spreads them"


def test_a_row_without_a_target_class_is_refused(models: list[Normalized]) -> None:
    for row in ("paper", "exact,layer=layer4"):
        with pytest.raises(UsageError, match="has no target class"):
            perturbed(row, IMAGES, LABELS, models)
