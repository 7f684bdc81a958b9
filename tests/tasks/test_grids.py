import io

import numpy as np
import pytest
from PIL import Image

from tasks.grids import GridRow, comparison_grid, difference_image, enlarge


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def flat(value: int, height: int = 16, width: int = 16) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def test_difference_is_grey_where_nothing_changed_and_cut_off_at_the_ends() -> None:
    assert (difference_image(flat(7), flat(7)) == 128).all()
    assert (difference_image(flat(10), flat(13), gain=4) == 140).all()
    assert (difference_image(flat(0), flat(255)) == 255).all()
    assert (difference_image(flat(255), flat(0)) == 0).all()


def test_enlarge_repeats_pixels_and_never_smooths() -> None:
    image = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    large = enlarge(image, 100)
    assert large.shape == (64, 96, 3)
    assert (large[::4, ::4] == image).all()
    assert (large[3::4, 3::4] == image).all()
    assert enlarge(image, 10).shape == image.shape


def test_grid_shows_the_four_columns_in_order() -> None:
    grid = pixels(comparison_grid([GridRow(flat(10), flat(20), flat(30))], tile=32, gain=4))
    middle = grid.shape[0] - 6 - 16
    centres = [grid[middle, 6 + column * 38 + 16, 0] for column in range(4)]
    assert centres == [10, 20, 168, 30]


def test_grid_takes_mixed_sizes_missing_images_and_groups() -> None:
    rows = [
        GridRow(flat(10), flat(20), None),
        GridRow(flat(1, 300, 200), flat(2, 300, 200), flat(3, 300, 200)),
        GridRow(flat(1, 20, 16), flat(2, 20, 16), flat(3, 20, 16)),
    ]
    one, two = (pixels(comparison_grid(rows, tile=64, groups=groups)) for groups in (1, 2))
    assert two.shape[1] > 1.9 * one.shape[1]
    assert two.shape[0] < one.shape[0]
    assert comparison_grid(rows, tile=64) == comparison_grid(rows, tile=64)


def test_grid_without_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        comparison_grid([])
