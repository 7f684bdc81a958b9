import pytest
import torch

from storage.errors import ParameterError
from tasks.learning.features import LARGE, LOGITS, SIZES_KEPT, Features
from tasks.learning.models import Normalized, build_model


def network(architecture: str) -> Normalized:
    """With running statistics that are not those of a fresh network, so that folding them is seen."""
    inner = build_model(architecture, 5, "imagenet", seed=2).train()
    with torch.no_grad():
        inner(torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    return Normalized(inner, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)).eval()


def expected(model: Normalized, layer: str, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations and gradient, the plain way."""
    kept = []
    hook = model.network.get_submodule(layer).register_forward_hook(lambda m, i, o: kept.append(o.clone()))
    point = images.clone().requires_grad_()
    model(point)
    hook.remove()
    activations = kept[0].flatten(2).mean(2)
    (gradient,) = torch.autograd.grad(activations.square().sum(), point)
    return activations.detach(), gradient


@pytest.mark.parametrize(
    ("architecture", "layer"),
    [
        ("resnet18", "layer3"),
        ("resnet18", "layer4"),
        ("resnet18", "layer4.0"),
        ("resnet18", "avgpool"),
        ("vgg11_bn", "features.20"),
        ("mobilenet_v2", "features.18"),
    ],
)
def test_they_are_the_network_s_activations(architecture: str, layer: str) -> None:
    model = network(architecture)
    features = Features(model, layer, "fp32")
    for side in (32, 40):
        images = torch.rand(4, 3, side, side, generator=torch.Generator().manual_seed(side))
        activations, gradient = expected(model, layer, images)
        point = images.clone().requires_grad_()
        ours = features(point)
        (slope,) = torch.autograd.grad(ours.square().sum(), point)
        assert ours.dtype == torch.float32 and ours.shape == activations.shape
        torch.testing.assert_close(ours.detach(), activations, rtol=1e-3, atol=1e-4)
        # Rounding may turn a ReLU at 0 over, which changes a few pixels' gradient: so by norm, not one by one.
        assert (slope - gradient).norm() < 0.02 * gradient.norm()


@pytest.mark.parametrize("architecture", ["resnet18", "linear"])
@pytest.mark.parametrize("side", [24, 32, 40])
def test_logits_are_the_network_s_output(architecture: str, side: int) -> None:
    model = network(architecture)
    images = torch.rand(4, 3, side, side, generator=torch.Generator().manual_seed(side)).requires_grad_()
    logits = Features(model, LOGITS, "fp32")(images)
    (slope,) = torch.autograd.grad(logits.square().sum(), images)
    torch.testing.assert_close(logits.detach(), model(images).detach(), rtol=1e-3, atol=1e-4)
    assert slope.norm() > 0


def test_bf16_is_close_and_its_gradient_points_the_same_way() -> None:
    model = network("resnet18")
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    activations, gradient = expected(model, "layer4", images)
    point = images.clone().requires_grad_()
    ours = Features(model, "layer4", "bf16")(point)
    (slope,) = torch.autograd.grad(ours.square().sum(), point)
    assert (ours - activations).abs().max() < 0.05 * activations.abs().max()
    assert torch.cosine_similarity(slope.flatten(), gradient.flatten(), dim=0) > 0.95


def test_the_model_itself_is_left_as_it_was() -> None:
    model = network("resnet18")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    Features(model, "layer4")(torch.rand(2, 3, 32, 32))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_an_unknown_layer_is_refused_with_those_there_are() -> None:
    with pytest.raises(ParameterError, match=r"layer3, layer4, avgpool"):
        Features(network("resnet18"), "layer5")


@pytest.mark.parametrize("layer", [LOGITS, "1"])
def test_a_network_that_can_not_be_cut_is_refused(layer: str) -> None:
    with pytest.raises(ParameterError, match="can not be a surrogate"):
        Features(network("vit_small"), layer)


def test_networks_of_a_few_sizes_are_kept_and_more_sizes_give_the_same() -> None:
    model = Normalized(build_model("resnet18", 3, "imagenet", 0), (0.5,) * 3, (0.25,) * 3).eval()
    features = Features(model, "layer3", "fp32")
    first = features(torch.full((1, 3, 32, 32), 0.3))
    for side in range(33, 33 + 2 * SIZES_KEPT):
        features(torch.full((1, 3, side, 32), 0.3))
        assert len(features._by_size) <= SIZES_KEPT
    assert torch.equal(features(torch.full((1, 3, 32, 32), 0.3)), first)


@pytest.mark.parametrize("architecture", ["resnet18", "mobilenet_v2"])
def test_large_images_share_a_copy_and_have_the_network_s_activations(architecture: str) -> None:
    model, layer = network(architecture), {"resnet18": "layer4", "mobilenet_v2": "features.18"}[architecture]
    features = Features(model, layer, "fp32")
    for height, width in ((LARGE, LARGE), (LARGE + 40, LARGE + 1), (LARGE + 3, LARGE + 77)):
        images = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(height))
        activations, _ = expected(model, layer, images)
        torch.testing.assert_close(features(images), activations, rtol=1e-3, atol=1e-4)
    assert len(features._by_size) == 1
