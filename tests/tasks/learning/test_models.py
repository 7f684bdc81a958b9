import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import ParameterError
from tasks.learning.models import ARCHITECTURES, STEMS, Normalized, build_model, channel_statistics


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_network_maps_small_images_to_logits(architecture: str, stem: str) -> None:
    network = build_model(architecture, 7, stem).eval()
    with torch.no_grad():
        assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_small_stem_keeps_the_resolution() -> None:
    sizes = {}
    for stem in STEMS:
        network = build_model("resnet18", 10, stem).eval()
        network.layer1.register_forward_hook(lambda m, i, o, stem=stem: sizes.__setitem__(stem, o.shape[2:]))
        with torch.no_grad():
            network(torch.zeros(1, 3, 32, 32))
    assert sizes == {"imagenet": (8, 8), "small": (32, 32)}


def test_small_stem_is_torchvision_s_resnet_but_for_the_stem() -> None:
    own, small = (build_model("resnet18", 10, stem).state_dict() for stem in STEMS)
    differing = [name for name in own if own[name].shape != small[name].shape]
    assert own.keys() == small.keys()
    assert differing == ["conv1.weight"]
    assert small["conv1.weight"].shape == (64, 3, 3, 3)


def test_the_seed_decides_the_weights_and_the_global_state_is_left_alone() -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    first, again, other = (build_model("resnet18", 4, "small", seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first.conv1.weight, again.conv1.weight)
    assert not torch.equal(first.conv1.weight, other.conv1.weight)


@pytest.mark.parametrize("wrong", [("resnet19", 4, "small"), ("resnet18", 4, "tiny"), ("resnet18", 1, "small")])
def test_unknown_names_are_refused(wrong: tuple[str, int, str]) -> None:
    with pytest.raises(ParameterError):
        build_model(*wrong)


@given(st.integers(1, 9), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_statistics_are_those_of_all_pixels_in_any_order(count: int, side: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count, side, side + 1, 3), dtype=np.uint8)
    mean, std = channel_statistics(images)
    samples = images.reshape(-1, 3) / 255
    np.testing.assert_allclose(mean, samples.mean(0), atol=1e-12)
    flat = samples.std(0)
    np.testing.assert_allclose(std, np.where(flat > 0, flat, 1), atol=1e-12)
    assert channel_statistics(images[::-1]) == (mean, std)


def test_statistics_of_many_images_are_summed_in_parts() -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 256, 256, 3), dtype=np.uint8)
    mean, std = channel_statistics(images)
    np.testing.assert_allclose(mean, images.reshape(-1, 3).mean(0) / 255, rtol=1e-12)
    np.testing.assert_allclose(std, images.reshape(-1, 3).std(0) / 255, rtol=1e-9)


def test_normalised_takes_bytes_and_floats_alike_and_passes_gradients() -> None:
    model = Normalized(build_model("resnet18", 4, "small"), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)).eval()
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    scaled = (images.float() / 255).requires_grad_()
    assert torch.equal(model(images), model(scaled))
    model(scaled).sum().backward()
    assert scaled.grad is not None and scaled.grad.abs().sum() > 0
    torch.testing.assert_close(model.normalise(scaled)[:, 1], (scaled[:, 1] - 0.4) / 0.25)


def test_portable_is_the_same_network_without_a_class_of_ours() -> None:
    model = Normalized(build_model("resnet18", 4, "small"), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)).eval()
    images = torch.rand(2, 3, 16, 16)
    portable = model.portable().eval()
    torch.testing.assert_close(portable(images), model(images))
    assert b"tasks" not in pickle.dumps(portable)
