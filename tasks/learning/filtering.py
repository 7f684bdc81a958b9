"""Image operations that squeeze perturbations out: uint8 [N, H, W, 3] to the same, once, before a training.

Image Shortcut Squeezing (Liu and others, ICML 2023) and APBench (Qin and others, TMLR 2024) take these, with these
parameters but for the blur: theirs, with a standard deviation of 0.1 pixels, gives a neighbour a weight of 1e-22 and so
changes no image. Here it is 0.8, what OpenCV and torchvision choose for a kernel of 3 pixels.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

Images = NDArray[np.uint8]
Filter = Callable[[Images], Images]

JPEG_QUALITY = 10
BLUR_KERNEL, BLUR_SIGMA = 3, 0.8
BITS = 2

LUMA = np.array([19595, 38470, 7471], np.uint32)
"""0.299, 0.587, 0.114 of ITU-R BT.601, in 65536ths, as Pillow has them."""

PART = 1 << 24
"""Samples that are worked on at a time, at most (but one image at least)."""


def grayscale(images: Images) -> Images:
    """Luma by ITU-R BT.601, in all three channels."""
    result = np.empty_like(images)
    for part in _parts(images):
        luma = (images[part].astype(np.uint32) @ LUMA + 0x8000) >> 16
        result[part] = luma[..., None]
    return result


def jpeg(images: Images, quality: int = JPEG_QUALITY) -> Images:
    """Through JPEG and back; colour at half the resolution, as libjpeg does by default.

    Args:
        quality: 1 to 100.
    """
    from torchvision.io import ImageReadMode, decode_jpeg, encode_jpeg

    result = np.empty_like(images)
    for part in _parts(images):
        channels_first = torch.from_numpy(np.ascontiguousarray(images[part].transpose(0, 3, 1, 2)))
        encoded = encode_jpeg(list(channels_first), quality=quality)
        decoded = torch.stack(decode_jpeg(encoded, mode=ImageReadMode.RGB))
        result[part] = decoded.permute(0, 2, 3, 1).numpy()
    return result


def gaussian_blur(images: Images, kernel: int = BLUR_KERNEL, sigma: float = BLUR_SIGMA) -> Images:
    """Smoothed with a Gaussian; edges are reflected.

    Args:
        kernel: pixels, odd.
        sigma: standard deviation in pixels.
    """
    from torchvision.transforms.v2.functional import gaussian_blur_image

    result = np.empty_like(images)
    for part in _parts(images):
        channels_first = torch.from_numpy(images[part]).permute(0, 3, 1, 2)
        blurred = gaussian_blur_image(channels_first, [kernel, kernel], [sigma, sigma])
        result[part] = blurred.permute(0, 2, 3, 1).numpy()
    return result


def bit_depth(images: Images, bits: int = BITS) -> Images:
    """Only the highest bits of each sample are kept, the others are zero ("posterise").

    Args:
        bits: 1 to 8.
    """
    return images & np.uint8(0xFF << (8 - bits) & 0xFF)


def _parts(images: Images) -> Iterator[slice]:
    step = max(1, PART // max(1, images[:1].size))
    return (slice(start, start + step) for start in range(0, len(images), step))
