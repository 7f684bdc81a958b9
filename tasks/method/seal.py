"""Sealing: AES-SIV (RFC 5297) under keys derived from the data set's secret (HKDF, RFC 5869), all by pycryptodome.

SIV is deterministic, so a rerun gives the same bytes, and safe under one key for many images: equal plaintexts with
equal associated data would show as equal, and the associated data holds an image id, so they never are. GCM with a
fixed nonce would not survive a rerun with other parameters.
"""

import hashlib
import hmac

from Crypto.Cipher import AES
from Crypto.Hash import SHA256
from Crypto.Protocol.KDF import HKDF

from storage.errors import AlteredImage, ParameterError

TAG_BYTES = 16
SECRET_BYTES = 32


class DataKey:
    """The secret of one data set and key epoch (32 bytes), with what is derived from it.

    Attributes:
        dataset: the data set's name; part of the associated data, so payloads can not be moved between data sets.
        key_id: 8 bytes, public; tells the keys apart and nothing else.
    """

    def __init__(self, secret: bytes, dataset: str) -> None:
        if len(secret) != SECRET_BYTES:
            raise ParameterError(
                f"A data key has {SECRET_BYTES} bytes, not {len(secret)}.", "Create one: dmcp key create."
            )
        self.dataset = dataset
        self._secret = bytes(secret)
        self.key_id = self.derive(b"key-id", 8)
        self._siv_key = self.derive(b"seal", 64)
        self._image_key = self.derive(b"image-id", 32)
        self._noise_key = self.derive(b"image-seed", 32)

    def __repr__(self) -> str:
        return f"DataKey(dataset={self.dataset!r}, key_id={self.key_id.hex()})"

    def derive(self, purpose: bytes, size: int) -> bytes:
        """HKDF-SHA256 of the secret for one purpose; `size` bytes."""
        return HKDF(self._secret, size, b"", SHA256, context=b"dmcp/v1/" + purpose)  # type: ignore[return-value]

    def image_id(self, split: str, sample: str) -> bytes:
        """8 bytes: keyed hash of data set, split and sample key, so it tells a stranger nothing about any of them."""
        message = "\0".join((self.dataset, split, sample)).encode()
        return hmac.digest(self._image_key, message, "sha256")[:8]

    def image_seed(self, image_id: bytes) -> bytes:
        """16 bytes for whatever is drawn at random for one image. Image ids are public; what they seed must not be."""
        return hmac.digest(self._noise_key, image_id, "sha256")[:16]

    def _cipher(self, associated: list[bytes]):  # type: ignore[no-untyped-def]
        cipher = AES.new(self._siv_key, AES.MODE_SIV)
        for part in associated:
            cipher.update(part)
        return cipher

    def seal(self, plaintext: bytes, associated: list[bytes]) -> bytes:
        """Tag (16 bytes) and ciphertext; `associated`: components that are authenticated with it."""
        ciphertext, tag = self._cipher(associated).encrypt_and_digest(plaintext)
        return tag + ciphertext

    def open(self, sealed: bytes, associated: list[bytes]) -> bytes:
        """The plaintext.

        Raises:
            AlteredImage: the seal does not verify.
        """
        try:
            return self._cipher(associated).decrypt_and_verify(sealed[TAG_BYTES:], sealed[:TAG_BYTES])
        except ValueError as error:
            raise AlteredImage(
                "The seal does not verify: the image was altered after it was protected.",
                "Hand in the PNG exactly as published.",
            ) from error


def digest_rows(rows: "bytes | memoryview", size: int) -> list[bytes]:
    """SHA-256 of each `size` bytes of a contiguous buffer."""
    view = memoryview(rows)
    return [hashlib.sha256(view[i : i + size]).digest() for i in range(0, len(view), size)]
