"""Fuzz targets that hold images: protected PNGs of both profiles, and what travels beside them; see `fuzz.py`."""

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray

from storage.errors import DmcpError, ForeignImage
from storage.png import decode_png, encode_png, read_payload
from storage.shards import Sample
from tasks.datasets.images import decode_image
from tasks.method import exact, paper
from tasks.method.carriers import LsbCarrier, read_headers
from tasks.method.header import BITS, SIZE, Header, crc8
from tasks.method.known import parse_header, profile_of
from tasks.method.profiles import Recovered
from tasks.method.seal import TAG_BYTES, DataKey
from tasks.restore import FindPayload, nothing_published, restore_images, restore_samples
from tests.faults import mutations
from tests.faults.mutations import raw
from tests.vectors.make import DATASET, FOLDER, SECRET

Image = NDArray[np.uint8]
KEY = DataKey(SECRET, DATASET)


@dataclass(frozen=True)
class Vector:
    """A protected image of the format's vectors, what must come out of it, and what is sealed in it."""

    png: bytes
    header: Header
    pixels: Image
    clean: Image
    label: int | None
    payload: bytes | None
    plain: bytes


def vectors(version: str) -> list[Vector]:
    """All of a format version, `v1` (profile `paper`) or `v2` (`exact`)."""
    return [_vector(folder, version) for folder in sorted((FOLDER / version).iterdir())]


def _vector(folder: Path, version: str) -> Vector:
    png = (folder / "protected.png").read_bytes()
    facts = json.loads((folder / "vector.json").read_text())
    came = "recovered" if version == "v1" else "clean"
    pixels = decode_png(png, "protected")
    header = parse_header(read_headers(pixels[None])[0])
    clean = decode_png((folder / f"{came}.png").read_bytes(), came)
    secret = bytes.fromhex(facts["sequence" if version == "v1" else "signs"])
    payload = read_payload(png)
    if payload is not None:
        secret = KEY.open(payload, exact._associated(header.pack(), KEY, pixels[None]))
    return Vector(png, header, pixels, clean, facts.get("label"), payload, secret)


def find_key(key_id: str) -> DataKey:
    """The one key there is."""
    if key_id != KEY.key_id.hex():
        raise ForeignImage(f"Key {key_id} is another's.", "")
    return KEY


# --- a whole file ----------------------------------------------------------------------------------------------------


def restore(known: dict[bytes, Vector], data: bytes, find_payload: FindPayload = nothing_published) -> str:
    """Restore one file; what comes out is the clean image of the id in its header, with its label, or a refusal."""
    batch = restore_samples([Sample("x", data, None)], find_key, find_payload)
    if batch.refusals:
        raise KINDS[batch.refusals[0].error]("", "")
    (sample,), (origin,) = batch.samples, batch.origins
    wanted = known[read_id(data)]
    assert sample.png == encode_png(wanted.clean), "a wrong image"
    assert origin.label == sample.label == wanted.label, "a wrong label"
    return "the clean image"


def read_id(data: bytes) -> bytes:
    """The image id of a file's header."""
    return parse_header(read_headers(decode_png(data, "x")[None])[0]).image_id


def protected(draw: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Pixels that are changed and saved again, or the file itself changed."""
    if draw.random() < 0.4:
        return mutations.png(draw, data, others)
    pixels, payload = decode_png(data, "x"), read_payload(data)
    flat = pixels.reshape(-1)
    for _ in range(draw.choice((1, 1, 2, 3))):
        _change_pixels(draw, flat, others)
    if payload is not None and draw.random() < 0.4:
        payload = draw.choice((None, raw(draw, payload, [payload])))
    if draw.random() < 0.05:
        pixels = pixels.transpose(1, 0, 2) if draw.random() < 0.5 else np.ascontiguousarray(pixels[::-1])
    return encode_png(np.ascontiguousarray(pixels), payload)


def _change_pixels(draw: Random, flat: Image, others: Sequence[bytes]) -> None:
    what, at = draw.randrange(7), draw.randrange(flat.size)
    if what == 0:
        for place in draw.choices(range(flat.size), k=draw.choice((1, 1, 3, 40))):
            flat[place] ^= 1 << draw.randrange(8)
    elif what <= 3:  # the header, with a right checksum
        head = bytearray(np.packbits(flat[:BITS] & 1).tobytes())
        place = draw.choice((2, 3, 4, 5, 6, 7, 8, 9, 9, 10, 18, draw.randrange(SIZE)))
        head[place] = draw.choice((draw.randrange(256), head[place] ^ (1 << draw.randrange(8)), 0, 255))
        if what < 3:
            head[-1] = crc8(bytes(head[:-1]))
        put_header(flat, bytes(head))
    elif what == 4:
        flat[at : at + 400] = draw.choice((0, 255, draw.randrange(256)))
    elif what == 5:
        size = min(flat.size - at, draw.randrange(1, 400))
        flat[at : at + size] = flat[:size].copy()
    else:
        other = decode_png(draw.choice(others), "x").reshape(-1)
        part = other[: draw.choice((BITS, at))]
        flat[: min(flat.size, len(part))] = part[: flat.size]


def put_header(flat: Image, head: bytes) -> None:
    """Write a header's bits where they lie."""
    flat[:BITS] = flat[:BITS] & 0xFE | np.unpackbits(np.frombuffer(head, np.uint8))


# --- parts -----------------------------------------------------------------------------------------------------------


def header(draw: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """A header of any bytes, mostly with a right checksum."""
    new = raw(draw, data, others)[:SIZE].ljust(SIZE, b"\0")
    return new[:-1] + bytes([crc8(new[:-1])]) if draw.random() < 0.9 else new


def read_header(data: bytes) -> str:
    """What a header says, packed again, is the header."""
    found = parse_header(data)
    assert found.pack() == data
    profile_of(found).describe(found)
    return "a header"


def published(vector: Vector, data: bytes) -> str:
    """A payload that others published: the image saved anew, without its own, comes back clean or not at all."""
    return _outcome(restore_images(vector.pixels[None], find_key, [None], lambda key, image: [data])[0], vector)


def sealed_exact(vector: Vector, data: bytes) -> str:
    """What somebody who has the key sealed: the digest in it decides, so only the clean image comes out."""
    head = Header(
        vector.header.profile, vector.header.settings, len(data) + TAG_BYTES, KEY.key_id, vector.header.image_id
    )
    look = vector.pixels.copy()
    put_header(look.reshape(-1), head.pack())
    payload = KEY.seal(data, exact._associated(head.pack(), KEY, look[None]))
    return _outcome(exact.ExactProfile().recover(look[None], [head], [payload], KEY)[0], vector, sealed=True)


def sealed_paper(vector: Vector, data: bytes) -> str:
    """The same; no digest is sealed in this profile, so anything may come out, but nothing breaks."""
    head = Header(
        vector.header.profile, vector.header.settings, len(data) + TAG_BYTES, KEY.key_id, vector.header.image_id
    )
    carrier = LsbCarrier(paper.Geometry.of(head).planes)
    images = vector.pixels[None].copy()
    if head.payload_bytes <= carrier.capacity(*images.shape[1:3]):
        (digest,) = paper._digests(carrier, images, [head])
        payload = KEY.seal(data, paper._associated(head.pack(), KEY, images, digest))
        carrier.embed(images, [head.pack()], [payload])
    return _outcome(paper.PaperProfile().recover(images, [head], [None], KEY)[0], None, vector.clean.shape)


def _outcome(
    result: Recovered | DmcpError, wanted: Vector | None, shape: tuple[int, ...] = (), sealed: bool = False
) -> str:
    """`sealed`: by the owner of the key, who may say what label there is."""
    if isinstance(result, DmcpError):
        raise result
    if wanted is None:
        assert (result.image.shape, result.image.dtype) == (shape, np.uint8)
        return "an image"
    assert np.array_equal(result.image, wanted.clean), "a wrong image"
    assert result.label == wanted.label or sealed, "a wrong label"
    return "the clean image"


# --- decoders --------------------------------------------------------------------------------------------------------


def decode(data: bytes) -> str:
    """What is decoded is what the PNG standard says, by a decoder of our own; what is not there is black."""
    pixels = decode_png(data, "x")
    read_payload(data)
    if data[28]:
        return "interlaced, not compared"
    wanted = slowly(data)
    assert np.array_equal(pixels[: len(wanted)], wanted), "other pixels than the standard's"
    return "the pixels of the standard" if len(wanted) == len(pixels) else "less than its size, black below"


def slowly(data: bytes) -> Image:
    """The whole rows that are there of an RGB PNG, by the standard's own words (sections 9 and 10)."""
    parts = mutations._png_chunks(data)
    ends = [i for i, (kind, _) in enumerate(parts) if kind == b"IEND"]
    width, height = (int.from_bytes(parts[0][1][i : i + 4], "big") for i in (0, 4))
    packed = b"".join(content for kind, content in parts[: ends[0]] if kind == b"IDAT")
    stream = _inflated(packed, height * (3 * width + 1))
    height = len(stream) // (3 * width + 1)
    rows = np.frombuffer(stream[: height * (3 * width + 1)], np.uint8).reshape(height, 3 * width + 1)
    result = np.zeros((height + 1, 3 * width + 3), np.int64)  # a row of zeros above, a pixel of zeros on the left
    for y in range(height):
        kind, line = int(rows[y, 0]), rows[y, 1:].tolist()
        above, mine = result[y].tolist(), [0] * (3 * width + 3)
        for x, value in enumerate(line):
            a, b, c = mine[x], above[x + 3], above[x]
            guess = (0, a, b, (a + b) // 2, _paeth(a, b, c))[kind]
            mine[x + 3] = (value + guess) & 255
        result[y + 1] = mine
    return result[1:, 3:].reshape(height, width, 3).astype(np.uint8)


def _inflated(packed: bytes, size: int) -> bytes:
    """So many bytes, or those that come before an error: Pillow stops at the last pixel, before the checksum."""
    try:
        return zlib.decompressobj().decompress(packed, size)
    except zlib.error:
        stream, machine = b"", zlib.decompressobj()
        for i in range(len(packed)):
            try:
                stream += machine.decompress(packed[i : i + 1], size - len(stream))
            except zlib.error:
                break
            if len(stream) == size:
                break
        return stream


def _paeth(a: int, b: int, c: int) -> int:
    p = a + b - c
    return min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]


def photograph(data: bytes) -> str:
    """What is decoded of a source's file is an image."""
    pixels = decode_image(data, "x")
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3 and min(pixels.shape[:2]) >= 16
    return "an image"


def _kinds(root: type[DmcpError]) -> dict[str, type[DmcpError]]:
    found = {root.__name__: root}
    for kind in root.__subclasses__():
        found |= _kinds(kind)
    return found


KINDS = _kinds(DmcpError)


def by_id(found: Sequence[Vector]) -> dict[bytes, Vector]:
    """Vectors by image id."""
    return {vector.header.image_id: vector for vector in found}


def restorer(found: Sequence[Vector]) -> Callable[[bytes], str]:
    """`restore` of what these vectors became."""
    return partial(restore, by_id(found))
