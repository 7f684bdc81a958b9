"""PNG, 8-bit RGB: the only image format inside a variant.

Encoding is deterministic: one fixed setting of Pillow, no metadata. The setting, zlib strategy RLE (3), was chosen by
measurement with Pillow 13.0 (zlib-ng 2.3), one core, microseconds and bytes an image:

    | setting                   | CIFAR-10 32x32 | TinyImageNet 64x64 | photographs 512x512, 600x400 |
    |---------------------------|----------------|--------------------|------------------------------|
    | Pillow's default, level 6 | 134 / 2,267    | 487 / 9,659        | 65,100 / 436,900             |
    | level 1                   | 131 / 2,303    | 376 / 9,231        | 22,100 / 474,900             |
    | level 9                   | 147 / 2,266    |                    |                              |
    | Huffman only              | 102 / 2,290    | 286 / 9,911        | 17,600 / 447,000             |
    | **RLE**                   | 107 / 2,270    | 308 / 9,780        | 18,500 / 436,400             |

Photographs after PNG's row filters hold next to no repeats, so the search for them is time lost. RLE also keeps no hash
table, where zlib builds for different processors differ. Pillow lets go of the interpreter lock while zlib works.

A protected image may hold a sealed payload in a chunk of its own, `dmCP`: ancillary, private, unsafe to copy, so that
other programs ignore it and leave it out of what they change.
"""

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from storage.errors import UnsupportedImage

MIN_SIDE = 16
MAX_PIXELS = 1 << 26
"""Largest image that is decoded: 64 megapixels, 192 MiB of pixels."""

PAYLOAD_CHUNK = b"dmCP"

DAMAGED = (OSError, SyntaxError, ValueError, LookupError, TypeError, EOFError, struct.error, zlib.error)
"""What Pillow raises for files that are damaged: its readers of chunks believe that what they look for is there."""

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_ZLIB_RLE = 3
_DEFLATE_LIMIT = 1032  # no deflate stream expands more than this
_COLOUR_TYPES = {0: "greyscale", 2: "RGB", 3: "a palette image", 4: "greyscale with alpha", 6: "RGBA"}
_MAGIC = {
    b"\xff\xd8\xff": "a JPEG",
    b"GIF8": "a GIF",
    b"BM": "a BMP",
    b"II*\x00": "a TIFF",
    b"MM\x00*": "a TIFF",
    b"RIFF": "a WebP (or another RIFF file)",
}


def encode_png(image: NDArray[np.uint8], payload: bytes | None = None) -> bytes:
    """Encode one image; the same pixels and payload give the same bytes.

    Args:
        image: uint8 [H, W, 3], RGB.
        payload: content of a `dmCP` chunk; None: there is none.

    Raises:
        UnsupportedImage: another shape or dtype, or a side below 16 pixels.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UnsupportedImage(
            f"An array of shape {image.shape} and type {image.dtype} is no 8-bit RGB image.",
            "Convert it to uint8 [height, width, 3].",
        )
    _check_size(image.shape[1], image.shape[0], "An image")
    chunks = None
    if payload is not None:
        chunks = PngImagePlugin.PngInfo()
        chunks.add(PAYLOAD_CHUNK, payload)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_type=_ZLIB_RLE, pnginfo=chunks)
    return buffer.getvalue()


def decode_png(data: bytes, name: str) -> NDArray[np.uint8]:
    """Decode one PNG to uint8 [H, W, 3], a fresh writable array.

    Size, bit depth, colour type, the order of the chunks and every chunk's checksum are looked at before a pixel is
    decoded, so neither a decompression bomb (Pillow believes the last of several headers) nor a damaged file gets to
    the decoder. Where all checksums are right and the compressed pixels are fewer than the header says, the rest is
    black, as Pillow leaves it: to find that out takes as long as decoding, and a seal notices it. The compressed
    stream has one more checksum, at its end, which Pillow does not read.

    Args:
        data: the file's bytes.
        name: what to call it in a message.

    Raises:
        UnsupportedImage: not an 8-bit RGB PNG with sides of at least 16 pixels, or damaged; the message says which.
    """
    _check_header(data, name)
    _check_chunks(data, name)
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            pixels = np.array(image)
    except DAMAGED as error:
        raise _damaged(name, str(error)) from error
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise _damaged(name, f"it decodes to shape {pixels.shape}")
    return pixels


def _check_header(data: bytes, name: str) -> None:
    if not data.startswith(_SIGNATURE):
        raise UnsupportedImage(f"{name} is {_guess(data)}, not a PNG.", "Only PNG, 8-bit RGB, is taken here.")
    if len(data) < 33 or data[8:16] != b"\x00\x00\x00\rIHDR":
        raise _damaged(name, "its header is cut off")
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    kind = _COLOUR_TYPES.get(colour, f"of unknown colour type {colour}")
    if depth == 16:
        raise _unsupported(name, f"a 16-bit PNG ({kind})")
    if colour != 2:
        raise _unsupported(name, f"{kind} ({depth}-bit)")
    if depth != 8:
        raise _damaged(name, f"an RGB image can not have {depth} bits")
    _check_size(width, height, name)
    if height * (3 * width + 1) > _DEFLATE_LIMIT * len(data):
        raise _damaged(name, f"{len(data)} bytes can not hold {width} x {height} pixels")


def _check_size(width: int, height: int, name: str) -> None:
    if min(width, height) < MIN_SIDE:
        raise UnsupportedImage(
            f"{name} is {width} x {height} pixels; both sides need at least {MIN_SIDE}.", "Leave it out or enlarge it."
        )
    if width * height > MAX_PIXELS:
        raise UnsupportedImage(
            f"{name} is {width} x {height} pixels; at most {MAX_PIXELS:,} pixels are taken.", "Scale it down."
        )


def read_payload(data: bytes) -> bytes | None:
    """Content of the first `dmCP` chunk of a PNG that `decode_png` took, or None."""
    for kind, start, end in _chunks(data):
        if kind == b"IEND":
            break  # what follows was not checked
        if kind == PAYLOAD_CHUNK:
            return data[start:end]
    return None


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of the content of each chunk that is there in full."""
    position = 8
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        end = position + 8 + length
        if end + 4 > len(data):
            return
        yield data[position + 4 : position + 8], position + 8, end
        position = end + 4


def _check_chunks(data: bytes, name: str) -> None:
    """Walk the chunks up to IEND; every checksum must be right, one header, and the pixels in one piece."""
    view, before, pixels = memoryview(data), b"", False
    for kind, start, end in _chunks(data):
        if zlib.crc32(view[start - 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise _damaged(name, f"the checksum of its {kind.decode('latin-1')!r} chunk is wrong")
        if kind == b"tRNS":
            raise _unsupported(name, "RGB with a transparent colour")
        if kind == b"acTL":
            raise _unsupported(name, "an animated PNG")
        if kind == b"IEND":
            return
        if kind == b"IHDR" and before:
            raise _damaged(name, "it has two headers")
        if kind == b"IDAT" and pixels and before != b"IDAT":
            raise _damaged(name, "its pixels are not in one piece")
        before, pixels = kind, pixels or kind == b"IDAT"
    raise _damaged(name, "it is cut off")


def _guess(data: bytes) -> str:
    return next((kind for magic, kind in _MAGIC.items() if data.startswith(magic)), "an unknown kind of file")


def _unsupported(name: str, kind: str) -> UnsupportedImage:
    return UnsupportedImage(f"{name} is {kind}, not 8-bit RGB.", "Convert it to 8-bit RGB first.")


def _damaged(name: str, why: str) -> UnsupportedImage:
    return UnsupportedImage(f"{name} is a damaged PNG: {why}.", "Fetch it again from where it came from.")
