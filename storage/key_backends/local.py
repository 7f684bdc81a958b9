"""Local key-encryption keys: from a passphrase, or from a file of random bytes.

    passphrase   AES-SIV (RFC 5297) under 512 bits from scrypt; salt and cost stand in the vault
    key-file     AES-SIV under 512 bits from HKDF over the 32 random bytes of a file of mode 0600

Permissions: the vault's folder is written to (lock, file and folder are made there); the key file is read, and written
once, when it is made. Neither is ever sent anywhere.
"""

import glob
import os
import secrets
import stat
import time
import unicodedata
from base64 import b64decode
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from Crypto.Cipher import AES
from Crypto.Hash import SHA256
from Crypto.Protocol.KDF import HKDF, scrypt
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator

from storage.errors import VaultLocked, WrongKey
from storage.files import write_atomic

KEY_BYTES = 32
WRAP_OVERHEAD = 16  # the synthetic IV in front of the ciphertext
ABANDONED_SECONDS = 60
SCRYPT_MEMORY_LIMIT = 1 << 30  # bytes; scrypt needs 128 * r * N


def hkdf(secret: bytes, length: int, context: bytes) -> bytes:
    """`length` bytes derived from a random secret, apart for each context (RFC 5869, SHA-256, no salt)."""
    derived = HKDF(secret, length, salt=b"", hashmod=SHA256, context=context)
    assert isinstance(derived, bytes)
    return derived


def _power_of_two(n: int) -> int:
    if n & (n - 1):
        raise ValueError("must be a power of two")
    return n


class ScryptCost(BaseModel):
    """The cost of turning a passphrase into a key: 128 * r * n bytes of memory, by default 128 MiB and under a second.

    The bounds hold on reading too, so that an altered vault can neither ask for all memory nor for next to no work.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    n: Annotated[int, Field(ge=1 << 14, le=1 << 20), AfterValidator(_power_of_two)] = 1 << 17
    r: Annotated[int, Field(ge=1, le=32)] = 8
    p: Annotated[int, Field(ge=1, le=4)] = 1

    @model_validator(mode="after")
    def _bounded(self) -> "ScryptCost":
        if 128 * self.r * self.n > SCRYPT_MEMORY_LIMIT:
            raise ValueError("128 * r * n exceeds 1 GiB")
        return self


class StoredPassphrase(BaseModel):
    """What a vault stores of its passphrase: how to derive the key from it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["passphrase"] = "passphrase"
    salt: Annotated[str, Field(pattern=r"^([0-9a-f]{2}){16,64}$")]
    cost: ScryptCost

    def __str__(self) -> str:
        return "passphrase:"


class StoredKeyFile(BaseModel):
    """What a vault stores of its key file: nothing but that there is one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["key-file"] = "key-file"

    def __str__(self) -> str:
        return "file:"


def passphrase_key(passphrase: SecretStr, stored: StoredPassphrase) -> "AesSiv":
    """The key-encryption key of a passphrase: half a second and 128 MiB, on purpose."""
    # NFC, so that the same passphrase typed on another system is the same bytes.
    phrase = unicodedata.normalize("NFC", passphrase.get_secret_value()).encode()
    cost = stored.cost
    key = scrypt(phrase, bytes.fromhex(stored.salt), 64, cost.n, cost.r, cost.p)
    assert isinstance(key, bytes)
    return AesSiv(key)


def file_key(path: Path) -> "AesSiv":
    """The key-encryption key of a key file. Raises VaultLocked: missing, readable by others, or something else."""
    return AesSiv(hkdf(read_key_file(path), 64, b"dmcp/v1/key-encryption"))


class AesSiv:
    """`KeyEncryption` under a local 64-byte key: AES-256-SIV with the sorted context as associated data."""

    def __init__(self, key: bytes) -> None:
        self.__key = key

    def __repr__(self) -> str:
        return "AesSiv(...)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("key-encryption keys do not leave the process: open the vault again over there")

    def wrap(self, secret: bytes, context: Mapping[str, str]) -> bytes:
        """Synthetic IV (16 bytes), then the ciphertext: deterministic, so nothing depends on a nonce being fresh."""
        sealed, tag = self._cipher(context).encrypt_and_digest(secret)
        return tag + sealed

    def unwrap(self, wrapped: bytes, context: Mapping[str, str]) -> bytes:
        """Raises WrongKey when anything differs from `wrap`; which part can not be told."""
        try:
            return self._cipher(context).decrypt_and_verify(wrapped[WRAP_OVERHEAD:], wrapped[:WRAP_OVERHEAD])
        except ValueError:
            raise WrongKey("A wrapped key does not open under this key-encryption key.") from None

    def _cipher(self, context: Mapping[str, str]) -> Any:
        cipher = AES.new(self.__key, AES.MODE_SIV)
        for name in sorted(context):
            cipher.update(f"{name}={context[name]}".encode())
        return cipher


def write_durably(path: Path, data: bytes) -> None:
    """Write a private file (mode 0600) that survives the loss of the machine from the moment this returns.

    The caller holds the vault's lock, so what lies aside under this name was left by a process that was killed.
    """
    make_folder(path.parent)
    for abandoned in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        abandoned.unlink(missing_ok=True)
    write_atomic(path, data, mode=0o600)
    sync_folder(path.parent)  # the rename itself


def second_name(path: Path, name: Path) -> None:
    """Let a file have another name too, in the same folder or file system. Raises FileExistsError when it is taken."""
    try:
        name.hardlink_to(path)
    except FileExistsError:
        raise
    except OSError:  # some file systems have no links: a copy, then
        _write_new(name, path.read_bytes())
    sync_folder(name.parent)


def make_folder(path: Path) -> None:
    """Make a private folder (mode 0700) and those above it; each is on disk when this returns."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True, mode=0o700)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Put the names in a folder on disk."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def create_key_file(path: Path) -> None:
    """Write 32 random bytes, in hexadecimal, to `path`, readable by its owner only from its first moment.

    A file that is there already is left alone: another process may have locked a vault with it this very moment.
    """
    make_folder(path.parent)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        with suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:  # by a process that was killed
                left.unlink()
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    try:
        _write_new(aside, secrets.token_hex(KEY_BYTES).encode() + b"\n")
        with suppress(FileExistsError):
            second_name(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _write_new(path: Path, data: bytes) -> None:
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def read_key_file(path: Path) -> bytes:
    """The 32 bytes of a key file, written in hexadecimal or base64.

    Raises:
        VaultLocked: missing, readable by others, or something else.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            text = file.read(256).strip()
    except FileNotFoundError:
        raise VaultLocked(
            f"The key file {path} is missing.",
            "Put it back from your backup, or name it in DMCP_VAULT_KEY_FILE; without it the keys can not be read.",
        ) from None
    except OSError as error:
        raise VaultLocked(
            f"The key file {path} can not be read: {error.strerror}.", "Check its owner and mode."
        ) from None
    if mode & 0o177:
        raise VaultLocked(f"The key file {path} has mode {mode:04o}, wider than 0600.", f"Run: chmod 600 {path}")
    key = _decode_key(text)
    if key is None:
        raise VaultLocked(f"{path} is not a key file.", "It holds 32 random bytes, in hexadecimal or base64.")
    return key


def _decode_key(text: bytes) -> bytes | None:
    try:
        key = bytes.fromhex(text.decode("ascii")) if len(text) == 2 * KEY_BYTES else b64decode(text, validate=True)
    except ValueError:
        return None
    return key if len(key) == KEY_BYTES else None
