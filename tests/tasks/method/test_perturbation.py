"""The perturbation keeps its bound, moves activations where it should, and depends on nothing but its inputs."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import ParameterError
from tasks.method.perturbation import TARGETS, FeatureSpacePerturbation, FspParameters, build_library, derangement
from tests.tasks.method.images import make

SEED = bytes(range(16))


@pytest.fixture(scope="module")
def features():  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, 2), torch.nn.ReLU(), torch.nn.Conv2d(16, 24, 3, 2), torch.nn.ReLU()
    )
    net.eval().requires_grad_(False)
    return lambda x: net(x).mean((2, 3))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.stack([make("photo", 32, 32, s) for s in range(30)])


LABELS = np.arange(30) % 5
SEEDS = [bytes([i]) * 16 for i in range(30)]


def build(features, images, **parameters):  # type: ignore[no-untyped-def]
    library = build_library(features, [list(images[c == LABELS]) for c in range(5)], 4, "cpu")
    return FeatureSpacePerturbation(features, library, FspParameters(**parameters), SEED)


@pytest.mark.parametrize("targets", TARGETS)
def test_bound_and_direction(features, images, targets: str) -> None:  # type: ignore[no-untyped-def]
    fsp = build(features, images, targets=targets, epsilon=0.07, steps=5)
    perturbed = fsp.perturb(images, LABELS, SEEDS)
    assert perturbed.dtype == np.uint8
    assert np.abs(perturbed.astype(int) - images).max() <= np.ceil(0.07 * 255)
    assert (perturbed != images).mean() > 0.5
    if targets == "permuted-mean":
        goal = torch.from_numpy(build_library(features, [list(images[c == LABELS]) for c in range(5)], 4, "cpu")).mean(
            1
        )
        goal = goal[fsp.target_class[LABELS]]
        as_input = lambda a: torch.from_numpy(a).permute(0, 3, 1, 2).float() / 255  # noqa: E731
        before = (features(as_input(images)) - goal).norm(dim=1)
        after = (features(as_input(perturbed)) - goal).norm(dim=1)
        assert (after < before).float().mean() > 0.9


def test_same_inputs_same_bytes_whatever_the_order_of_calls(features, images) -> None:  # type: ignore[no-untyped-def]
    fsp = build(features, images, targets="random", batch_size=10)
    whole = fsp.perturb(images, LABELS, SEEDS)
    assert np.array_equal(whole, fsp.perturb(images, LABELS, SEEDS))
    assert np.array_equal(whole[10:20], fsp.perturb(images[10:20], LABELS[10:20], SEEDS[10:20]))


@given(st.integers(2, 300), st.binary(min_size=16, max_size=16))
def test_derangement_maps_no_class_to_itself(classes: int, seed: bytes) -> None:
    permutation = derangement(classes, seed)
    assert np.array_equal(np.sort(permutation), np.arange(classes))
    assert not np.any(permutation == np.arange(classes))
    assert np.array_equal(permutation, derangement(classes, seed))


def test_derangement_is_frozen() -> None:
    """Part of what makes a rerun byte-identical: a new release must not draw another permutation."""
    assert derangement(10, SEED).tolist() == DERANGED


DERANGED = [6, 8, 1, 7, 5, 2, 4, 0, 9, 3]


@pytest.mark.parametrize("bad", [{"epsilon": 0.0}, {"steps": 0}, {"momentum": 2.0}, {"targets": "nearest"}])
def test_impossible_parameters_are_named(bad: dict) -> None:  # type: ignore[type-arg]
    with pytest.raises(ParameterError, match=next(iter(bad))):
        FspParameters(**bad)


def test_a_class_without_images_is_named(features) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ParameterError, match="Class 1"):
        build_library(features, [[make("photo", 32, 32, 0)], []], 4, "cpu")


def test_a_single_class_is_refused() -> None:
    with pytest.raises(ParameterError, match="single class"):
        derangement(1, SEED)
