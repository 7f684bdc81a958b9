import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from storage.errors import UnsupportedImage
from tasks.datasets.images import decode_image

random = np.random.default_rng(0)
smooth = np.clip(np.add.outer(np.arange(24) * 6, np.arange(32) * 3)[:, :, None] + [0, 20, 40], 0, 255).astype(np.uint8)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def oriented(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


# what a viewer does with each value of the EXIF orientation, written down independently of Pillow
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("value", UPRIGHT)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_orientation_is_applied(value: int, kind: str) -> None:
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    plain = decode_image(saved(Image.fromarray(smooth), kind, **options), "x")
    turned = decode_image(saved(Image.fromarray(smooth), kind, exif=oriented(value), **options), "x")
    np.testing.assert_array_equal(turned, UPRIGHT[value](plain))


def test_jpeg_is_what_pillow_decodes() -> None:
    data = saved(Image.fromarray(smooth), "JPEG")
    np.testing.assert_array_equal(decode_image(data, "x"), np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_greyscale_becomes_three_equal_channels(kind: str) -> None:
    data = saved(Image.fromarray(smooth[:, :, 0]), kind)
    image = decode_image(data, "x")
    assert image.shape == (24, 32, 3)
    for channel in range(3):
        np.testing.assert_array_equal(image[:, :, channel], np.asarray(Image.open(io.BytesIO(data))))


def sixteen_bit_rgb() -> bytes:
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + bytes(20 * 6)) * 20
    header = struct.pack(">IIBBBBB", 20, 20, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (saved(Image.new("RGBA", (20, 20)), "PNG"), "RGBA"),
        (saved(Image.new("LA", (20, 20)), "PNG"), "alpha"),
        (saved(Image.new("P", (20, 20)), "PNG"), "palette"),
        (saved(Image.new("1", (20, 20)), "PNG"), "one bit"),
        (saved(Image.new("I;16", (20, 20)), "PNG"), "16"),
        (sixteen_bit_rgb(), "16 bits"),
        (saved(Image.new("RGB", (20, 20)), "PNG", transparency=(1, 2, 3)), "transparent"),
        (saved(Image.new("CMYK", (20, 20)), "JPEG"), "CMYK"),
        (saved(Image.new("RGB", (20, 20)), "GIF"), "neither PNG nor JPEG"),
        (saved(Image.new("RGB", (15, 20)), "JPEG"), "at least 16"),
        (saved(Image.new("L", (9000, 9000)), "PNG"), "more than"),
        (saved(Image.new("L", (14000, 14000)), "PNG"), "more than"),
        (saved(Image.fromarray(smooth), "JPEG")[:-200], "damaged"),
        (b"", "neither PNG nor JPEG"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_refused_by_name_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(UnsupportedImage, match=reason) as caught:
        decode_image(data, "dog/rex.jpg")
    assert caught.value.what.startswith("dog/rex.jpg")


@given(st.binary(max_size=300), st.integers(0, 600), st.booleans())
def test_garbage_is_refused_and_nothing_else_is_raised(garbage: bytes, place: int, jpeg: bool) -> None:
    data = saved(Image.fromarray(smooth), "JPEG" if jpeg else "PNG", exif=oriented(6))
    damaged = data[:place] + garbage + data[place + len(garbage) :]
    try:
        image = decode_image(damaged, "x")
    except UnsupportedImage:
        return
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
