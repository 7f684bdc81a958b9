"""Networks from along one training, which take turns as the surrogate.

A perturbation made against one network fits that network best. Networks from several epochs of the same training differ
enough that what misleads all of them misleads others too, from their first epochs on: a self-ensemble (Chen et al.,
Self-Ensemble Protection, ICLR 2023), which costs one training and no more steps than a single network.
"""

import copy
from collections.abc import Mapping
from typing import Any

from tasks.learning.fitting import fitted
from tasks.learning.models import Normalized
from tasks.learning.recipes import Recipe
from tasks.learning.training import LabelledImages, TrainResult, train


def snapshot_epochs(epochs: int, count: int) -> list[int]:
    """After which epochs the networks are taken: `count`, evenly spread, the last of all among them.

    A training of fewer epochs gives one network an epoch.
    """
    count = min(count, epochs)
    return [round(epochs * (i + 1) / count) for i in range(count)]


def with_weights(model: Normalized, weights: Mapping[str, Any], height: int, width: int) -> Normalized:
    """A copy of a trained network, in eval mode, with the weights that it had after an earlier epoch.

    Args:
        weights: the `model` of a state that `train` gave to `checkpoint`, trained on images of this size.
    """
    other = copy.deepcopy(model)
    with fitted(other, height, width):
        other.load_state_dict(weights)
    return other.eval()


def train_with_snapshots(
    model: Normalized, training: LabelledImages, test: LabelledImages, *, recipe: Recipe, snapshots: int, **how: Any
) -> tuple[list[Normalized], TrainResult]:
    """Train as `train` does (`how`: its other arguments), and keep what the network was on the way, in memory.

    Returns:
        the networks after `snapshot_epochs`, the trained one last; and what `train` returns.
    """
    wanted, kept = snapshot_epochs(recipe.epochs, snapshots)[:-1], []

    def keep(state: dict[str, Any]) -> None:
        if len(state["history"]) in wanted:
            kept.append(copy.deepcopy(state["model"]))

    result = train(model, training, test, recipe=recipe, checkpoint=keep, **how)
    height, width = training.images.shape[1:3]
    return [*(with_weights(model, weights, height, width) for weights in kept), model], result
