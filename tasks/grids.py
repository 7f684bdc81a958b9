"""Image grids: clean, protected, difference and recovered side by side, one row an image (the paper's figures 3 and 4).

The difference column shows 128 + gain x (protected - clean), cut off at 0 and 255: grey where nothing changed. Small
images are enlarged by a whole factor without smoothing, so that what is seen are the pixels themselves.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

Image = NDArray[np.uint8]

DIFFERENCE_GAIN = 4
COLUMNS = ("clean", "protected", "difference", "recovered")

_GAP = 6
_HEADER = 22
# One card that reads on light and dark pages alike, so that the PNG needs no second version.
_PAPER = (244, 244, 242)
_INK = (40, 40, 44)


@dataclass(frozen=True)
class GridRow:
    """One row: uint8 [H, W, 3] images of the same shape; `recovered` is None where it was not restored (left blank)."""

    clean: Image
    protected: Image
    recovered: Image | None
    caption: str = ""


def difference_image(clean: Image, protected: Image, gain: int = DIFFERENCE_GAIN) -> Image:
    """128 + gain x (protected - clean), cut off at 0 and 255; uint8, the shape of the inputs."""
    change = protected.astype(np.int32) - clean.astype(np.int32)
    return np.clip(128 + gain * change, 0, 255).astype(np.uint8)


def enlarge(image: Image, side: int) -> Image:
    """Repeat pixels by the largest whole factor that keeps the longer side within `side` pixels (never below 1)."""
    factor = max(1, side // max(image.shape[:2]))
    return np.repeat(np.repeat(image, factor, axis=0), factor, axis=1)


def comparison_grid(rows: Sequence[GridRow], *, tile: int = 128, gain: int = DIFFERENCE_GAIN, groups: int = 1) -> bytes:
    """A grid of clean / protected / difference / recovered, as PNG bytes.

    Args:
        rows: at least one; sizes may differ from row to row.
        tile: side in pixels of the square that one image is centred in. Smaller images are enlarged without smoothing,
            larger ones are reduced (area averaging).
        gain: amplification of the difference column, said in its heading.
        groups: how many sets of the four columns stand side by side.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("a grid needs at least one row")
    from PIL import Image as Pillow

    groups = max(1, min(groups, len(rows)))
    lines = -(-len(rows) // groups)
    group_width = 4 * (tile + _GAP)
    size = (groups * group_width + (groups - 1) * 2 * _GAP + _GAP, _HEADER + lines * (tile + _GAP) + _GAP)
    canvas = Pillow.new("RGB", size, _PAPER)
    for group in range(groups):
        left = _GAP + group * (group_width + 2 * _GAP)
        _headings(canvas, left, tile, gain)
        for line, row in enumerate(rows[group * lines : (group + 1) * lines]):
            _paste_row(canvas, row, (left, _HEADER + _GAP + line * (tile + _GAP)), tile, gain)
    out = io.BytesIO()
    canvas.save(out, "PNG", optimize=False, compress_level=6)
    return out.getvalue()


def _headings(canvas: "PillowImage", left: int, tile: int, gain: int) -> None:
    from PIL import ImageDraw, ImageFont

    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=13)
    for column, name in enumerate(COLUMNS):
        text = f"{name} x{gain}" if name == "difference" else name
        centre = left + column * (tile + _GAP) + tile // 2
        draw.text((centre, _HEADER // 2 + 2), text, fill=_INK, font=font, anchor="mm")


def _paste_row(canvas: "PillowImage", row: GridRow, corner: tuple[int, int], tile: int, gain: int) -> None:
    left, top = corner
    difference = difference_image(row.clean, row.protected, gain)
    for column, image in enumerate((row.clean, row.protected, difference, row.recovered)):
        if image is None:
            continue
        picture = _fit(image, tile)
        x = left + column * (tile + _GAP) + (tile - picture.width) // 2
        canvas.paste(picture, (x, top + (tile - picture.height) // 2))


def _fit(image: Image, tile: int) -> "PillowImage":
    from PIL import Image as Pillow

    if max(image.shape[:2]) <= tile:
        return Pillow.fromarray(enlarge(image, tile))
    picture = Pillow.fromarray(image)
    picture.thumbnail((tile, tile), Pillow.Resampling.BOX)
    return picture
