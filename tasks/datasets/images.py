"""Image files of a source: PNG or JPEG, as the pixels a person sees.

The camera's orientation (EXIF) is applied and greyscale becomes RGB with three equal channels; nothing else is
converted. What would lose something (alpha, 16 bits, a palette's own order, CMYK) is refused, not guessed. A colour
profile is not applied: the numbers in the file are the pixels.
"""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from storage.errors import UnsupportedImage
from storage.png import DAMAGED, MAX_PIXELS, MIN_SIDE

_MODES = {
    "1": "has one bit a pixel",
    "LA": "is greyscale with alpha",
    "La": "is greyscale with alpha",
    "RGBA": "is RGBA",
    "RGBa": "is RGBA",
    "P": "is a palette image",
    "PA": "is a palette image",
    "I": "has more than 8 bits a sample",
    "I;16": "is 16-bit greyscale",
    "I;16B": "is 16-bit greyscale",
    "F": "has samples that are no integers",
    "CMYK": "is CMYK",
    "YCCK": "is CMYK",
}
_CURE = "Convert it to 8-bit RGB or greyscale, or leave it out."


def decode_image(data: bytes, name: str) -> NDArray[np.uint8]:
    """Decode a PNG or JPEG file to uint8 [H, W, 3].

    Args:
        data: the file's bytes.
        name: what to call it in a message.

    Raises:
        UnsupportedImage: not PNG or JPEG, not 8-bit RGB or greyscale, too small, too large, or damaged; by name.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            _check(image, data, name)
            upright = ImageOps.exif_transpose(image)
            return np.array(upright.convert("RGB") if upright.mode == "L" else upright)
    except Image.UnidentifiedImageError as error:
        raise UnsupportedImage(f"{name} is neither PNG nor JPEG (or its header is damaged).", _CURE) from error
    except Image.DecompressionBombError as error:
        raise UnsupportedImage(f"{name} has more than {MAX_PIXELS:,} pixels.", "Scale it down.") from error
    except DAMAGED as error:
        raise UnsupportedImage(f"{name} is damaged: {error}.", "Fetch it again, or leave it out.") from error


def _check(image: Image.Image, data: bytes, name: str) -> None:
    if image.format == "PNG" and data[24] == 16:  # Pillow would silently drop the lower byte of 16-bit RGB
        raise UnsupportedImage(f"{name} has 16 bits a sample.", _CURE)
    if image.mode not in ("RGB", "L"):
        raise UnsupportedImage(f"{name} {_MODES.get(image.mode, f'has the mode {image.mode}')}.", _CURE)
    if "transparency" in image.info:
        raise UnsupportedImage(f"{name} has a transparent colour.", _CURE)
    if min(image.size) < MIN_SIDE:
        width, height = image.size
        raise UnsupportedImage(
            f"{name} is {width} x {height} pixels; both sides need at least {MIN_SIDE}.", "Enlarge it or leave it out."
        )
    if image.width * image.height > MAX_PIXELS:
        raise UnsupportedImage(f"{name} has more than {MAX_PIXELS:,} pixels.", "Scale it down.")
