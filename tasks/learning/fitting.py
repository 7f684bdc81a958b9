"""A network fitted to images of one size, for as long as it is trained on them or asked for gradients.

At 32x32 the late layers of a network for ImageNet see images of 2x2 and 1x1 pixels. There most of a 3x3 kernel only
ever meets the padding: 8 of 9 taps at 1x1. These dead taps change no output and get no gradient; yet they are
multiplied, converted and stepped by the optimiser, and with torchvision's stem they are 60 % of a ResNet-18's weights.
`fitted` cuts them off, and writes what was learnt back into the full kernels afterwards (dead taps keep their values;
weight decay does not reach them). On the CPU it also puts the faster operations of `kernels` in place.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from storage.errors import ParameterError
from tasks.learning.device import DEVICE_ERRORS
from tasks.learning.kernels import FEW_PIXELS, matmul_convolution, rectify_


class Window(NamedTuple):
    """Taps [first, last) of a kernel along one axis that meet the image, and the padding they need."""

    first: int
    last: int
    padding: int


class _Shape(NamedTuple):
    seen: tuple[int, int]
    made: tuple[int, int]


def live_window(size: int, kernel: int, stride: int, padding: int) -> Window:
    """The taps along one axis that ever see a pixel.

    Args:
        size: pixels along the axis, without padding.
    """
    outputs = (size + 2 * padding - kernel) // stride + 1
    live = [tap for tap in range(kernel) if any(0 <= o * stride + tap - padding < size for o in range(outputs))]
    first, last = live[0], live[-1] + 1
    needed = Window(first, last, padding - first)
    if (size + 2 * needed.padding - (last - first)) // stride + 1 != outputs:
        return Window(0, kernel, padding)  # would need other padding at the far end
    return needed


class FittedConvolution(nn.Module):
    """A convolution without its dead taps; shares the bias with the one it stands for."""

    def __init__(self, original: nn.Conv2d, rows: Window, columns: Window, by_matmul: bool) -> None:
        super().__init__()
        self._window = (slice(None), slice(None), slice(rows.first, rows.last), slice(columns.first, columns.last))
        weight = original.weight.detach()[self._window].clone(memory_format=torch.contiguous_format)
        weight = weight.contiguous(memory_format=torch.channels_last)
        self.weight = nn.Parameter(weight, requires_grad=original.weight.requires_grad)
        self.bias = original.bias
        self.stride = (int(original.stride[0]), int(original.stride[1]))
        self.padding = (rows.padding, columns.padding)
        self.groups = original.groups
        self.by_matmul = by_matmul

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """As nn.Conv2d, for images of the one size."""
        if not self.by_matmul:
            return F.conv2d(images, self.weight, self.bias, self.stride, self.padding, 1, self.groups)
        result = matmul_convolution(images, self.weight, self.stride, self.padding)
        return result if self.bias is None else result + self.bias.to(result.dtype).view(1, -1, 1, 1)

    def write_back(self, original: nn.Conv2d) -> None:
        """Put the live taps into the full kernel."""
        with torch.no_grad():
            original.weight[self._window] = self.weight


class FittedReLU(nn.Module):
    """An in-place ReLU by `rectify_`."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """ReLU in place."""
        return rectify_(values)


Undo = list[tuple[nn.Module, str, nn.Module]]


@contextmanager
def fitted(network: nn.Module, height: int, width: int) -> Iterator[nn.Module]:
    """The network, changed in place for images of this size until the block ends.

    Its state dict has smaller kernels inside the block; parameters are other objects, so make the optimiser inside.

    Args:
        network: takes float [N, 3, height, width].

    Raises:
        ParameterError: the images are too small for the network.
    """
    undo = fit(network, height, width)
    try:
        yield network
    finally:
        for parent, name, original in reversed(undo):
            now = getattr(parent, name)
            if isinstance(now, FittedConvolution) and isinstance(original, nn.Conv2d):
                now.write_back(original)
            setattr(parent, name, original.train(now.training))


def fit(network: nn.Module, height: int, width: int) -> Undo:
    """Change the network in place for good; see `fitted`. Returns what was replaced: (parent, name, original)."""
    undo: Undo = []
    on_cpu = next(network.parameters()).device.type == "cpu"
    for path, shape in _shapes(network, height, width).items():
        original = network.get_submodule(path)
        if isinstance(original, nn.Conv2d):
            _replace(network, path, _fitted_convolution(original, shape, on_cpu), undo)
    if on_cpu:
        for path in [p for p, m in network.named_modules() if isinstance(m, nn.ReLU) and m.inplace]:
            _replace(network, path, FittedReLU(), undo)
    return undo


def _replace(network: nn.Module, path: str, module: nn.Module, undo: Undo) -> None:
    parent_path, _, name = path.rpartition(".")
    parent = network.get_submodule(parent_path)
    original = getattr(parent, name)
    undo.append((parent, name, original))
    setattr(parent, name, module.train(original.training))


def _fitted_convolution(original: nn.Conv2d, shape: _Shape, on_cpu: bool) -> FittedConvolution:
    kernel, stride = original.kernel_size, original.stride
    rows, columns = (live_window(shape.seen[i], kernel[i], stride[i], int(original.padding[i])) for i in (0, 1))
    few = shape.made[0] * shape.made[1] <= FEW_PIXELS
    return FittedConvolution(original, rows, columns, by_matmul=on_cpu and few and original.groups == 1)


def _plain(module: nn.Module) -> bool:
    """Whether a fitted convolution can stand for the module."""
    return (
        isinstance(module, nn.Conv2d)
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
        and tuple(module.dilation) == (1, 1)
    )


def _shapes(network: nn.Module, height: int, width: int) -> dict[str, _Shape]:
    """What each convolution sees and makes of one image; those that see several sizes are left out."""
    found: dict[str, set[_Shape]] = {}
    hooks = [
        module.register_forward_hook(
            lambda module, inputs, output, path=path: found.setdefault(path, set()).add(
                _Shape(tuple(inputs[0].shape[2:]), tuple(output.shape[2:]))
            )
        )
        for path, module in network.named_modules()
        if _plain(module)
    ]
    modes = {module: module.training for module in network.modules()}
    device = next(network.parameters()).device
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(1, 3, height, width, device=device))
    except DEVICE_ERRORS:
        raise  # they are RuntimeErrors too, and say nothing of the images
    except RuntimeError as error:
        raise ParameterError(
            f"Images of {width} x {height} pixels are too small for this network ({error}).",
            "Choose another architecture or the stem 'small', or set image_size in params.yaml to scale them.",
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    return {path: shapes.pop() for path, shapes in found.items() if len(shapes) == 1}
