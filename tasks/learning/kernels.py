"""Two operations that torch computes slowly on CPUs for small images, put together from ones that it computes fast.

* Convolution as one matrix product. oneDNN's convolutions work along rows of an image; where few pixels are left (late
  layers of a network fed with 32x32), they are 5 to 30 times slower than gathering the patches and multiplying, most
  of all the gradient of the weights. With up to `FEW_PIXELS` output pixels the matrix product is faster in every
  case that was measured; above that, the gathered patches no longer fit into the cache.
* ReLU of bfloat16. Torch widens and narrows each value; but a bfloat16 is negative exactly when the same bits are a
  negative integer, and integers are compared 10 times faster. (A NaN with its sign bit set becomes 0.)

Both agree with torch's own up to the rounding of the sums' order.
"""

from typing import Any

import torch
import torch.nn.functional as F

FEW_PIXELS = 16


def _patches(images: torch.Tensor, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]) -> Any:
    """[n, h, w, c] to [n * oh * ow, kh * kw * c]: what the kernel sees at each output pixel."""
    n, channels = images.shape[0], images.shape[3]
    if kernel == stride == (1, 1) and padding == (0, 0):
        return images.reshape(-1, channels)
    if padding != (0, 0):
        images = F.pad(images, (0, 0, padding[1], padding[1], padding[0], padding[0]))
    oh = (images.shape[1] - kernel[0]) // stride[0] + 1
    ow = (images.shape[2] - kernel[1]) // stride[1] + 1
    sn, sh, sw, sc = images.stride()
    view = images.as_strided((n, oh, ow, *kernel, channels), (sn, sh * stride[0], sw * stride[1], sh, sw, sc))
    return view.reshape(n * oh * ow, -1)


class _MatmulConvolution(torch.autograd.Function):
    """Convolution of [n, c, h, w] with [o, c, kh, kw], memory in the order of channels_last."""

    @staticmethod
    def forward(
        ctx: Any,
        images: torch.Tensor,
        weight: torch.Tensor,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dtype: torch.dtype,
    ) -> torch.Tensor:
        pixels = images.to(dtype, memory_format=torch.channels_last).permute(0, 2, 3, 1)
        n, height, width, _ = pixels.shape
        kernel = (weight.shape[2], weight.shape[3])
        matrix = weight.permute(0, 2, 3, 1).to(dtype).reshape(weight.shape[0], -1)
        patches = _patches(pixels, kernel, stride, padding)
        oh = (height + 2 * padding[0] - kernel[0]) // stride[0] + 1
        ow = (width + 2 * padding[1] - kernel[1]) // stride[1] + 1
        ctx.save_for_backward(patches if ctx.needs_input_grad[1] else None, matrix)
        ctx.sizes = images.shape, weight.shape, (oh, ow), stride, padding
        ctx.dtypes = images.dtype, weight.dtype
        return (patches @ matrix.t()).view(n, oh, ow, -1).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        patches, matrix = ctx.saved_tensors
        _, (o, c, kh, kw), _, _, _ = ctx.sizes
        gradient = gradients[0].to(matrix.dtype, memory_format=torch.channels_last).permute(0, 2, 3, 1)
        rows = gradient.reshape(-1, o)
        of_images = of_weight = None
        if ctx.needs_input_grad[0]:
            of_images = _gradient_of_images(ctx, gradient, rows, matrix).permute(0, 3, 1, 2).to(ctx.dtypes[0])
        if ctx.needs_input_grad[1]:
            of_weight = (rows.t() @ patches).view(o, kh, kw, c).permute(0, 3, 1, 2).to(ctx.dtypes[1])
        return of_images, of_weight, None, None, None


def _gradient_of_images(ctx: Any, gradient: torch.Tensor, rows: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """[n, oh, ow, o] (also as `rows`) to [n, h, w, c]."""
    (n, c, height, width), (o, _, kh, kw), (oh, ow), stride, padding = ctx.sizes
    if stride == (1, 1):  # a convolution with the kernel turned round, which sums in the product
        taps = matrix.view(o, kh * kw, c)
        turned = torch.cat([taps[:, i] for i in reversed(range(kh * kw))])
        around = _patches(gradient, (kh, kw), (1, 1), (kh - 1 - padding[0], kw - 1 - padding[1]))
        return (around @ turned).view(n, height, width, c)
    parts = (rows @ matrix).view(n, oh, ow, kh, kw, c)
    padded = parts.new_zeros((n, height + 2 * padding[0], width + 2 * padding[1], c), dtype=torch.float32)
    for i in range(kh):
        for j in range(kw):
            padded[:, i : i + oh * stride[0] : stride[0], j : j + ow * stride[1] : stride[1]] += parts[:, :, :, i, j]
    return padded[:, padding[0] : padding[0] + height, padding[1] : padding[1] + width]


def matmul_convolution(
    images: torch.Tensor, weight: torch.Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> torch.Tensor:
    """`conv2d(images, weight, None, stride, padding)` as a matrix product, in autocast's type where that is on.

    Args:
        images: [n, c, h, w] on the CPU.
        weight: [o, c, kh, kw]; padding must be less than the kernel.
    """
    autocast = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if autocast else images.dtype
    return _MatmulConvolution.apply(images, weight, stride, padding, dtype)


class _RectifyInPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        values.view(torch.int16).clamp_(min=0)
        ctx.mark_dirty(values)
        ctx.save_for_backward(values)
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        (values,) = ctx.saved_tensors
        gradient = gradients[0]
        if gradient.dtype != torch.bfloat16:
            return torch.ops.aten.threshold_backward(gradient, values, 0)
        passed = torch.ops.aten.threshold_backward(gradient.view(torch.int16), values.view(torch.int16), 0)
        return passed.view(torch.bfloat16)


def rectify_(values: torch.Tensor) -> torch.Tensor:
    """ReLU in place, the fast way for bfloat16 on the CPU."""
    if values.dtype == torch.bfloat16 and values.device.type == "cpu":
        return _RectifyInPlace.apply(values)
    return torch.relu_(values)
