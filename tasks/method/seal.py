"""Sealing: AES-SIV (RFC 5297) under keys derived from the data set's secret (HKDF, RFC 5869), by well-kept libraries.

AES-SIV is OpenSSL's, through `cryptography`: a call takes 6 µs, where pycryptodome's takes 140 to 250, a third of the
time that restoring a small image took. Where `cryptography` is not installed (the method alone, on a machine that only
computes) it is pycryptodome's, as everything else here. Both give the same bytes.

SIV is deterministic, so a rerun gives the same bytes, and safe under one key for many images: equal plaintexts with
equal associated data would show as equal, and the associated data holds an image id, so they never are. GCM with a
fixed nonce would not survive a rerun with other parameters.
"""

import hashlib
import hmac
from collections.abc import Callable
from typing import Protocol

from Crypto.Cipher import AES
from Crypto.Hash import SHA256
from Crypto.Protocol.KDF import HKDF

from storage.errors import AlteredImage, ParameterError

try:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESSIV
except ImportError:
    AESSIV, InvalidTag = None, ValueError  # type: ignore[assignment,misc]

TAG_BYTES = 16
SECRET_BYTES = 32


class Sealer(Protocol):
    """AES-SIV under one key. Sealed: the tag (16 bytes), then the ciphertext."""

    def encrypt(self, data: bytes, associated_data: list[bytes]) -> bytes:
        """Tag and ciphertext."""
        ...

    def decrypt(self, data: bytes, associated_data: list[bytes]) -> bytes:
        """The plaintext. Raises ValueError or InvalidTag when anything is another."""
        ...


class PycryptodomeSiv:
    """AES-SIV by pycryptodome."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def encrypt(self, data: bytes, associated_data: list[bytes]) -> bytes:
        """Tag and ciphertext."""
        ciphertext, tag = self._cipher(associated_data).encrypt_and_digest(data)
        return tag + ciphertext

    def decrypt(self, data: bytes, associated_data: list[bytes]) -> bytes:
        """The plaintext. Raises ValueError when anything is another."""
        return self._cipher(associated_data).decrypt_and_verify(data[TAG_BYTES:], data[:TAG_BYTES])

    def _cipher(self, associated: list[bytes]):  # type: ignore[no-untyped-def]
        cipher = AES.new(self._key, AES.MODE_SIV)
        for part in associated:
            cipher.update(part)
        return cipher


_SIV: Callable[[bytes], Sealer] = PycryptodomeSiv if AESSIV is None else AESSIV
_NOT_VERIFIED = (ValueError, InvalidTag)


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
        self._sealer: Sealer = _SIV(self.derive(b"seal", 64))
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

    def seal(self, plaintext: bytes, associated: list[bytes]) -> bytes:
        """Tag (16 bytes) and ciphertext; `associated`: components that are authenticated with it."""
        return self._sealer.encrypt(plaintext, associated)

    def open(self, sealed: bytes, associated: list[bytes]) -> bytes:
        """The plaintext.

        Raises:
            AlteredImage: the seal does not verify.
        """
        try:
            return self._sealer.decrypt(sealed, associated)
        except _NOT_VERIFIED as error:
            raise AlteredImage(
                "The seal does not verify: the image was altered after it was protected.",
                "Hand in the PNG exactly as published.",
            ) from error


def digest_rows(rows: "bytes | memoryview", size: int) -> list[bytes]:
    """SHA-256 of each `size` bytes of a contiguous buffer."""
    view = memoryview(rows)
    return [hashlib.sha256(view[i : i + size]).digest() for i in range(0, len(view), size)]
