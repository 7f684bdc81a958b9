"""Key encryption: what wraps the data keys of a vault.

A backend is a `KeyEncryption`: `wrap` a data key, `unwrap` it again, both bound to a context (text pairs: key id, data
set, epoch, creation time), so that a wrapped key can not be passed off as another's. What a backend needs to come back
(its kind, and for a passphrase the salt and cost) is stored in the vault, in clear, and the vault's stored kind chooses
the backend. Two are local:

    passphrase   AES-SIV (RFC 5297) under 512 bits from scrypt; salt and cost stand in the vault
    key-file     AES-SIV under 512 bits from HKDF over the 32 random bytes of a file of mode 0600

A cloud KMS fits the same interface: `wrap` is its Encrypt call, the context its encryption context.
"""

import os
import secrets
import stat
import unicodedata
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Protocol

from Crypto.Cipher import AES
from Crypto.Hash import SHA256
from Crypto.Protocol.KDF import HKDF, scrypt
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator

from storage.errors import SettingsError, VaultLocked
from storage.files import write_atomic

KEY_BYTES = 32
WRAP_OVERHEAD = 16  # the synthetic IV in front of the ciphertext
SCRYPT_MEMORY_LIMIT = 1 << 30  # bytes; scrypt needs 128 * r * N


def hkdf(secret: bytes, length: int, context: bytes) -> bytes:
    """`length` bytes derived from a random secret, apart for each context (RFC 5869, SHA-256, no salt)."""
    derived = HKDF(secret, length, salt=b"", hashmod=SHA256, context=context)
    assert isinstance(derived, bytes)
    return derived


class KeyEncryption(Protocol):
    """Wraps and unwraps data keys. Implementations never show their key: not in repr, pickles or errors."""

    def wrap(self, secret: bytes, context: Mapping[str, str]) -> bytes:
        """Encrypt and authenticate `secret`, bound to `context`."""
        ...

    def unwrap(self, wrapped: bytes, context: Mapping[str, str]) -> bytes:
        """The secret again. Raises VaultLocked when key, context or bytes are not those of `wrap`."""
        ...


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


class StoredKeyFile(BaseModel):
    """What a vault stores of its key file: nothing but that there is one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["key-file"] = "key-file"


Stored = Annotated[StoredPassphrase | StoredKeyFile, Field(discriminator="kind")]


@dataclass(frozen=True)
class Unlock:
    """What this process can open a vault with, and how it makes a new one.

    A new vault takes the passphrase where one is given, otherwise the key file (made when missing). An existing vault
    takes what it was made with, whatever else is given.
    """

    key_file: Path
    passphrase: SecretStr | None = field(default=None, repr=False)
    cost: ScryptCost = field(default_factory=ScryptCost)

    def describe_new(self) -> Stored:
        """What a new vault stores; makes the key file when that is what it will need.

        Raises:
            SettingsError: the passphrase is empty.
            VaultLocked: the key file exists but can not be used.
        """
        if self.passphrase is None:
            if not self.key_file.exists():
                create_key_file(self.key_file)
            return StoredKeyFile()
        if not self.passphrase.get_secret_value():
            raise SettingsError(
                "The vault passphrase is empty.", "Set DMCP_VAULT_PASSPHRASE, or unset it for a key file."
            )
        return StoredPassphrase(salt=secrets.token_hex(16), cost=self.cost)

    def open(self, stored: Stored) -> KeyEncryption:
        """The backend that the vault's stored kind names.

        Raises:
            VaultLocked: what it needs is not here.
        """
        if isinstance(stored, StoredKeyFile):
            return AesSiv(hkdf(read_key_file(self.key_file), 64, b"dmcp/v1/key-encryption"))
        if self.passphrase is None:
            raise VaultLocked("The vault is locked by a passphrase and none is given.", "Set DMCP_VAULT_PASSPHRASE.")
        # NFC, so that the same passphrase typed on another system is the same bytes.
        phrase = unicodedata.normalize("NFC", self.passphrase.get_secret_value()).encode()
        cost = stored.cost
        key = scrypt(phrase, bytes.fromhex(stored.salt), 64, cost.n, cost.r, cost.p)
        assert isinstance(key, bytes)
        return AesSiv(key)


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
        """Raises VaultLocked when anything differs from `wrap`; which part can not be told."""
        try:
            return self._cipher(context).decrypt_and_verify(wrapped[WRAP_OVERHEAD:], wrapped[:WRAP_OVERHEAD])
        except ValueError:
            raise VaultLocked("A wrapped key does not open under this key-encryption key.") from None

    def _cipher(self, context: Mapping[str, str]) -> Any:
        cipher = AES.new(self.__key, AES.MODE_SIV)
        for name in sorted(context):
            cipher.update(f"{name}={context[name]}".encode())
        return cipher


def write_durably(path: Path, data: bytes) -> None:
    """Write a private file (mode 0600) that survives the loss of the machine from the moment this returns.

    The caller holds the vault's lock, so what lies aside under this name was left by a process that was killed.
    """
    for abandoned in path.parent.glob(f".{path.name}.*.partial"):
        abandoned.unlink(missing_ok=True)
    write_atomic(path, data, mode=0o600)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)


def create_key_file(path: Path) -> None:
    """Write 32 random bytes, in hexadecimal, to `path`, readable by its owner only from its first moment."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_durably(path, secrets.token_hex(KEY_BYTES).encode() + b"\n")


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
