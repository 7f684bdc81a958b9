import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import DatasetError, ParameterError
from tasks.learning.evaluation import Evaluation, evaluate, predict
from tasks.learning.models import Normalized, build_model, channel_statistics
from tasks.learning.recipes import Recipe, recipe_named
from tasks.learning.training import LabelledImages, TrainResult, _batches, train
from tests.tasks.learning.made_images import coloured

CLASSES = 4
TRAINING, TEST = coloured(130), coloured(40, seed=1)
RECIPE = recipe_named("modern", epochs=3, lr=0.05, batch_size=32)


def fresh(stem: str = "imagenet", seed: int = 0) -> Normalized:
    return Normalized(build_model("resnet18", CLASSES, stem, seed), *channel_statistics(TRAINING.images))


def trained(model: Normalized, recipe: Recipe = RECIPE, **other: Any) -> TrainResult:
    options: dict[str, Any] = {"classes": CLASSES, "recipe": recipe, "seed": 5, "device": "cpu", "threads": 1, **other}
    return train(model, other.pop("training", TRAINING), TEST, **{k: v for k, v in options.items() if k != "training"})


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize(("name", "rate"), [("paper", 0.001), ("modern", 0.01)])
def test_it_learns_and_says_how_well(name: str, rate: float) -> None:
    model = fresh()
    result = trained(model, recipe_named(name, epochs=6, lr=rate, batch_size=16))
    assert [line.epoch for line in result.history] == list(range(1, 7))
    # A constant rate still jumps after so few steps, so the last epoch need not be the best. Chance is 0.25.
    assert min(line.train_loss for line in result.history[1:]) < result.history[0].train_loss
    assert result.peak.test_accuracy > 0.9 and result.train_accuracy > 0.4
    assert result.peak.test_accuracy == max(line.test_accuracy for line in result.history)
    assert result.test_accuracy == result.history[-1].test_accuracy
    confusion = result.test.confusion
    assert confusion.dtype == np.int64 and confusion.shape == (CLASSES, CLASSES)
    assert confusion.sum(1).tolist() == np.bincount(TEST.labels).tolist()
    assert confusion.trace() / len(TEST.labels) == pytest.approx(result.test_accuracy)
    assert not model.training and type(model.network.conv1) is torch.nn.Conv2d


def test_the_reported_accuracies_are_those_of_the_final_network_in_eval_mode() -> None:
    model = fresh()
    result = trained(model, precision="fp32")
    images = torch.from_numpy(TRAINING.images)
    again = evaluate(model, images, torch.from_numpy(TRAINING.labels), CLASSES, "fp32")
    assert again.accuracy == result.train_accuracy
    assert torch.equal(predict(model, images, "fp32"), predict(model, images, "fp32", most=7))


@pytest.mark.parametrize(("side", "count", "parts"), [(32, 501, [500, 1]), (512, 9, [4, 4, 1])])
def test_large_images_are_predicted_fewer_at_once(side: int, count: int, parts: list[int]) -> None:
    seen = []

    class Counting(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(len(images))
            return torch.zeros(len(images), 2)

    assert len(predict(Counting(), torch.zeros(count, side, side, 3, dtype=torch.uint8), "fp32")) == count
    assert seen == parts


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_seed_gives_the_same_bits_and_another_does_not(precision: str) -> None:
    models = [fresh() for _ in range(3)]
    results = [
        trained(model, RECIPE.with_overrides(epochs=1), seed=seed, precision=precision)
        for model, seed in zip(models, (5, 5, 6), strict=True)
    ]
    assert same(models[0], models[1]) and not same(models[0], models[2])
    losses = [result.history[0].train_loss for result in results]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("name", ["paper", "modern"])
def test_a_resumed_training_is_the_uninterrupted_one(name: str) -> None:
    recipe = recipe_named(name, epochs=3, batch_size=32)
    states: list[dict[str, Any]] = []
    whole = fresh()
    result = trained(whole, recipe, checkpoint=lambda state: states.append(copy.deepcopy(state)))
    assert [len(state["history"]) for state in states] == [1, 2, 3]
    for state in states:
        resumed = fresh(seed=9)  # whatever it is, the state replaces it
        seen: list[int] = []
        again = trained(resumed, recipe, resume=state, on_epoch=lambda line, seen=seen: seen.append(line.epoch))
        assert seen == list(range(len(state["history"]) + 1, 4))
        live = {n: v for n, v in whole.state_dict().items() if "layer4" not in n}  # dead taps keep their first values
        theirs = resumed.state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in live.items())
        assert [line.train_loss for line in again.history] == [line.train_loss for line in result.history]
        np.testing.assert_array_equal(again.test.predictions, result.test.predictions)


def test_a_network_with_dropout_too_is_what_its_seed_makes_it_and_leaves_the_global_state_alone() -> None:
    statistics, recipe = channel_statistics(TRAINING.images), recipe_named("modern", epochs=1, lr=0.05, batch_size=64)
    models = [Normalized(build_model("mobilenet_v2", CLASSES), *statistics) for _ in range(2)]
    before = torch.random.get_rng_state()
    trained(models[0], recipe)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(7)
    trained(models[1], recipe)
    assert same(*models)


def test_progress_counts_every_image_of_every_epoch() -> None:
    seen: list[tuple[str, int, int | None]] = []
    trained(fresh(), progress=lambda *call: seen.append(call))
    done = [call[1] for call in seen]
    assert done == sorted(done) and done[-1] == 3 * 130 and {call[2] for call in seen} == {3 * 130}
    assert len(seen) == 3 * 5  # batches of at most 32, none much smaller
    assert np.diff([0, *done]).min() == 26
    assert seen[-1][0] == "epoch 3 of 3"


@given(st.integers(2, 3000), st.integers(2, 300))
def test_batches_cover_all_and_none_is_small(n: int, size: int) -> None:
    sizes = [part.stop - part.start for part in _batches(n, size)]
    assert sum(sizes) == n and min(sizes) >= 2 and max(sizes) - min(sizes) <= 1
    assert max(sizes) <= max(size, 3)


def test_images_need_not_be_square_and_the_network_may_be_another() -> None:
    wide = LabelledImages(TRAINING.images[:16, :, :24], TRAINING.labels[:16])
    model = Normalized(build_model("mobilenet_v2", CLASSES, "small"), (0.5,) * 3, (0.2,) * 3)
    recipe = RECIPE.with_overrides(epochs=1, batch_size=8)
    result = train(model, wide, wide, classes=CLASSES, recipe=recipe, seed=0, device="cpu", threads=1)
    assert len(result.history) == 1


def test_threads_and_denormals_are_put_back() -> None:
    torch.set_num_threads(2)
    trained(fresh(), RECIPE.with_overrides(epochs=1), training=coloured(16))
    assert torch.get_num_threads() == 2
    assert (torch.tensor(1e-39) * 1).item() > 0
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    "training",
    [
        coloured(1),
        coloured(16, side=16),
        LabelledImages(TRAINING.images, TRAINING.labels + 1),
        LabelledImages(TRAINING.images, TRAINING.labels[:-1]),
    ],
    ids=["one image", "other size", "label out of range", "label missing"],
)
def test_data_that_does_not_fit_is_refused(training: LabelledImages) -> None:
    with pytest.raises(DatasetError):
        trained(fresh(), training=training)


def test_a_diverged_training_stops_with_the_cure() -> None:
    with pytest.raises(ParameterError, match="Lower lr"):
        trained(fresh(), recipe_named("modern", epochs=2, lr=100.0, batch_size=8), precision="fp32")


def test_an_evaluation_of_nothing_is_zero() -> None:
    nothing = Evaluation(np.zeros(0, np.int64), np.zeros(0, np.int64), 3)
    assert nothing.accuracy == 0 and nothing.confusion.sum() == 0
