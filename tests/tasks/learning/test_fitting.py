import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from storage.errors import ParameterError
from tasks.learning.fitting import fitted, live_window
from tasks.learning.models import ARCHITECTURES, build_model


@given(st.integers(1, 20), st.integers(1, 7), st.integers(1, 3), st.integers(0, 3))
def test_only_taps_that_never_see_a_pixel_are_cut(size: int, kernel: int, stride: int, padding: int) -> None:
    if size + 2 * padding < kernel or padding >= kernel:
        return
    window = live_window(size, kernel, stride, padding)
    image = torch.rand(1, 1, 1, size)
    weight = torch.rand(1, 1, 1, kernel)
    whole = nn.functional.conv2d(image, weight, None, (1, stride), (0, padding))
    cut = nn.functional.conv2d(image, weight[..., window.first : window.last], None, (1, stride), (0, window.padding))
    torch.testing.assert_close(cut, whole)


def test_one_tap_of_nine_is_left_at_a_single_pixel() -> None:
    assert live_window(1, 3, 1, 1) == (1, 2, 0)
    assert live_window(2, 3, 2, 1) == (1, 3, 0)
    assert live_window(2, 3, 1, 1) == (0, 3, 1)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_fitted_network_computes_the_same(architecture: str) -> None:
    network = build_model(architecture, 5, "imagenet", seed=3).to(memory_format=torch.channels_last).eval()
    images = torch.rand(3, 3, 32, 40).contiguous(memory_format=torch.channels_last)
    before = {name: value.clone() for name, value in network.state_dict().items()}

    def logits_and_gradient() -> tuple[torch.Tensor, torch.Tensor]:
        x = images.clone().requires_grad_()
        made = network(x)
        return made.detach(), torch.autograd.grad(made.square().sum(), x)[0]

    expected = logits_and_gradient()
    with fitted(network, 32, 40):
        for ours, theirs in zip(logits_and_gradient(), expected, strict=True):
            # As a whole: sums in another order can switch a ReLU of a deep network, and with it some samples.
            assert (ours - theirs).norm() < 0.1 * theirs.norm()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(type(module).__module__.startswith("torch") for module in network.modules())


def test_what_is_learnt_is_written_back_and_dead_taps_stay() -> None:
    network = build_model("resnet18", 4, "imagenet", seed=1).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    original = network.layer4[1].conv2
    with fitted(network, 32, 32):
        assert sum(p.numel() for p in network.parameters()) < 0.4 * sum(v.numel() for v in before.values())
        optimizer = torch.optim.SGD(network.parameters(), 0.1)
        network(torch.rand(8, 3, 32, 32)).square().sum().backward()
        optimizer.step()
        learnt = network.layer4[1].conv2.weight.detach().clone()
    assert network.layer4[1].conv2 is original
    changed = original.weight != before["layer4.1.conv2.weight"]
    assert torch.equal(original.weight[:, :, 1:2, 1:2], learnt)
    assert changed[:, :, 1, 1].any() and changed.sum() == changed[:, :, 1, 1].sum()
    assert not torch.equal(network.fc.bias, before["fc.bias"])


def test_training_mode_is_kept_and_an_error_undoes_everything() -> None:
    network = build_model("resnet18", 4, "imagenet").train()
    statistics = network.bn1.running_mean.clone()
    with pytest.raises(ZeroDivisionError), fitted(network, 32, 32):
        assert all(module.training for module in network.modules())
        raise ZeroDivisionError
    assert torch.equal(network.bn1.running_mean, statistics)
    assert all(module.training and type(module).__module__.startswith("torch") for module in network.modules())


def test_images_too_small_are_refused_in_words() -> None:
    network = build_model("vgg11_bn", 4, "imagenet")
    with pytest.raises(ParameterError, match=r"16 x 16 pixels are too small.*Output size"), fitted(network, 16, 16):
        pass
    assert isinstance(network.features[0], nn.Conv2d)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), torch.AcceleratorError("CUDA error")])
def test_a_device_that_fails_is_no_matter_of_the_images(error: Exception) -> None:
    network = build_model("resnet18", 4, "imagenet")

    def fails(*_: object) -> None:
        raise error

    network.layer1.register_forward_pre_hook(fails)
    with pytest.raises(type(error)), fitted(network, 32, 32):
        pass
