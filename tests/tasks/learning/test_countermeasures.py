import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from storage.errors import ParameterError
from tasks.learning.adversarial import AdversarialTraining
from tasks.learning.countermeasures import COUNTERMEASURES, countermeasure_named
from tasks.learning.filtering import bit_depth, gaussian_blur, grayscale, jpeg
from tasks.learning.fitting import fitted
from tasks.learning.interventions import Batch, batch_generator
from tasks.learning.mixing import cutmix, cutout, mixup
from tasks.learning.models import Normalized, build_model, channel_statistics
from tasks.learning.projection import fit_projection, linear_weights
from tasks.learning.recipes import recipe_named
from tasks.learning.training import LabelledImages, TrainResult, train
from tests.tasks.learning.made_images import coloured

CLASSES = 4
TRAINING, TEST = coloured(66), coloured(24, seed=1)
RECIPE = recipe_named("modern", epochs=2, lr=0.05, batch_size=33)
PREPARING = [name for name, one in COUNTERMEASURES.items() if one.fit is not None]
MODEL = Normalized(build_model("resnet18", CLASSES), (0.5,) * 3, (0.2,) * 3)
"""For interventions that do not ask the network."""
INTERVENING = [name for name, one in COUNTERMEASURES.items() if one.intervention() is not None]


def fresh(architecture: str = "resnet18", seed: int = 0) -> Normalized:
    return Normalized(build_model(architecture, CLASSES, "imagenet", seed), *channel_statistics(TRAINING.images))


def trained(model: Normalized, **other: Any) -> TrainResult:
    options: dict[str, Any] = {"classes": CLASSES, "recipe": RECIPE, "seed": 5, "device": "cpu", "threads": 1}
    return train(model, TRAINING, TEST, **{**options, **other})


@pytest.fixture(scope="module")
def plain() -> tuple[Normalized, TrainResult]:
    """What a training without a countermeasure gives."""
    model = fresh()
    return model, trained(model)


def prepared(name: str, training: LabelledImages = TRAINING, seed: int = 3) -> tuple[LabelledImages, LabelledImages]:
    return countermeasure_named(name).prepare(training, TEST, classes=CLASSES, seed=seed, device="cpu", threads=1)


def batch_of(data: LabelledImages, model: Normalized | None = None, seed: int = 0, precision: str = "fp32") -> Batch:
    images = torch.from_numpy(data.images).permute(0, 3, 1, 2)
    labels = torch.from_numpy(data.labels)
    return Batch(images, labels, CLASSES, batch_generator(seed, 1, 0), model or fresh(), precision)  # type: ignore[arg-type]


def noise(count: int, height: int = 20, width: int = 28, seed: int = 0) -> LabelledImages:
    random = np.random.default_rng(seed)
    images = random.integers(1, 256, (count, height, width, 3)).astype(np.uint8)
    return LabelledImages(images, random.integers(0, CLASSES, count))


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Of layer4, dead taps of the kernels keep their first values."""
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in one.state_dict().items() if "layer4" not in name)


def test_the_registry_names_them_in_order_and_explains_them() -> None:
    assert list(COUNTERMEASURES) == [
        "none", "grayscale", "jpeg-10", "gaussian-blur", "bit-depth",
        "cutout", "cutmix", "mixup", "adversarial", "orthogonal",
    ]  # fmt: skip
    for name, one in COUNTERMEASURES.items():
        assert countermeasure_named(name) is one and one.name == name
        assert one.title and one.about.endswith(".")
    assert sorted([*PREPARING, *INTERVENING, "none"]) == sorted(COUNTERMEASURES)
    with pytest.raises(ParameterError, match="orthogonal"):
        countermeasure_named("gray")


@pytest.mark.parametrize("name", COUNTERMEASURES)
def test_preparing_is_deterministic_and_changes_only_what_it_promises(name: str) -> None:
    before = TRAINING.images.copy(), TEST.images.copy()
    training, test = prepared(name)
    again, _ = prepared(name)
    np.testing.assert_array_equal(TRAINING.images, before[0])
    np.testing.assert_array_equal(TEST.images, before[1])
    np.testing.assert_array_equal(training.images, again.images)
    assert training.images.dtype == np.uint8 and training.images.shape == TRAINING.images.shape
    assert training.labels is TRAINING.labels and test.labels is TEST.labels
    assert (training is TRAINING) == (name not in PREPARING)
    assert (training.images != TRAINING.images).any() == (name in PREPARING)
    assert (test is TEST) == (name != "grayscale")


def test_grayscale_is_luma_in_all_channels_of_both_splits() -> None:
    training, test = prepared("grayscale")
    for before, after in ((TRAINING, training), (TEST, test)):
        luma = before.images @ np.array([0.299, 0.587, 0.114])
        assert np.ptp(after.images, axis=3).max() == 0
        assert np.abs(after.images[..., 0] - luma).max() <= 0.51
    ends = np.array([[[[0] * 3, [255] * 3]]], np.uint8)
    np.testing.assert_array_equal(grayscale(ends), ends)


def test_jpeg_squeezes_noise_and_more_so_at_low_quality() -> None:
    smooth = np.broadcast_to(np.linspace(60, 180, 32)[:, None, None], (2, 32, 32, 3))
    noisy = (smooth + np.random.default_rng(0).integers(-8, 9, smooth.shape)).astype(np.uint8)
    left = {quality: float((jpeg(noisy, quality) - smooth).std()) for quality in (10, 100)}
    assert left[10] < 0.7 * float((noisy - smooth).std()) < left[100]


def test_the_blur_smooths_by_its_kernel() -> None:
    point = np.zeros((1, 9, 9, 3), np.uint8)
    point[0, 4, 4] = 200
    weights = np.exp(-0.5 * (np.arange(-1, 2) / 0.8) ** 2)
    weights /= weights.sum()
    expected = np.zeros((9, 9))
    expected[3:6, 3:6] = 200 * np.outer(weights, weights)
    assert np.abs(gaussian_blur(point)[0] - expected[..., None]).max() <= 0.51
    np.testing.assert_array_equal(gaussian_blur(TRAINING.images[:2], sigma=0.1), TRAINING.images[:2])  # APBench's


@given(st.integers(1, 8))
def test_bit_depth_keeps_the_highest_bits(bits: int) -> None:
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    result = bit_depth(values, bits)
    assert len(np.unique(result)) == 2**bits
    np.testing.assert_array_equal(result, values // 2 ** (8 - bits) * 2 ** (8 - bits))


def patterned(seed: int, pattern: NDArray[np.int64] | None) -> LabelledImages:
    """Noise that says nothing about the label, and a pattern that says everything."""
    random = np.random.default_rng(seed)
    labels = np.arange(400, dtype=np.int64) % CLASSES
    images = random.integers(40, 216, (400, 16, 16, 3))
    return LabelledImages((images + (0 if pattern is None else pattern[labels])).astype(np.uint8), labels)


def linear_accuracy(training: LabelledImages, test: LabelledImages) -> float:
    pixels = torch.from_numpy(training.images).flatten(1)
    weights = linear_weights(pixels, torch.from_numpy(training.labels), CLASSES, seed=0, steps=200)
    predictions = (torch.from_numpy(test.images).flatten(1).float() @ weights.t()).argmax(1).numpy()
    return float((predictions == test.labels).mean())


def test_the_orthogonal_projection_undoes_a_pattern_of_each_class() -> None:
    pattern = np.random.default_rng(5).integers(0, 2, (CLASSES, 16, 16, 3)) * 20 - 10
    protected, more = patterned(0, pattern), patterned(1, pattern)
    treated, _ = prepared("orthogonal", protected)
    assert linear_accuracy(protected, more) > 0.95
    assert linear_accuracy(treated, more) < 0.6
    kept = np.corrcoef(treated.images.ravel(), protected.images.ravel())[0, 1]
    assert kept > 0.95
    facts = torch.from_numpy(protected.images).flatten(1), torch.from_numpy(protected.labels), CLASSES
    assert not torch.equal(linear_weights(*facts, seed=1, steps=1), linear_weights(*facts, seed=2, steps=1))


def test_the_projection_removes_the_learned_directions() -> None:
    data = patterned(2, None)
    projection = fit_projection(data.images, data.labels, classes=CLASSES, seed=3, device="cpu", threads=1)
    assert torch.allclose(projection.basis.t() @ projection.basis, torch.eye(CLASSES), atol=1e-5)
    pixels = torch.from_numpy(data.images).flatten(1)
    weights = linear_weights(pixels, torch.from_numpy(data.labels), CLASSES, seed=3)
    values = pixels.float() / 255
    along = (projection.project(values) - projection.mean) @ F.normalize(weights, dim=1).t()
    before = (values - projection.mean) @ F.normalize(weights, dim=1).t()
    assert along.abs().max() < 1e-4 < 0.1 < before.abs().max()
    bytes_along = (torch.from_numpy(projection(data.images)).flatten(1) / 255 - projection.mean) @ projection.basis
    assert bytes_along.abs().max() < 0.1 * before.abs().max()  # rounded and clipped
    again = projection.project(projection.project(values))
    assert torch.allclose(again, projection.project(values), atol=1e-5)


@settings(max_examples=25)
@given(st.integers(0, 2**40), st.integers(1, 9))
def test_cutout_blackens_one_box_and_nothing_else(seed: int, count: int) -> None:
    data = noise(count)
    batch = batch_of(data, MODEL, seed)
    images, targets = cutout(batch)
    assert targets is batch.labels and images.dtype == torch.uint8
    assert images.is_contiguous(memory_format=torch.channels_last)
    black = (images == 0).all(1)
    assert torch.equal(images, torch.where(black[:, None], 0, batch.images))
    for one in black:
        rows, columns = one.any(1), one.any(0)
        assert torch.equal(one, rows[:, None] & columns)  # a box
        assert 20 // 4 <= rows.sum() <= 20 // 2 and 28 // 4 <= columns.sum() <= 28 // 2
        assert rows.diff().sum() <= 2 and columns.diff().sum() <= 2


@settings(max_examples=25)
@given(st.integers(0, 2**40), st.integers(2, 9))
def test_cutmix_weighs_the_targets_by_the_pixels(seed: int, count: int) -> None:
    images = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 20, 28, 3))
    data = LabelledImages(images.copy(), np.arange(count) % CLASSES)
    mixed, targets = cutmix(batch_of(data, MODEL, seed))
    assert mixed.dtype == torch.uint8 and mixed.is_contiguous(memory_format=torch.channels_last)
    assert targets.shape == (count, CLASSES) and torch.allclose(targets.sum(1), torch.ones(count))
    for i, (image, target) in enumerate(zip(mixed, targets, strict=True)):
        found = image.unique().tolist()
        assert len(found) <= 2
        shares = torch.zeros(CLASSES)
        for value in found:
            assert value == i or sum(value in other.unique() for other in mixed) <= 2
            shares[value % CLASSES] += (image[0] == value).float().mean()
        assert torch.allclose(target, shares, atol=1e-5)


@settings(max_examples=25)
@given(st.integers(0, 2**40), st.integers(2, 9))
def test_mixup_weighs_images_and_targets_alike(seed: int, count: int) -> None:
    images = np.broadcast_to(25 * np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 16, 16, 3))
    data = LabelledImages(images.copy(), np.arange(count))
    batch = replace(batch_of(data, MODEL, seed), classes=count)
    mixed, targets = mixup(batch)
    assert mixed.dtype == torch.float32 and mixed.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(targets.sum(1), torch.ones(count)) and (targets > 0).sum(1).max() <= 2
    expected = targets @ (25 * torch.arange(count).float() / 255)
    assert torch.allclose(mixed, expected[:, None, None, None].expand_as(mixed), atol=1e-5)


def test_shares_of_mixing_are_spread_over_the_whole_range() -> None:
    data = noise(400, 16, 16)
    for mixing in (mixup, cutmix):
        _, targets = mixing(replace(batch_of(replace(data, labels=np.arange(400)), MODEL), classes=400))
        partner = 1 - targets.diagonal()
        assert partner.min() < 0.05 and partner.max() > 0.6
        assert 0.2 < partner.mean() < 0.6  # of cutmix, less than half: boxes are cut off at the edges


@pytest.mark.parametrize(("steps", "precision"), [(1, "bf16"), (3, "fp32")])
def test_an_adversarial_perturbation_is_small_raises_the_loss_and_leaves_the_network_alone(
    steps: int, precision: str
) -> None:
    model = fresh().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    trained(model, precision=precision)
    with fitted(model, 32, 32):
        model.train()
        before = copy.deepcopy(model.state_dict())
        batch = batch_of(TRAINING, model, precision=precision)
        clean = batch.images.float() / 255
        attack = AdversarialTraining(steps=steps)
        images, targets = attack(batch)
        after = model.state_dict()
        assert all(torch.equal(value, after[name]) for name, value in before.items())
        assert all(p.requires_grad and p.grad is None for p in model.parameters())
        assert model.training and all(m.track_running_stats for m in model.modules() if hasattr(m, "running_mean"))
        random = (clean + attack._start(batch)).clamp(0, 1)
        with torch.no_grad():
            losses = [F.cross_entropy(model(i), batch.labels).item() for i in (clean, random, images)]
    assert targets is batch.labels and images.dtype == torch.float32 and not images.requires_grad
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert images.min() >= 0 and images.max() <= 1
    assert attack.epsilon * 0.9 < (images - clean).abs().max() <= attack.epsilon + 1e-6
    assert losses[2] > max(losses[:2]) * 1.02


@pytest.mark.parametrize("values", [{"epsilon": 0.0}, {"epsilon": 1.5}, {"steps": 0}])
def test_an_attack_that_makes_no_sense_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ParameterError):
        AdversarialTraining(**values)


@pytest.mark.parametrize("name", INTERVENING)
def test_an_intervention_is_decided_by_the_batch_alone(name: str) -> None:
    step_in = countermeasure_named(name).intervention()
    assert step_in is not None
    data = noise(12, 32, 32)
    results = [step_in(batch_of(data, fresh().train(), seed)) for seed in (1, 1, 2)]
    assert all(torch.equal(one, other) for one, other in zip(results[0], results[1], strict=True))
    assert not torch.equal(results[0][0], results[2][0])
    before = batch_of(data).images
    assert torch.equal(before, torch.from_numpy(noise(12, 32, 32).images).permute(0, 3, 1, 2))


def test_batches_and_epochs_draw_differently() -> None:
    facts = [(seed, epoch, first) for seed in (0, 1) for epoch in (1, 2) for first in (0, 128)]
    assert len({float(torch.rand((), generator=batch_generator(*one))) for one in facts}) == len(facts)


@pytest.mark.parametrize("name", INTERVENING)
def test_a_resumed_training_with_an_intervention_is_the_uninterrupted_one(name: str) -> None:
    step_in = countermeasure_named(name).intervention()
    architecture = (
        "resnet18" if name == "adversarial" else "vit_small"
    )  # small; but batch normalisation is attacked too
    states: list[dict[str, Any]] = []
    whole, resumed = fresh(architecture), fresh(architecture, seed=9)
    result = trained(whole, intervention=step_in, checkpoint=lambda state: states.append(copy.deepcopy(state)))
    again = trained(resumed, intervention=step_in, resume=states[0])
    assert same(whole, resumed)
    assert [line.train_loss for line in again.history] == [line.train_loss for line in result.history]
    assert all(0 <= line.train_accuracy <= 1 for line in result.history)


def test_each_batch_goes_through_the_intervention_and_no_other_image(plain: tuple[Normalized, TrainResult]) -> None:
    seen: list[tuple[int, int, bool, bool]] = []

    def blank(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append((len(batch.images), batch.classes, batch.model.training, batch.model is model))
        return torch.zeros_like(batch.images), batch.labels

    model = fresh()
    result = trained(model, intervention=blank)
    assert seen == [(33, CLASSES, True, True)] * 4
    assert result.history[0].train_loss != plain[1].history[0].train_loss


def test_an_intervention_that_changes_nothing_gives_the_bits_of_none(
    plain: tuple[Normalized, TrainResult],
) -> None:
    model = fresh()
    result = trained(model, intervention=lambda batch: (batch.images, batch.labels))
    assert same(model, plain[0])
    lines = [[(line.train_loss, line.train_accuracy) for line in one.history] for one in (result, plain[1])]
    assert lines[0] == lines[1]


def test_hard_targets_may_be_given_as_shares() -> None:
    one_batch = RECIPE.with_overrides(epochs=1, batch_size=66)
    hard, soft = (
        trained(fresh(), recipe=one_batch, precision="fp32", intervention=step_in).history[0]
        for step_in in (None, lambda batch: (batch.images, F.one_hot(batch.labels, batch.classes).float()))
    )
    assert soft.train_loss == pytest.approx(hard.train_loss, rel=1e-5)
    assert soft.train_accuracy == pytest.approx(hard.train_accuracy)


@pytest.mark.parametrize("architecture", ["mobilenet_v2", "vit_small"])
def test_other_architectures_train_on_adversarial_examples(architecture: str) -> None:
    few = LabelledImages(TRAINING.images[:16], TRAINING.labels[:16])
    model = fresh(architecture)
    recipe = RECIPE.with_overrides(epochs=1, batch_size=8)
    step_in = countermeasure_named("adversarial").intervention()
    result = train(
        model, few, few, classes=CLASSES, recipe=recipe, seed=0, device="cpu", threads=1, intervention=step_in
    )
    assert np.isfinite(result.history[0].train_loss)
