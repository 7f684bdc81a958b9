"""The key vault: one JSON file that holds every data key, each wrapped by a key-encryption key.

    vault = open_vault(settings())             # HOME/vault.json; what locks it: storage.key_encryption
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

Losing the vault, or what unlocks it, loses the keys, and with them every protected image: back up both, in two
different places. Rotation, backup, restore and check: `storage.key_safety`.
"""

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from filelock import FileLock, Timeout

from storage.errors import EnvironmentFault, KeyVaultError, UnknownKey, UsageError, VaultLocked, WorkspaceBusy, WrongKey
from storage.key_backends.local import make_folder
from storage.key_encryption import KEY_BYTES, KeyEncryption, Stored, Unlock, unlock_of, write_durably
from storage.names import check_dataset_name
from storage.settings import Settings
from storage.vault_file import (
    MAC_CONTEXT,
    SIZE_LIMIT,
    DataKeyRecord,
    MacKey,
    OpenVault,
    VaultFile,
    WrappedKey,
    key_id_of,
    unusable,
)

__all__ = ["DataKeyRecord", "Vault", "key_id_of", "open_vault"]

LOCK_SECONDS = 30.0


class Vault:
    """A vault file and what unlocks it. In memory it keeps what opens the file (and its MAC key), never a data key."""

    def __init__(self, path: Path, unlock: Unlock) -> None:
        self.path = path
        self._unlock = unlock
        self._opened: tuple[Stored, KeyEncryption] | None = None
        self._mac: tuple[Stored, str, MacKey] | None = None

    def __repr__(self) -> str:
        return f"Vault({str(self.path)!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("vaults do not leave the process: open the vault again over there")

    @property
    def unlock(self) -> Unlock:
        """What this process opens it with."""
        return self._unlock

    def create(
        self,
        dataset: str,
        key_bytes: bytes | None = None,
        *,
        announce: Callable[[DataKeyRecord], object] | None = None,
    ) -> DataKeyRecord:
        """Make the data set's next key; the first makes the vault.

        Args:
            dataset: the data set's name.
            key_bytes: the key, 32 bytes, made elsewhere; None: a fresh one.
            announce: is told the key's record just before it is stored, while nobody else can make one; where it
                raises, no key is made.

        Raises:
            UsageError: the name can not name a data set, or the given key is not 32 bytes or is in the vault already.
            VaultLocked, KeyVaultError: the vault can not be opened, or was altered.
            WorkspaceBusy: another process holds the vault's lock for half a minute.
        """
        check_dataset_name(dataset)
        if key_bytes is not None and len(key_bytes) != KEY_BYTES:
            raise UsageError(f"A data key has 32 bytes, not {len(key_bytes)}.", "Leave it out to have one made.")
        with self.locked():
            opened = self.read() or self._new()
            secret = key_bytes or secrets.token_bytes(KEY_BYTES)
            keys = opened.contents.keys
            if any(key.key_id == key_id_of(secret) for key in keys):
                raise UsageError(f"Key {key_id_of(secret)} is in the vault already.", "See `dmcp key list`.")
            epoch = 1 + max((key.epoch for key in keys if key.dataset == dataset), default=0)
            created = datetime.now(UTC).isoformat(timespec="seconds")
            entry = WrappedKey.make(opened.backend, secret, dataset, epoch, created)
            record = entry.record()
            if announce is not None:
                announce(record)
            write_durably(self.path, opened.with_keys([*keys, entry]).encode())
        return record

    def list(self) -> list[DataKeyRecord]:
        """Every key's record, by data set and epoch; empty where there is no vault yet."""
        opened = self.read()
        records = [key.record() for key in opened.contents.keys] if opened else []
        return sorted(records, key=lambda record: (record.dataset, record.epoch))

    def current(self, dataset: str) -> DataKeyRecord:
        """The record of the data set's newest key. Raises UnknownKey when it has none."""
        records = [record for record in self.list() if record.dataset == dataset]
        if not records:
            there = self.path.exists()
            raise UnknownKey(
                f"The vault {self.path} has no key for {dataset}." if there else f"There is no vault {self.path} yet.",
                f"If you made one elsewhere, go to that folder or set DMCP_HOME; else run: dmcp key create {dataset}",
            )
        return records[-1]

    def record(self, key_id: str) -> DataKeyRecord:
        """The record of this key. Raises UnknownKey when it is not in the vault."""
        return self._find(key_id)[1].record()

    def dataset_of(self, key_id: str) -> str:
        """The data set that this key protects. Raises UnknownKey when it is not in the vault."""
        return self.record(key_id).dataset

    def secret(self, key_id: str) -> bytes:
        """The key itself, 32 bytes. Raises UnknownKey when it is not in the vault."""
        opened, entry = self._find(key_id)
        return opened.secret(entry)

    # --- the file --------------------------------------------------------------------------------------------------

    def read(self) -> OpenVault | None:
        """The file as it is now, opened and authenticated; None where there is no file.

        Raises:
            VaultLocked: what it needs is missing, wrong or denied.
            KeyVaultError: it can not be read, or was altered.
            EnvironmentFault: a remote key-encryption key is out of reach.
        """
        try:
            with self.path.open("rb") as file:
                data = file.read(SIZE_LIMIT + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise KeyVaultError(
                f"{self.path} can not be read: {error.strerror}.", "Check its owner and mode."
            ) from error
        return self.open_bytes(data)

    def open_bytes(self, data: bytes) -> OpenVault:
        """Open and authenticate what is, or is about to be, in the file. Raises as `read`."""
        contents = VaultFile.decode(data, self.path)
        backend = self._backend(contents.key_encryption)
        opened = OpenVault(self.path, contents, backend, self._mac_key(contents, backend))
        if not opened.mac.holds(contents):
            raise unusable(self.path, "it was altered after it was written")
        return opened

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the vault's lock: who writes, here or in another process, takes turns.

        Raises:
            WorkspaceBusy: another process holds it for half a minute.
            EnvironmentFault: the disk is in the way, now or in the block.
        """
        try:
            make_folder(self.path.parent)
            with FileLock(self.path.with_suffix(".lock"), timeout=LOCK_SECONDS, mode=0o600):
                yield
        except Timeout:
            raise WorkspaceBusy(f"Another process holds the vault {self.path}.", "Try again when it is done.") from None
        except OSError as error:
            raise EnvironmentFault(
                f"The vault {self.path} can not be written: {error.strerror}.",
                "Check DMCP_HOME, its owner and its disk.",
            ) from error

    def _find(self, key_id: str) -> tuple[OpenVault, WrappedKey]:
        opened = self.read()
        if opened:
            for entry in opened.contents.keys:
                if entry.key_id == key_id:
                    return opened, entry
        raise UnknownKey(
            f"Key {key_id} is not in the vault {self.path}.",
            "`dmcp key list` shows what is. Only the vault of the data set's owner can restore these images.",
        )

    def _backend(self, stored: Stored) -> KeyEncryption:
        """The backend for what the file says, kept while the file says the same (scrypt is slow on purpose)."""
        if self._opened is None or self._opened[0] != stored:
            self._opened = stored, self._unlock.open(stored)
        return self._opened[1]

    def _mac_key(self, contents: VaultFile, backend: KeyEncryption) -> MacKey:
        """The MAC key of the file, kept while the file says the same (a remote key-encryption key is slow to ask)."""
        stored, wrapped = contents.key_encryption, contents.mac_key
        if self._mac is None or self._mac[:2] != (stored, wrapped):
            try:
                self._mac = stored, wrapped, MacKey(backend.unwrap(bytes.fromhex(wrapped), MAC_CONTEXT))
            except WrongKey:
                self._opened = None  # a key file may have been put right meanwhile
                what = _WHAT_UNLOCKS[stored.kind]
                tried = f" (tried: {self._unlock.key_file})" if stored.kind == "key-file" else ""
                raise VaultLocked(
                    f"The vault {self.path} does not open: the {what} is wrong, or the file was altered.",
                    f"Give the one the vault was made with{tried}; else restore the vault from your backup.",
                ) from None
        return self._mac[2]

    def _new(self) -> OpenVault:
        stored = self._unlock.describe_new()
        backend = self._backend(stored)
        mac, wrapped = MacKey.fresh(backend)
        return OpenVault(self.path, VaultFile(key_encryption=stored, mac_key=wrapped, keys=[]), backend, mac)


_WHAT_UNLOCKS = {
    "passphrase": "passphrase",
    "key-file": "key file",
    "aws-kms": "KMS key in DMCP_VAULT_KEK",
    "hashivault": "transit key in DMCP_VAULT_KEK",
}


def open_vault(settings: Settings) -> Vault:
    """The vault of these settings, HOME/vault.json; nothing is read before it is used."""
    return Vault(settings.home_path("vault.json"), unlock_of(settings))
