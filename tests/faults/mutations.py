"""What a fuzzer does to a valid input: drawn from a seed, so that the same draw gives the same input again.

`raw` knows nothing of formats. The others take a format apart, change a part and make the checksums right again, or
nothing would get past them: `png`, `tar`, `json_text`.
"""

import copy
import json
import struct
import zlib
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

NUMBERS = [0, 1, 2, 15, 16, 127, 128, 255, 256, 65535, 65536, 2**24 - 1, 2**31 - 1, 2**31, 2**32 - 1]
TEXTS = [
    b"0",
    b"-1",
    b"99999999999999999999",
    b"1e400",
    b"NaN",
    b"null",
    b"..",
    b"/",
    b"\\u0000",
    b'"',
    b"{}",
    b"[" * 400,
]
VALUES: list[Any] = [None, True, 0, -1, 2**31, 2**63, 10**30, 1.5, 1e308, float("nan"), "", "..", "/etc/x", "\0", "é\n"]
VALUES += ["a" * 5000, [], {}, [[]], {"a": {}}, "train-000000.tar", "0" * 64, "\ud800"]
SPAN = 64
"""Bytes that are cut, doubled or moved at once are mostly so many at most."""


def raw(draw: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """One to four changes of bytes; now and then nothing but noise."""
    if draw.random() < 0.01:
        return draw.randbytes(draw.randrange(2 * len(data) + 2))
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        data = draw.choice(_RAW)(draw, data, others)
    return data


def _flip(draw: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8)) if data else 0):
        changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _overwrite(draw: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    at = draw.randrange(len(data) + 1)
    new = draw.choice((draw.randbytes(draw.randrange(1, 9)), bytes(draw.randrange(1, SPAN)), draw.choice(TEXTS)))
    return data[:at] + new + data[at + len(new) :]


def _number(draw: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """A length that is blown up, in any of the ways in which one is written."""
    number, at = draw.choice(NUMBERS), draw.randrange(len(data) + 1)
    octal = b"%011o" % (number * draw.choice((1, 2**8, 3)) % 8**11)
    form = draw.choice((struct.pack(">I", number), struct.pack("<I", number), struct.pack("<H", number % 65536), octal))
    return data[:at] + form + data[at + len(form) :]


def _cut(draw: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    return data[: draw.randrange(len(data) + 1)]


def _remove(draw: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    start, end = _span(draw, data)
    return data[:start] + data[end:]


def _double(draw: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    start, end = _span(draw, data)
    return data[:end] + data[start:end] * draw.choice((1, 1, 2, 20)) + data[end:]


def _insert(draw: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    at = draw.randrange(len(data) + 1)
    return data[:at] + draw.choice((draw.randbytes(draw.randrange(1, SPAN)), draw.choice(TEXTS))) + data[at:]


def _splice(draw: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    other = draw.choice(others)
    return data[: draw.randrange(len(data) + 1)] + other[draw.randrange(len(other) + 1) :]


_RAW: list[Callable[[Random, bytes, Sequence[bytes]], bytes]] = [
    *(_flip, _flip, _overwrite, _number, _number, _cut, _remove, _double, _insert, _splice)
]


def _span(draw: Random, data: bytes) -> tuple[int, int]:
    start = draw.randrange(len(data) + 1)
    most = SPAN if draw.random() < 0.8 else len(data)
    return start, min(len(data), start + draw.randrange(most + 1))


# --- formats ---------------------------------------------------------------------------------------------------------

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_KINDS = [b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"dmCP", b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"acTL"]
_KINDS += [b"fcTL", b"fdAT", b"gAMA", b"cHRM", b"pHYs", b"sRGB", b"\0\0\0\0"]


def png(draw: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Chunks that are changed, doubled, lost, moved or invented, with right checksums; seldom bytes of the file."""
    if draw.random() < 0.2:
        return raw(draw, data, others)
    parts = _png_chunks(data)
    for _ in range(draw.choice((1, 1, 2, 3))):
        at = draw.randrange(len(parts))
        kind, content = parts[at]
        what = draw.randrange(8)
        if what <= 2:
            parts[at] = kind, raw(draw, content, [c for _, c in parts])
        elif what == 3:
            parts.insert(draw.randrange(len(parts) + 1), (kind, raw(draw, content, [c for _, c in parts])))
        elif what == 4 and len(parts) > 1:
            del parts[at]
        elif what == 5:
            parts.insert(draw.randrange(len(parts)), parts.pop(at))
        elif what == 6:
            other = draw.choice(_png_chunks(draw.choice(others)))
            parts.insert(draw.randrange(len(parts) + 1), other)
        else:
            new = draw.choice((content, draw.randbytes(draw.randrange(SPAN)), zlib.compress(bytes(1 << 16))))
            parts.insert(draw.randrange(len(parts) + 1), (draw.choice(_KINDS), new))
    return _SIGNATURE + b"".join(_chunk(kind, content) for kind, content in parts)


def _png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    parts, at = [], 8
    while at + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, at)
        parts.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    return parts


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def tar(draw: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Blocks of a tar that are changed, doubled or lost; then mostly the checksums of all headers are right again."""
    if draw.random() < 0.2:
        return raw(draw, data, others)
    blocks = [bytearray(data[i : i + 512]) for i in range(0, len(data), 512)]
    heads = [i for i, block in enumerate(blocks) if block[257:262] == b"ustar"]
    for _ in range(draw.choice((1, 1, 2))):
        at = draw.choice(heads) if heads and draw.random() < 0.7 else draw.randrange(len(blocks))
        what = draw.randrange(6)
        block = bytes(blocks[at])
        if what <= 1:
            field, size = draw.choice(
                ((0, 100), (100, 8), (124, 12), (124, 12), (156, 1), (157, 100), (257, 8), (345, 155))
            )
            new = draw.choice((raw(draw, block[field : field + size], [block]), draw.randbytes(size), b"%o" % 2**33))
            blocks[at][field : field + size] = new[:size].ljust(size, b"\0")
        elif what == 2:
            blocks.insert(draw.randrange(len(blocks) + 1), bytearray(block))
        elif what == 3 and len(blocks) > 1:
            del blocks[at]
        elif what == 4:
            blocks[at][156] = draw.choice(b"\x000123456789ABgxLKSDMNV")
        else:
            blocks[at] = bytearray(raw(draw, block, others)[:512].ljust(512, b"\0"))
        heads = [i for i, block in enumerate(blocks) if block[257:262] == b"ustar"]
    if draw.random() < 0.9:
        for i in heads:
            blocks[i][148:156] = b" " * 8
            blocks[i][148:156] = b"%06o\0 " % sum(blocks[i])
    return b"".join(blocks)


def json_text(draw: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """A value, a name or an entry of a JSON text that is another; half of the time bytes of the text."""
    if draw.random() < 0.5:
        return raw(draw, data, others)
    whole = json.loads(data)
    for _ in range(draw.choice((1, 1, 2))):
        whole = _changed(draw, whole, json.loads(draw.choice(others)))
    layout = draw.choice(({"indent": 1}, {"indent": 2, "sort_keys": True}, {"separators": (",", ":")}))
    return json.dumps(whole, **layout).encode() + b"\n"


def _changed(draw: Random, value: Any, other: Any) -> Any:
    """The same value with one place in it changed."""
    if isinstance(value, dict | list) and value and draw.random() < 0.85:
        at = draw.choice(list(value)) if isinstance(value, dict) else draw.randrange(len(value))
        what = draw.random()
        if what < 0.1:
            del value[at]
        elif what < 0.2 and isinstance(value, list):
            value.insert(draw.randrange(len(value) + 1), value[at])
        elif what < 0.2:
            value[draw.choice(("format", "x", "", "key", at.upper()))] = value.pop(at)
        else:
            value[at] = _changed(draw, value[at], other)
        return value
    if isinstance(value, str) and draw.random() < 0.5:
        return raw(draw, value.encode("utf-8", "surrogatepass"), [b"a"]).decode("utf-8", "replace")
    if isinstance(value, int) and draw.random() < 0.5:
        return draw.choice(NUMBERS) * draw.choice((1, -1))
    return copy.deepcopy(draw.choice([*VALUES, other]))
