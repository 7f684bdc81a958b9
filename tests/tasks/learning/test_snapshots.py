"""Networks from along one training are what an onlooker would have seen, and taking them changes nothing."""

from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.learning.models import Normalized, build_model, channel_statistics
from tasks.learning.recipes import recipe_named
from tasks.learning.snapshots import snapshot_epochs, train_with_snapshots
from tasks.learning.training import train
from tests.tasks.learning.made_images import coloured

CLASSES, EPOCHS = 4, 3
DATA = coloured(96)


@given(st.integers(1, 500), st.integers(1, 100))
def test_epochs_are_spread_evenly_and_end_with_the_last(epochs: int, count: int) -> None:
    found = snapshot_epochs(epochs, count)
    assert len(found) == min(epochs, count)
    assert found[-1] == epochs and found[0] >= 1
    gaps = np.diff([0, *found])
    assert gaps.min() >= 1 and gaps.max() - gaps.min() <= 1


def test_each_is_the_network_as_it_was() -> None:
    def fresh() -> Normalized:
        return Normalized(build_model("resnet18", CLASSES, "imagenet", 1), *channel_statistics(DATA.images))

    def look(_: object) -> None:
        with torch.no_grad():
            seen.append(watched.eval()(images))

    recipe = recipe_named("modern", EPOCHS, 0.05, 32)
    how: dict[str, Any] = {"classes": CLASSES, "seed": 1, "device": "cpu", "precision": "fp32", "threads": 1}
    images = torch.rand(5, 3, *DATA.images.shape[1:3], generator=torch.Generator().manual_seed(0))
    seen: list[torch.Tensor] = []
    watched = fresh()
    train(watched, DATA, DATA, recipe=recipe, on_epoch=look, **how)
    made, result = train_with_snapshots(fresh(), DATA, DATA, recipe=recipe, snapshots=EPOCHS, **how)

    assert len(result.history) == len(made) == len(seen) == EPOCHS
    for network, logits in zip(made, seen, strict=True):
        assert not network.training
        with torch.no_grad():
            torch.testing.assert_close(network(images), logits, rtol=1e-3, atol=1e-3)
    assert (seen[0] - seen[-1]).abs().max() > 0.05, "they differ, or the test says nothing"
    assert all(
        torch.equal(a, b) for a, b in zip(made[-1].state_dict().values(), watched.state_dict().values(), strict=True)
    )
