"""The key vault: one JSON file that holds every data key, each wrapped by a key-encryption key.

    vault = open_vault(settings())             # HOME/vault.json; unlocked by passphrase or key file
    record = vault.create("cifar10")           # a fresh 256-bit key: the data set's next epoch
    secret = vault.secret(record.key_id)       # 32 bytes, for tasks.method.seal; never log, store or pass it on
    vault.current("cifar10").key_id            # the key that protecting uses: the highest epoch

A data set has one key for each epoch. Protecting uses the newest; restoring uses the one an image's header names, so
old keys stay. A key's id is a 64-bit fingerprint of it and public.

What holds:

* A key that `create` returned is on disk: the file is written aside, synced, renamed into place, and the folder synced.
  Two creators take turns under a lock beside the file (advisory, local file systems).
* Every byte of the file is authenticated, by a MAC under a key that is itself wrapped like the data keys. An altered
  file is refused, and so is a right file under a wrong passphrase. Putting back an *older* vault of one's own is not
  noticed: that is what a backup does.
* Secrets appear in no repr, log, pickle or error of this module.

Losing the passphrase, the key file or the vault loses the keys, and with them every protected image: back up the vault,
and what unlocks it, in two different places.
"""

import hmac
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, NoReturn

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from storage.errors import EnvironmentFault, KeyVaultError, UnknownKey, UsageError, VaultLocked, WorkspaceBusy
from storage.key_encryption import KEY_BYTES, KeyEncryption, Stored, Unlock, hkdf, write_durably
from storage.names import DATASET_PATTERN, KEY_ID_PATTERN, check_dataset_name
from storage.settings import Settings

SIZE_LIMIT = 64 << 20  # bytes: some 200,000 keys
LOCK_SECONDS = 30.0

_MAC_CONTEXT = {"purpose": "dmcp/v1/vault-mac"}


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


class _WrappedKey(BaseModel):
    """One data key as the file holds it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    key_id: Annotated[str, Field(pattern=f"^{KEY_ID_PATTERN}$")]
    dataset: Annotated[str, Field(pattern=f"^{DATASET_PATTERN}$")]
    epoch: Annotated[int, Field(ge=1)]
    created: str
    wrapped: Annotated[str, Field(pattern="^([0-9a-f]{2})+$")]

    def context(self) -> dict[str, str]:
        """What the wrapping is bound to."""
        return {"key_id": self.key_id, "dataset": self.dataset, "epoch": str(self.epoch), "created": self.created}

    def record(self) -> DataKeyRecord:
        return DataKeyRecord(self.key_id, self.dataset, self.epoch, datetime.fromisoformat(self.created))


class _VaultFile(BaseModel):
    """The whole file. `mac_key` is the wrapped key of `mac`: it is also what shows that the passphrase is right."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal["dmcp-vault"] = "dmcp-vault"
    version: Literal[1] = 1
    key_encryption: Stored
    mac_key: Annotated[str, Field(pattern="^([0-9a-f]{2})+$")]
    keys: list[_WrappedKey]
    mac: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] = ""

    def encode(self) -> bytes:
        """The one encoding of these contents; `decode` accepts no other."""
        return self.model_dump_json(indent=1).encode() + b"\n"

    def sealed(self, mac_key: bytes) -> "_VaultFile":
        """The same contents with their MAC."""
        bare = self.model_copy(update={"mac": ""})
        return bare.model_copy(update={"mac": hmac.digest(mac_key, bare.encode(), "sha256").hex()})


class Vault:
    """A vault file and what unlocks it. Nothing is kept in memory but the unlocked key-encryption key."""

    def __init__(self, path: Path, unlock: Unlock) -> None:
        self.path = path
        self._unlock = unlock
        self._opened: tuple[Stored, KeyEncryption] | None = None

    def __repr__(self) -> str:
        return f"Vault({str(self.path)!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("vaults do not leave the process: open the vault again over there")

    def create(self, dataset: str, key_bytes: bytes | None = None) -> DataKeyRecord:
        """Make the data set's next key, or take in `key_bytes` (32 bytes, made elsewhere); the first makes the vault.

        Raises:
            UsageError: the name can not name a data set, or the given key is not 32 bytes or is in the vault already.
            VaultLocked, KeyVaultError: the vault can not be opened, or was altered.
            WorkspaceBusy: another process holds the vault's lock for half a minute.
        """
        check_dataset_name(dataset)
        if key_bytes is not None and len(key_bytes) != KEY_BYTES:
            raise UsageError(f"A data key has 32 bytes, not {len(key_bytes)}.", "Leave it out to have one made.")
        with self._locked():
            contents, backend, mac_key = self._read() or self._new()
            secret = key_bytes or secrets.token_bytes(KEY_BYTES)
            if any(key.key_id == key_id_of(secret) for key in contents.keys):
                raise UsageError(f"Key {key_id_of(secret)} is in the vault already.", "See `dmcp key list`.")
            epoch = 1 + max((key.epoch for key in contents.keys if key.dataset == dataset), default=0)
            entry = _wrap(backend, secret, dataset, epoch)
            grown = contents.model_copy(update={"keys": [*contents.keys, entry]}).sealed(mac_key)
            write_durably(self.path, grown.encode())
        return entry.record()

    def list(self) -> list[DataKeyRecord]:
        """Every key's record, by data set and epoch; empty where there is no vault yet."""
        opened = self._read()
        records = [key.record() for key in opened[0].keys] if opened else []
        return sorted(records, key=lambda record: (record.dataset, record.epoch))

    def current(self, dataset: str) -> DataKeyRecord:
        """The record of the data set's newest key. Raises UnknownKey when it has none."""
        records = [record for record in self.list() if record.dataset == dataset]
        if not records:
            raise UnknownKey(f"The vault {self.path} has no key for {dataset}.", f"Run: dmcp key create {dataset}")
        return records[-1]

    def record(self, key_id: str) -> DataKeyRecord:
        """The record of this key. Raises UnknownKey when it is not in the vault."""
        return self._find(key_id)[0].record()

    def dataset_of(self, key_id: str) -> str:
        """The data set that this key protects. Raises UnknownKey when it is not in the vault."""
        return self.record(key_id).dataset

    def secret(self, key_id: str) -> bytes:
        """The key itself, 32 bytes. Raises UnknownKey when it is not in the vault."""
        entry, backend = self._find(key_id)
        secret = backend.unwrap(bytes.fromhex(entry.wrapped), entry.context())
        if len(secret) != KEY_BYTES or not hmac.compare_digest(key_id_of(secret), key_id):
            raise self._unusable(f"the key it holds as {key_id} has another id")
        return secret

    # --- the file --------------------------------------------------------------------------------------------------

    def _find(self, key_id: str) -> tuple[_WrappedKey, KeyEncryption]:
        opened = self._read()
        if opened:
            contents, backend, _ = opened
            for entry in contents.keys:
                if entry.key_id == key_id:
                    return entry, backend
        raise UnknownKey(
            f"Key {key_id} is not in the vault {self.path}.",
            "`dmcp key list` shows what is. Only the vault of the data set's owner can restore these images.",
        )

    def _read(self) -> tuple[_VaultFile, KeyEncryption, bytes] | None:
        """Contents, backend and MAC key of the file as it is now, authenticated; None where there is no file."""
        try:
            with self.path.open("rb") as file:
                data = file.read(SIZE_LIMIT + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise KeyVaultError(
                f"{self.path} can not be read: {error.strerror}.", "Check its owner and mode."
            ) from error
        contents = self._decode(data)
        backend = self._backend(contents.key_encryption)
        try:
            mac_key = backend.unwrap(bytes.fromhex(contents.mac_key), _MAC_CONTEXT)
        except VaultLocked:
            what = _WHAT_UNLOCKS[contents.key_encryption.kind]
            raise VaultLocked(
                f"The vault {self.path} does not open: the {what} is wrong, or the file was altered.",
                "Give the one the vault was made with; else restore the vault from your backup.",
            ) from None
        if not hmac.compare_digest(contents.sealed(mac_key).mac, contents.mac):
            raise self._unusable("it was altered after it was written")
        return contents, backend, mac_key

    def _decode(self, data: bytes) -> _VaultFile:
        if len(data) > SIZE_LIMIT:
            raise self._unusable("it is larger than any vault")
        try:
            contents = _VaultFile.model_validate_json(data)
        except ValidationError as error:
            # Not the values: what stands at an unexpected place may be anything.
            first = error.errors(include_input=False, include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise self._unusable(f"{where!a}: {first['type']}") from None
        if contents.encode() != data:
            raise self._unusable("it was altered after it was written")
        return contents

    def _backend(self, stored: Stored) -> KeyEncryption:
        """The backend for what the file says, kept while the file says the same (scrypt is slow on purpose)."""
        if self._opened is None or self._opened[0] != stored:
            self._opened = stored, self._unlock.open(stored)
        return self._opened[1]

    def _new(self) -> tuple[_VaultFile, KeyEncryption, bytes]:
        stored = self._unlock.describe_new()
        backend, mac_key = self._backend(stored), secrets.token_bytes(32)
        wrapped = backend.wrap(mac_key, _MAC_CONTEXT).hex()
        return _VaultFile(key_encryption=stored, mac_key=wrapped, keys=[]), backend, mac_key

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            with FileLock(self.path.with_suffix(".lock"), timeout=LOCK_SECONDS, mode=0o600):
                yield
        except Timeout:
            raise WorkspaceBusy(f"Another process holds the vault {self.path}.", "Try again when it is done.") from None
        except OSError as error:
            raise EnvironmentFault(
                f"The vault {self.path} can not be written: {error.strerror}.",
                "Check DMCP_HOME, its owner and its disk.",
            ) from error

    def _unusable(self, why: str) -> KeyVaultError:
        return KeyVaultError(f"The vault {self.path} can not be used: {why}.", "Restore it from your backup.")


_WHAT_UNLOCKS = {"passphrase": "passphrase", "key-file": "key file"}


def _wrap(backend: KeyEncryption, secret: bytes, dataset: str, epoch: int) -> _WrappedKey:
    created = datetime.now(UTC).isoformat(timespec="seconds")
    bare = _WrappedKey(key_id=key_id_of(secret), dataset=dataset, epoch=epoch, created=created, wrapped="00")
    return bare.model_copy(update={"wrapped": backend.wrap(secret, bare.context()).hex()})


def open_vault(settings: Settings) -> Vault:
    """The vault of these settings, HOME/vault.json; nothing is read before it is used."""
    key_file = settings.vault_key_file or settings.home_path("vault.key")
    return Vault(settings.home_path("vault.json"), Unlock(key_file=key_file, passphrase=settings.vault_passphrase))
