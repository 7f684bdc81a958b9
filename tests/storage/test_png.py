import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from storage.errors import UnsupportedImage
from storage.png import MAX_PIXELS, PAYLOAD_CHUNK, decode_png, encode_png, read_payload

images = arrays.arrays(np.uint8, st.tuples(st.integers(16, 40), st.integers(16, 40), st.just(3)))
noise = np.random.default_rng(0).integers(0, 256, (20, 17, 3), dtype=np.uint8)


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def header(width: int, height: int, depth: int, colour: int) -> bytes:
    ihdr = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", ihdr) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


@given(images)
def test_round_trip_and_determinism(image: np.ndarray) -> None:
    data = encode_png(image)
    assert data == encode_png(image.copy(order="F"))
    decoded = decode_png(data, "x")
    assert decoded.flags.writeable and decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, image)


def test_holds_nothing_but_pixels() -> None:
    data = encode_png(noise)
    with Image.open(io.BytesIO(data)) as image:
        assert image.info == {}


def test_other_writers_are_read() -> None:
    for options in ({"optimize": True}, {"compress_level": 0}, {"exif": Image.Exif(), "icc_profile": b"x" * 200}):
        np.testing.assert_array_equal(decode_png(saved(Image.fromarray(noise), **options), "x"), noise)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (saved(Image.new("RGBA", (20, 20))), "RGBA"),
        (saved(Image.new("L", (20, 20))), "greyscale"),
        (saved(Image.new("LA", (20, 20))), "greyscale with alpha"),
        (saved(Image.new("P", (20, 20))), "palette"),
        (saved(Image.new("I;16", (20, 20))), "16-bit"),
        (header(20, 20, 16, 2), "16-bit"),
        (saved(Image.new("1", (20, 20))), "1-bit"),
        (saved(Image.new("RGB", (20, 20)), transparency=(0, 0, 0)), "transparent"),
        (saved(Image.new("RGB", (20, 20)), "JPEG"), "JPEG"),
        (saved(Image.new("RGB", (20, 20)), "BMP"), "BMP"),
        (saved(Image.new("RGB", (20, 15))), "at least 16"),
        (saved(Image.new("RGB", (15, 20))), "at least 16"),
        (b"", "unknown kind"),
        (b"\x89PNG\r\n\x1a\n", "cut off"),
        (header(20, 20, 4, 2), "4 bits"),
        (header(20, 20, 8, 5), "unknown colour type"),
        (header(1 << 14, (MAX_PIXELS >> 14) + 1, 8, 2), "at most"),
        (header(8000, 8000, 8, 2), "can not hold"),
        (header(20, 20, 8, 2), "damaged"),
    ],
)
def test_refused_by_name_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(UnsupportedImage, match=reason) as caught:
        decode_png(data, "cat.png")
    assert "cat.png" in caught.value.what
    assert caught.value.cure


@given(images, st.binary(max_size=2000))
def test_a_payload_comes_back_and_touches_no_pixel(image: np.ndarray, payload: bytes) -> None:
    data = encode_png(image, payload)
    assert data == encode_png(image.copy(order="F"), payload)
    assert read_payload(data) == payload
    np.testing.assert_array_equal(decode_png(data, "x"), image)
    assert read_payload(encode_png(image)) is None
    assert encode_png(image) == data.replace(chunk(PAYLOAD_CHUNK, payload), b"", 1)


def test_the_payload_chunk_is_ancillary_private_and_unsafe_to_copy() -> None:
    """PNG, section 5.4: bit 5 of each letter says what a program that does not know the chunk may do with it."""
    assert [bool(letter & 32) for letter in PAYLOAD_CHUNK] == [True, True, False, False]
    assert PAYLOAD_CHUNK.isalpha()


def test_a_program_that_saves_the_file_again_loses_the_payload_and_no_pixel() -> None:
    with Image.open(io.BytesIO(encode_png(noise, b"sealed"))) as image:
        again = saved(image)
    assert read_payload(again) is None
    np.testing.assert_array_equal(decode_png(again, "x"), noise)


def test_payload_chunks_of_other_writers_are_found_wherever_they_stand() -> None:
    data = encode_png(noise)
    first, last = data.index(b"IDAT") - 4, data.index(b"IEND") - 4
    for position in (first, last):
        png = data[:position] + chunk(b"teXt", b"x") + chunk(PAYLOAD_CHUNK, b"one") + data[position:]
        assert read_payload(png) == b"one"
        np.testing.assert_array_equal(decode_png(png, "x"), noise)


@given(st.data())
def test_a_damaged_payload_chunk_is_refused(data: st.DataObject) -> None:
    payload = data.draw(st.binary(min_size=1, max_size=40))
    png = bytearray(encode_png(noise, payload))
    start = png.index(PAYLOAD_CHUNK)
    position = data.draw(st.integers(start, start + 4 + len(payload) + 3))
    png[position] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(UnsupportedImage, match="checksum"):
        decode_png(bytes(png), "x")


@given(st.data())
def test_every_truncation_and_every_flipped_bit_is_noticed(data: st.DataObject) -> None:
    png = encode_png(noise, data.draw(st.none() | st.just(b"sealed")))
    with pytest.raises(UnsupportedImage):
        decode_png(png[: data.draw(st.integers(0, len(png) - 1))], "x")
    damaged = bytearray(png)
    damaged[data.draw(st.integers(0, len(png) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(UnsupportedImage):
        decode_png(bytes(damaged), "x")


@pytest.mark.parametrize("shape", [(20, 20), (20, 20, 4), (15, 20, 3), (20, 15, 3)])
def test_only_rgb_is_encoded(shape: tuple[int, ...]) -> None:
    with pytest.raises(UnsupportedImage):
        encode_png(np.zeros(shape, np.uint8))
    with pytest.raises(UnsupportedImage):
        encode_png(np.zeros((20, 20, 3), np.float32))
