"""Activations of a trained network, for perturbing images: fast to differentiate by the image, never trained again."""

import copy
import threading
from typing import cast

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from storage.errors import ParameterError
from tasks.learning.device import resolve_precision
from tasks.learning.fitting import fit
from tasks.learning.models import Normalized

SIZES_KEPT = 8
"""Networks fitted to so many sizes of images are kept, the last ones: a folder of photographs can have a size each."""

LARGE = 160
"""Pixels a side from which on no tap of a kernel is dead: fitted as if they had so many, larger images share copies."""

LOGITS = "logits"
"""In place of a layer's path: the network's output."""


class Features:
    """Activations at one layer in eval mode, averaged over positions.

    The layers behind it are cut off, batch normalisation is folded into the convolutions, weights are frozen and kept
    in the number format of the device, and kernels are fitted to the size of the images (a copy for each size).

    Args:
        model: a trained network; it is not changed.
        layer: a module of the network by its path, for ResNets for example "layer3" or "avgpool"; or `LOGITS`.
        precision: "auto", "bf16" or "fp32".

    Raises:
        ParameterError: the network has no such layer, or can not be cut (torch.fx does not trace it).
    """

    def __init__(self, model: Normalized, layer: str, precision: str = "auto") -> None:
        self.layer = layer
        device = model.mean.device
        self._dtype = torch.bfloat16 if resolve_precision(precision, device) == "bf16" else torch.float32
        self._mean, self._std = model.mean.clone(), model.std.clone()
        self._network = _folded(_up_to(copy.deepcopy(model.network).eval(), layer)).requires_grad_(False)
        self._by_size: dict[tuple[int, int], nn.Module] = {}
        self._lock = threading.Lock()

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Float32 images [n, 3, h, w] in 0..1 to float32 activations [n, d]; differentiable by the images.

        Raises:
            ParameterError: the images are too small for the network.
        """
        network = self._fitted(min(images.shape[2], LARGE), min(images.shape[3], LARGE))
        normalised = (images - self._mean) / self._std
        activations = network(normalised.to(self._dtype, memory_format=torch.channels_last)).float()
        return activations.flatten(2).mean(2) if activations.dim() > 2 else activations

    def _fitted(self, height: int, width: int) -> nn.Module:
        with self._lock:
            network = self._by_size.get((height, width))
            if network is None:
                network = copy.deepcopy(self._network)
                fit(network, height, width)
                network = network.to(self._dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
                if len(self._by_size) == SIZES_KEPT:
                    del self._by_size[next(iter(self._by_size))]
                self._by_size[height, width] = network
            return network


def feature_layers(network: nn.Module) -> list[str]:
    """Paths of the layers that `Features` takes: modules one or two levels deep, in order."""
    return [path for path, _ in network.named_modules() if path and path.count(".") < 2]


def _up_to(network: nn.Module, layer: str) -> fx.GraphModule:
    """The network in eval mode, from its input to this layer's output."""
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    try:
        if layer == LOGITS:
            layer = get_graph_node_names(network, suppress_diff_warning=True)[1][-1]
        cut = create_feature_extractor(network, {layer: "out"}, suppress_diff_warning=True).eval()
    except ValueError as error:
        known = ", ".join(path for path in feature_layers(network) if "." not in path)
        raise ParameterError(
            f"The surrogate has no layer {layer!r}.", f"Set layer to one of {known}, to a part of one, or to {LOGITS}."
        ) from error
    except (TypeError, fx.proxy.TraceError) as error:
        raise ParameterError(
            f"A network of this architecture can not be a surrogate: torch.fx does not trace it ({error}).",
            "Choose another for section `surrogate`, as resnet18.",
        ) from error
    return cast(fx.GraphModule, cut)


def _folded(cut: fx.GraphModule) -> nn.Module:
    """Batch normalisation folded into the convolution before it, where nothing else uses that convolution's output."""
    graph, modules = cut.graph, dict(cut.named_modules())
    for node in list(graph.nodes):
        if node.op != "call_module" or not isinstance(modules[node.target], nn.BatchNorm2d):
            continue
        before = node.args[0]
        if before.op == "call_module" and isinstance(modules[before.target], nn.Conv2d) and len(before.users) == 1:
            cut.set_submodule(before.target, fuse_conv_bn_eval(modules[before.target], modules[node.target]))
            node.replace_all_uses_with(before)
            graph.erase_node(node)
    (result,) = (node for node in graph.nodes if node.op == "output")
    result.args = (result.args[0]["out"],)
    cut.delete_all_unused_submodules()
    return fx.GraphModule(cut, graph)
