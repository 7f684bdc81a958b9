"""The clear header of a protected image: 27 bytes that say which key it needs (docs/format.md).

    0  magic "DM"          2  version       3  profile       4  geometry: log2 block | planes-1 << 2 | pairing << 4
    5  shift step          6  classes       7  payload bytes, 24 bits big-endian
    10 key id, 8 bytes     18 image id, 8 bytes              26 CRC-8 of bytes 0..25 (poly 0x07, init 0)

The bits lie, most significant first, in the lowest bit plane of the first 216 samples in raster order. The header is
not secret; it is authenticated as associated data of the seal.
"""

import struct
from dataclasses import dataclass

from storage.errors import NotProtected, UnsupportedFormat

MAGIC = b"DM"
SIZE = 27
BITS = 8 * SIZE
VERSION_1 = 1
PROFILE_PAPER = 1
_LAYOUT = struct.Struct(">2sBBBBB3s8s8s")


def _crc8_table() -> bytes:
    table = []
    for value in range(256):
        for _ in range(8):
            value = ((value << 1) ^ 0x07) & 0xFF if value & 0x80 else value << 1  # noqa: PLW2901
        table.append(value)
    return bytes(table)


_CRC8 = _crc8_table()


def crc8(data: bytes) -> int:
    """CRC-8/SMBUS: enough to tell noise from a header, since the seal does the real check."""
    value = 0
    for byte in data:
        value = _CRC8[value ^ byte]
    return value


@dataclass(frozen=True)
class Header:
    """What a protected image says about itself in clear."""

    key_id: bytes
    image_id: bytes
    payload_bytes: int
    block: int
    planes: int
    pairing: int
    step: int
    classes: int
    version: int = VERSION_1
    profile: int = PROFILE_PAPER

    def pack(self) -> bytes:
        """The 27 bytes."""
        geometry = (self.block.bit_length() - 1) | (self.planes - 1) << 2 | self.pairing << 4
        body = _LAYOUT.pack(
            MAGIC,
            self.version,
            self.profile,
            geometry,
            self.step,
            self.classes,
            self.payload_bytes.to_bytes(3, "big"),
            self.key_id,
            self.image_id,
        )
        return body + bytes([crc8(body)])

    @classmethod
    def unpack(cls, data: bytes) -> "Header":
        """Read 27 bytes.

        Raises:
            NotProtected: there is no header here.
            UnsupportedFormat: a header of a version or profile that this release does not know.
        """
        magic, version, profile, geometry, step, classes, size, key_id, image_id = _LAYOUT.unpack(data[: SIZE - 1])
        if magic != MAGIC or crc8(data[: SIZE - 1]) != data[SIZE - 1]:
            raise NotProtected(
                "No protection header: the image was never protected, was re-encoded or resized, or is damaged.",
                "Hand in the PNG exactly as published.",
            )
        if version != VERSION_1 or profile != PROFILE_PAPER:
            raise UnsupportedFormat(
                f"Protected in format version {version}, profile {profile}, which this release does not know.",
                "Update the software.",
            )
        header = cls(
            key_id=key_id,
            image_id=image_id,
            payload_bytes=int.from_bytes(size, "big"),
            block=1 << (geometry & 3),
            planes=(geometry >> 2 & 3) + 1,
            pairing=geometry >> 4,
            step=step,
            classes=classes,
        )
        header._check()
        return header

    def _check(self) -> None:
        sound = (
            self.planes in (1, 2, 3)
            and self.pairing in (0, 1, 2)
            and self.step > 0
            and self.step % (1 << self.planes) == 0
            and self.classes in (1, 2, 4, 8, 16)
        )
        if not sound:
            raise NotProtected("The protection header is damaged.", "Hand in the PNG exactly as published.")
