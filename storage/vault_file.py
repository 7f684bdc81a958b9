"""The vault's file: what stands in it, its one encoding, and its authentication.

    contents = VaultFile.decode(data, path)      # the right shape; nothing in it is believed yet
    mac = MacKey(backend.unwrap(bytes.fromhex(contents.mac_key), MAC_CONTEXT))
    mac.holds(contents)                          # every byte is as it was written

One JSON object: `key_encryption` (what opens it: `storage.key_encryption`), `mac_key` (wrapped), `keys` (public id,
data set, epoch, creation, wrapped key), `mac` (HMAC-SHA256 of the encoding with an empty `mac`). Format version 1.
"""

import hmac
import secrets
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from storage.errors import KeyVaultError
from storage.key_encryption import KEY_BYTES, KeyEncryption, Stored, hkdf
from storage.names import DATASET_PATTERN, KEY_ID_PATTERN

SIZE_LIMIT = 64 << 20  # bytes: some 200,000 keys
MAC_CONTEXT = {"purpose": "dmcp/v1/vault-mac"}


@dataclass(frozen=True)
class DataKeyRecord:
    """What may be known of a data key: its public id (16 hex digits), data set, epoch (from 1) and creation (UTC)."""

    key_id: str
    dataset: str
    epoch: int
    created: datetime


def key_id_of(secret: bytes) -> str:
    """The public id of a data key: a 64-bit HKDF-SHA256 fingerprint, in 16 hexadecimal digits."""
    return hkdf(secret, 8, b"dmcp/v1/key-id").hex()


def unusable(path: Path, why: str) -> KeyVaultError:
    """The error for a vault file that is not what it should be."""
    return KeyVaultError(f"The vault {path} can not be used: {why}.", "Restore it from your backup: dmcp key restore")


class WrappedKey(BaseModel):
    """One data key as the file holds it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    key_id: Annotated[str, Field(pattern=f"^{KEY_ID_PATTERN}$")]
    dataset: Annotated[str, Field(pattern=f"^{DATASET_PATTERN}$")]
    epoch: Annotated[int, Field(ge=1)]
    created: str
    wrapped: Annotated[str, Field(pattern="^([0-9a-f]{2})+$")]

    @classmethod
    def make(cls, backend: KeyEncryption, secret: bytes, dataset: str, epoch: int, created: str) -> "WrappedKey":
        """Wrap a data key, bound to all that stands beside it."""
        bare = cls(key_id=key_id_of(secret), dataset=dataset, epoch=epoch, created=created, wrapped="00")
        return bare.model_copy(update={"wrapped": backend.wrap(secret, bare.context()).hex()})

    def context(self) -> dict[str, str]:
        """What the wrapping is bound to."""
        return {"key_id": self.key_id, "dataset": self.dataset, "epoch": str(self.epoch), "created": self.created}

    def record(self) -> DataKeyRecord:
        """What may be known of it."""
        return DataKeyRecord(self.key_id, self.dataset, self.epoch, datetime.fromisoformat(self.created))


class VaultFile(BaseModel):
    """The whole file. `mac_key` is the wrapped key of `mac`: it is also what shows that the passphrase is right."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal["dmcp-vault"] = "dmcp-vault"
    version: Literal[1] = 1
    key_encryption: Stored
    mac_key: Annotated[str, Field(pattern="^([0-9a-f]{2})+$")]
    keys: list[WrappedKey]
    mac: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] = ""

    def encode(self) -> bytes:
        """The one encoding of these contents; `decode` accepts no other."""
        return self.model_dump_json(indent=1).encode() + b"\n"

    @classmethod
    def decode(cls, data: bytes, path: Path) -> "VaultFile":
        """The contents of the file at `path`, not yet authenticated. Raises KeyVaultError for anything else."""
        if len(data) > SIZE_LIMIT:
            raise unusable(path, "it is larger than any vault")
        try:
            contents = cls.model_validate_json(data)
        except ValidationError as error:
            # Not the values: what stands at an unexpected place may be anything.
            first = error.errors(include_input=False, include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise unusable(path, f"{where!a}: {first['type']}") from None
        if contents.encode() != data:
            raise unusable(path, "it was altered after it was written")
        return contents


class MacKey:
    """The key that authenticates a vault file. It opens no data key."""

    def __init__(self, key: bytes) -> None:
        self.__key = key

    @classmethod
    def fresh(cls, backend: KeyEncryption) -> tuple["MacKey", str]:
        """A new one, and what the file stores of it."""
        key = secrets.token_bytes(32)
        return cls(key), backend.wrap(key, MAC_CONTEXT).hex()

    def __repr__(self) -> str:
        return "MacKey(...)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("keys do not leave the process: open the vault again over there")

    def sealed(self, contents: VaultFile) -> VaultFile:
        """The same contents with their MAC."""
        bare = contents.model_copy(update={"mac": ""})
        return bare.model_copy(update={"mac": hmac.digest(self.__key, bare.encode(), "sha256").hex()})

    def holds(self, contents: VaultFile) -> bool:
        """Whether the MAC in the file is that of its contents."""
        return hmac.compare_digest(self.sealed(contents).mac, contents.mac)


@dataclass(frozen=True)
class OpenVault:
    """A vault file that was opened and authenticated."""

    path: Path
    contents: VaultFile
    backend: KeyEncryption
    mac: MacKey

    def secret(self, entry: WrappedKey) -> bytes:
        """The data key of an entry of this file. Raises KeyVaultError when it is not what its id says."""
        secret = self.backend.unwrap(bytes.fromhex(entry.wrapped), entry.context())
        if len(secret) != KEY_BYTES or not hmac.compare_digest(key_id_of(secret), entry.key_id):
            raise unusable(self.path, f"the key it holds as {entry.key_id} has another id")
        return secret

    def secrets(self) -> dict[str, bytes]:
        """Every data key by its id. Raises KeyVaultError at the first that does not open."""
        return {entry.key_id: self.secret(entry) for entry in self.contents.keys}

    def with_keys(self, keys: list[WrappedKey]) -> VaultFile:
        """The contents with these keys instead, sealed."""
        return self.mac.sealed(self.contents.model_copy(update={"keys": keys}))
