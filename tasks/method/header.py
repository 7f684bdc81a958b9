"""The clear header of a protected image: 27 bytes that say which key it needs (docs/format.md).

    0  magic "DM"          2  version       3  profile       4  settings, 3 bytes, of the profile's own meaning
    7  payload bytes, 24 bits big-endian
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
PROFILE_PAPER = 1
PROFILE_EXACT = 2
_VERSIONS = {PROFILE_PAPER: 1, PROFILE_EXACT: 2}
"""The format version of each profile."""

MAX_PAYLOAD = (1 << 24) - 1
"""Bytes that a header can tell of."""

_LAYOUT = struct.Struct(">2sBB3s3s8s8s")


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
    """What a protected image says about itself in clear.

    Attributes:
        settings: 3 bytes that the profile packs and checks (`paper.Geometry`, `exact.Embedding`).
    """

    profile: int
    settings: bytes
    payload_bytes: int
    key_id: bytes
    image_id: bytes

    @property
    def version(self) -> int:
        """The format version."""
        return _VERSIONS[self.profile]

    def pack(self) -> bytes:
        """The 27 bytes."""
        size = self.payload_bytes.to_bytes(3, "big")
        body = _LAYOUT.pack(MAGIC, self.version, self.profile, self.settings, size, self.key_id, self.image_id)
        return body + bytes([crc8(body)])

    @classmethod
    def unpack(cls, data: bytes) -> "Header":
        """Read 27 bytes.

        Raises:
            NotProtected: there is no header here.
            UnsupportedFormat: a header of a version or profile that this release does not know.
        """
        magic, version, profile, settings, size, key_id, image_id = _LAYOUT.unpack(data[: SIZE - 1])
        if magic != MAGIC or crc8(data[: SIZE - 1]) != data[SIZE - 1]:
            raise NotProtected(
                "No protection header: the image was never protected, was re-encoded or resized, or is damaged.",
                "Hand in the PNG exactly as published.",
            )
        if _VERSIONS.get(profile) != version:
            raise UnsupportedFormat(
                f"Protected in format version {version}, profile {profile}, which this release does not know.",
                "Update the software.",
            )
        return cls(profile, settings, int.from_bytes(size, "big"), key_id, image_id)


def damaged() -> NotProtected:
    """The error for settings that no profile packs."""
    return NotProtected("The protection header is damaged.", "Hand in the PNG exactly as published.")
