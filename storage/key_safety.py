"""What keeps keys from being lost: rotation of the key-encryption key, backup, restore, check.

    rotate(vault, Unlock.parse("aws-kms://alias/dmcp", ...))     # every data key wrapped anew; images stay as they are
    backup(vault, Path("/media/stick/vault-2026-11.json"))       # a copy, opened key by key before it counts
    restore(vault, Vault(Path("/media/stick/..."), unlock))      # and back
    check(vault)                                                 # every key opens

Each makes the whole new file in memory, opens it there with nothing but what will open it later, compares every key,
and only then puts it in the old one's place with one rename. Killed at any instant, or failing at any step, what lies
there is the old vault or the new one, whole. A rotation to a key that may encrypt but not decrypt changes nothing.

A rotation makes the MAC key anew too: whoever could open the old file could otherwise still authenticate a new one. It
keeps no copy of the old file unless asked: one that the old key still opens would undo the rotation. Data keys do not
change, so neither do published images; if a data key itself is out, make the next epoch and protect anew.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pydantic import SecretStr

from storage.errors import EnvironmentFault, KeyVaultError, UsageError
from storage.key_backends.local import StoredKeyFile, read_key_file, second_name
from storage.key_encryption import Unlock, write_durably
from storage.keys import Vault
from storage.vault_file import DataKeyRecord, MacKey, OpenVault, VaultFile, WrappedKey


@dataclass(frozen=True)
class Rotation:
    """What a rotation did: what locked the vault before and after (URIs, without secrets), and the keys in it."""

    before: str
    after: str
    keys: list[DataKeyRecord]


@dataclass(frozen=True)
class Restored:
    """What a restore did: the keys that came from the backup, all that are there now, and where the old file went."""

    added: list[DataKeyRecord]
    keys: list[DataKeyRecord]
    aside: Path | None


def rotate(vault: Vault, to: Unlock, keep: Path | None = None) -> Rotation:
    """Lock the vault with another key-encryption key (or with the newest version of the same remote one).

    Args:
        vault: the vault, and what opens it now.
        to: what will open it.
        keep: where to leave a copy of the old file; by default none is kept.

    Raises:
        UsageError: there is no vault, or it is locked with this very key file.
        VaultLocked, KeyVaultError, EnvironmentFault: one of both keys can not be used. The vault is as it was.
    """
    with vault.locked():
        opened = _opened(vault)
        _refuse_same_key_file(opened, vault.unlock, to)
        if keep is not None:
            _write_copy(vault, keep, opened, opened.contents.encode(), vault.unlock)
        renewed = _locked_anew(opened, to)
        write_durably(vault.path, _proved(renewed, vault.path, to, opened.secrets()))
    records = [key.record() for key in renewed.keys]
    return Rotation(str(opened.contents.key_encryption), str(renewed.key_encryption), records)


def backup(vault: Vault, path: Path, passphrase: SecretStr | None = None) -> list[DataKeyRecord]:
    """Copy the vault to a new file that opens, key by key; returns what is in it.

    Args:
        vault: the vault.
        path: the new file; one that is there is never overwritten (it may hold keys that this vault lost).
        passphrase: what opens the copy, for a safe deposit; by default what opens the vault.

    Raises:
        UsageError: there is no vault, or the file is there already.
        EnvironmentFault: the file can not be written.
    """
    with vault.locked():
        opened = _opened(vault)
        data, unlock = opened.contents.encode(), vault.unlock
        if passphrase is not None:
            unlock = replace(vault.unlock, passphrase=passphrase, kek="passphrase")
            data = _locked_anew(opened, unlock).encode()
        _write_copy(vault, path, opened, data, unlock)
    return [key.record() for key in opened.contents.keys]


def restore(vault: Vault, source: Vault, *, merge: bool = False, replacing: bool = False) -> Restored:
    """Put the keys of a backup into the vault.

    Where there is no vault, it becomes the backup: the same file where the same opens both, else wrapped anew with what
    locks new vaults here. Where there is one, the keys it lacks are added, and it stays locked as it is.

    Args:
        vault: the vault to restore.
        source: the backup, and what opens it.
        merge: add even if the vault holds keys that the backup lacks. None is ever dropped.
        replacing: the vault does not open and is to be replaced; it stays beside the new one, under another name.

    Raises:
        UsageError: the vault needs one of these two flags.
        VaultLocked, KeyVaultError: the backup does not open.
    """
    taken = _opened(source)
    secrets, aside = taken.secrets(), None
    with vault.locked():
        try:
            present = vault.read()
        except KeyVaultError as error:
            present, aside = None, _aside_name(vault, error, replacing)
        if present is None:
            renewed = taken.contents if source.unlock == vault.unlock else _locked_anew(taken, vault.unlock)
        else:
            _refuse_surprise(present, taken, merge)
            renewed = present.with_keys(_union(present, taken))
            secrets = {**secrets, **present.secrets()}
        data = _proved(renewed, vault.path, vault.unlock, secrets)
        if aside is not None:
            second_name(vault.path, aside)
        write_durably(vault.path, data)
    before = {key.key_id for key in present.contents.keys} if present else set()
    records = [key.record() for key in renewed.keys]
    return Restored([record for record in records if record.key_id not in before], records, aside)


def check(vault: Vault) -> list[DataKeyRecord]:
    """Open every key of the vault; returns what is in it. Raises as `Vault.read`, and UsageError when there is none."""
    opened = _opened(vault)
    opened.secrets()
    return [key.record() for key in opened.contents.keys]


# --- steps -----------------------------------------------------------------------------------------------------------


def _opened(vault: Vault) -> OpenVault:
    opened = vault.read()
    if opened is None:
        raise UsageError(f"There is no vault {vault.path}.", "`dmcp key create DATASET` makes one; or check the path.")
    return opened


def _locked_anew(opened: OpenVault, to: Unlock) -> VaultFile:
    """The same keys under another key-encryption key and another MAC key."""
    stored = to.describe_new()
    backend = to.open(stored)
    mac, wrapped = MacKey.fresh(backend)
    keys = [
        WrappedKey.make(backend, opened.secret(key), key.dataset, key.epoch, key.created)
        for key in opened.contents.keys
    ]
    return mac.sealed(VaultFile(key_encryption=stored, mac_key=wrapped, keys=keys))


def _proved(contents: VaultFile, path: Path, unlock: Unlock, expected: Mapping[str, bytes]) -> bytes:
    """The encoding of a file that is about to be written, after it was opened as it will be, and holds these keys."""
    data = contents.encode()
    if Vault(path, unlock).open_bytes(data).secrets() != expected:
        raise KeyVaultError(
            "The new vault does not hold the same keys, and was not written.", "Report this: it is a bug."
        )
    return data


def _write_copy(vault: Vault, path: Path, opened: OpenVault, data: bytes, unlock: Unlock) -> None:
    if os.path.lexists(path):
        raise UsageError(
            f"{path} is there already, and is not overwritten.", "Name a new file, such as one with a date."
        )
    proved = _proved(VaultFile.decode(data, path), path, unlock, opened.secrets())
    with _writing(path):
        write_durably(path, proved)
        if path.read_bytes() != proved:
            raise EnvironmentFault(f"{path} does not read back as it was written.", "Use another disk.")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EnvironmentFault(f"{path} can not be written: {error.strerror}.", "Name another place.") from error


def _refuse_same_key_file(opened: OpenVault, now: Unlock, to: Unlock) -> None:
    """A key file can not be replaced in the same step as the vault: one of both would be the old one for an instant."""
    is_file = isinstance(opened.contents.key_encryption, StoredKeyFile)
    to_file = to.kek == "key-file" or (to.kek is None and to.passphrase is None)
    if is_file and to_file and to.key_file.exists() and read_key_file(to.key_file) == read_key_file(now.key_file):
        raise UsageError(
            f"The vault is locked with the key file {to.key_file} already.", "Name a new file: --to file:PATH"
        )


def _refuse_surprise(present: OpenVault, taken: OpenVault, merge: bool) -> None:
    theirs = {key.key_id for key in taken.contents.keys}
    more = [f"{key.key_id} ({key.dataset})" for key in present.contents.keys if key.key_id not in theirs]
    if more and not merge:
        raise UsageError(
            f"The vault {present.path} holds keys that {taken.path} lacks: {', '.join(more[:5])}"
            f"{', ...' if len(more) > 5 else ''}.",
            "--merge keeps them and adds the backup's; nothing was changed.",
        )


def _union(present: OpenVault, taken: OpenVault) -> list[WrappedKey]:
    """All keys of both, wrapped for `present`. Where two keys claim one epoch, the data set is numbered by creation.

    So the newest key stays the one that protects, whichever of the two files it came from.
    """
    ours = {key.key_id for key in present.contents.keys}
    added = [key for key in taken.contents.keys if key.key_id not in ours]
    keys = list(present.contents.keys)
    for dataset in sorted({key.dataset for key in added}):
        mine = [(key.created, 1, key, present) for key in keys if key.dataset == dataset]
        theirs = [(key.created, 0, key, taken) for key in added if key.dataset == dataset]
        claimed = [key.epoch for _, _, key, _ in (*mine, *theirs)]
        distinct = len(set(claimed)) == len(claimed)
        ordered = sorted((*mine, *theirs), key=lambda one: (one[2].epoch if distinct else 0, one[0], one[1]))
        keys = [key for key in keys if key.dataset != dataset]
        for number, (created, _, key, owner) in enumerate(ordered, start=1):
            epoch = key.epoch if distinct else number
            if owner is present and epoch == key.epoch:
                keys.append(key)
            else:
                keys.append(WrappedKey.make(present.backend, owner.secret(key), dataset, epoch, created))
    return keys


def _aside_name(vault: Vault, error: KeyVaultError, replacing: bool) -> Path:
    """Another name for a vault that does not open, so that what takes its place destroys nothing."""
    if not replacing:
        raise UsageError(
            f"The vault that is there does not open. {error.what}",
            "Give what opens it; or --replace: the backup takes its place, and it is kept beside, under another name.",
        )
    moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    return vault.path.with_name(f"{vault.path.name}.replaced-{moment}")
