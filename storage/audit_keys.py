"""The key that signs checkpoints of the audit log (Ed25519), and the public keys that a verifier trusts.

    HOME/audit.key.pem     the private key: PKCS#8, mode 0600, encrypted under the vault's passphrase where there is one
    HOME/audit.pub         its public key, PEM; after the key was replaced, those before it too
    HOME/audit.anchor.json the newest checkpoint that was put from here, to notice when it is gone
    HOME/audit.head        number and hash of the newest entry that was seen from here: what happens to the end of the
                           log before it is anchored shows too, where this file is (it is not signed)

The first checkpoint makes the key. Copy `audit.pub` to whoever is to verify: no more is needed for it. To replace the
key, move `audit.key.pem` away: the next checkpoint makes another and adds its public key to the pinned ones.
"""

import hashlib
import logging
import os
import re
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from Crypto.PublicKey import ECC
from Crypto.Signature import eddsa
from filelock import FileLock, Timeout
from pydantic import SecretStr

from storage.audit_chain import NOT_AS_NOTED
from storage.errors import AuditBroken, DmcpError, EnvironmentFault, KeyVaultError, VaultLocked, WorkspaceBusy
from storage.files import write_atomic
from storage.key_encryption import write_durably
from storage.settings import Settings

LOCK_SECONDS = 60.0
_CURVE = "Ed25519"
_logger = logging.getLogger("dmcp.audit")
_HEAD = re.compile(r"([1-9][0-9]{0,17}) ([0-9a-f]{64})\n")
_PUBLIC = re.compile(rb"-----BEGIN PUBLIC KEY-----[A-Za-z0-9+/=\s]+-----END PUBLIC KEY-----")


class PublicKey:
    """A public key that checkpoints may be signed under. Its id: the first 16 hex digits of its SHA-256."""

    def __init__(self, key: ECC.EccKey) -> None:
        self._key = key
        self.key_id = hashlib.sha256(key.export_key(format="raw")).hexdigest()[:16]

    def __repr__(self) -> str:
        return f"PublicKey({self.key_id})"

    def verifies(self, message: bytes, signature: bytes) -> bool:
        """Whether this is the signature of the message."""
        try:
            eddsa.new(self._key, "rfc8032").verify(message, signature)
        except ValueError:
            return False
        return True


class Signer:
    """The private key, in memory; never shown."""

    def __init__(self, key: ECC.EccKey) -> None:
        self.__key = key
        self.public = PublicKey(key.public_key())

    def __repr__(self) -> str:
        return f"Signer({self.public.key_id})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("signing keys do not leave the process: read the key again over there")

    def sign(self, message: bytes) -> bytes:
        """The signature: 64 bytes (RFC 8032)."""
        signature: bytes = eddsa.new(self.__key, "rfc8032").sign(message)
        return signature


@dataclass(frozen=True)
class AuditHome:
    """Where this machine keeps what checkpoints need."""

    folder: Path
    passphrase: SecretStr | None = field(default=None, repr=False)

    @property
    def private(self) -> Path:
        """The private key."""
        return self.folder / "audit.key.pem"

    @property
    def public(self) -> Path:
        """The pinned public keys."""
        return self.folder / "audit.pub"

    @property
    def anchor(self) -> Path:
        """The newest checkpoint put from here."""
        return self.folder / "audit.anchor.json"

    @property
    def head(self) -> Path:
        """The newest entry seen from here."""
        return self.folder / "audit.head"

    def note_head(self, seq: int, digest: str, hash_of: Callable[[int], str | None]) -> None:
        """Remember that entry `seq`, with this hash, is on record; an older one than the one noted changes nothing.

        The entry noted before must still be in the log (`hash_of`: the hash that an entry has there). If it is not, or
        if the note was altered, the note stays as it is, for `dmcp audit verify` to find, and an error is logged.
        Nothing is raised, for the entry itself is on record: a note that can not be written is a warning.

        Not synced: after a power failure the note may be a few entries behind, or empty, which counts as none.
        """
        aside = self.head.with_name(f".{self.head.name}.{os.getpid()}-{os.urandom(4).hex()}.partial")
        try:
            noted = self.noted_head()
            if noted == (seq, digest):
                return
            wrong = unlike_noted(noted, hash_of)
            if wrong is not None:
                _logger.error("the audit log was changed: %s; run `dmcp audit verify`", wrong)
                return
            if noted is not None and noted[0] >= seq:
                return
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            aside.write_text(f"{seq} {digest}\n")
            aside.replace(self.head)
        except AuditBroken as error:
            _logger.error("%s", error)
        except (OSError, DmcpError) as error:
            _logger.warning("the newest entry of the audit log could not be noted: %s", error)
            aside.unlink(missing_ok=True)

    def noted_head(self) -> tuple[int, str] | None:
        """Number and hash of the newest entry seen from here. Raises AuditBroken when the note was altered."""
        try:
            text = self.head.read_text("ascii", "replace")
        except FileNotFoundError:
            return None
        if not text:
            return None
        found = _HEAD.fullmatch(text)
        if found is None:
            raise AuditBroken(
                f"{self.head} is not what was written there.", "Find out who changed it; then move it away."
            )
        return int(found[1]), found[2]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One process of this machine at a time makes keys and checkpoints.

        Raises:
            WorkspaceBusy: another one does, for a minute.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            with FileLock(self.folder / "audit.lock", timeout=LOCK_SECONDS, mode=0o600):
                yield
        except Timeout:
            raise WorkspaceBusy("Another process anchors the audit log.", "Try again when it is done.") from None

    def signer(self) -> Signer:
        """The private key, made at the first call (under `locked`).

        Raises:
            VaultLocked: it does not open: the passphrase is missing or wrong, or the file is no such key.
        """
        key = self._read()
        if key is None:
            key = ECC.generate(curve=_CURVE)
            self._write(key, self.passphrase)
        signer = Signer(key)
        self._pin(key.public_key(), signer.public)  # also if the process that made the key was killed before it did
        return signer

    def lock_anew(self, passphrase: SecretStr | None) -> bool:
        """Encrypt the private key under another passphrase (None: not at all), when the vault's changes.

        Returns:
            whether there is a private key.

        Raises:
            VaultLocked: it does not open with the passphrase so far.
        """
        with self.locked():
            key = self._read()
            if key is not None:
                self._write(key, passphrase)
            return key is not None

    def pinned(self) -> dict[str, PublicKey]:
        """The public keys that checkpoints may be signed under, by id; empty where none was pinned yet."""
        return read_public_keys(self.public) if self.public.exists() else {}

    def _read(self) -> ECC.EccKey | None:
        try:
            data = self.private.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._locked(f"can not be read: {error.strerror}") from None
        if self.private.stat().st_mode & 0o177:
            raise VaultLocked(f"{self.private} has a mode wider than 0600.", f"Run: chmod 600 {self.private}")
        try:
            key = ECC.import_key(data, passphrase=_phrase(self.passphrase) if b"ENCRYPTED" in data else None)
        except (ValueError, IndexError, TypeError):
            raise self._locked("does not open: the passphrase is missing or wrong, or the file was altered") from None
        if key.curve != _CURVE or not key.has_private():
            raise self._locked("holds no private Ed25519 key")
        return key

    def _write(self, key: ECC.EccKey, passphrase: SecretStr | None) -> None:
        phrase = _phrase(passphrase)
        if phrase is None:
            text = key.export_key(format="PEM", use_pkcs8=True)
        else:
            text = key.export_key(
                format="PEM",
                use_pkcs8=True,
                passphrase=phrase,
                protection="scryptAndAES256-GCM",
                prot_params={"iteration_count": 1 << 17, "block_size": 8},  # 128 MiB, some 0.2 s
            )
        write_durably(self.private, text.encode() + b"\n")

    def _pin(self, key: ECC.EccKey, public: PublicKey) -> None:
        if public.key_id in self.pinned():
            return
        before = self.public.read_bytes() if self.public.exists() else b""
        write_atomic(self.public, before + key.export_key(format="PEM").encode() + b"\n", mode=0o644)

    def _locked(self, why: str) -> VaultLocked:
        return VaultLocked(
            f"The audit log's key {self.private} {why}.",
            "Set DMCP_VAULT_PASSPHRASE to what it was when the key was made; or move the file away for a new key.",
        )


def _phrase(passphrase: SecretStr | None) -> bytes | None:
    """NFC, as for the vault: the same passphrase typed on another system is the same bytes."""
    given = passphrase.get_secret_value() if passphrase is not None else ""
    return unicodedata.normalize("NFC", given).encode() or None


def unlike_noted(noted: tuple[int, str] | None, hash_of: Callable[[int], str | None]) -> str | None:
    """What is wrong with the entry that was noted, in the log as it is now; None: nothing.

    Entries are noted after they are on record. So read the note first: then even one that another process has just
    written is in the log that `hash_of` looks at.
    """
    if noted is None:
        return None
    seq, digest = noted
    found = hash_of(seq)
    if found is None:
        return f"entry {seq}, which this machine saw, is missing"
    return None if found == digest else NOT_AS_NOTED.format(seq)


def audit_home(settings: Settings) -> AuditHome:
    """HOME, and the vault's passphrase."""
    return AuditHome(settings.home_path(), settings.vault_passphrase)


def read_public_keys(path: Path) -> dict[str, PublicKey]:
    """The public keys of a PEM file (one after another), by id.

    Raises:
        EnvironmentFault: the file can not be read.
        KeyVaultError: it holds something else.
    """
    try:
        blocks = _PUBLIC.findall(path.read_bytes())
    except OSError as error:
        raise EnvironmentFault(
            f"{path} can not be read: {error.strerror}.", "Name the public key of the audit log."
        ) from error
    try:
        keys = [ECC.import_key(block) for block in blocks]
    except (ValueError, IndexError, TypeError):
        keys = []
    if not keys or any(key.curve != _CURVE for key in keys):
        raise KeyVaultError(f"{path} holds no public Ed25519 keys.", "Copy HOME/audit.pub from where the key was made.")
    return {key.key_id: key for key in map(PublicKey, keys)}
