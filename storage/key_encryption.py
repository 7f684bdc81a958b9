"""Key encryption: what wraps the data keys of a vault.

A backend is a `KeyEncryption`: `wrap` a data key, `unwrap` it again, both bound to a context (text pairs: key id, data
set, epoch, creation time), so that a wrapped key can not be passed off as another's. What a backend needs to come back
(its kind, and for a passphrase the salt and cost) is stored in the vault, in clear, and the vault's stored kind chooses
the backend. What locks a *new* vault is a setting, DMCP_VAULT_KEK, a URI:

    passphrase:                         DMCP_VAULT_PASSPHRASE, through scrypt              key_backends/local.py
    file:PATH                           a key file (file: alone is HOME/vault.key)         key_backends/local.py
    aws-kms://KEY?region=REGION         a key of AWS KMS                                   key_backends/aws_kms.py
    hashivault://HOST:PORT/MOUNT/KEY    a transit key of HashiCorp Vault or OpenBao        key_backends/hashivault.py

Unset, it is the passphrase where one is given, else the key file. Each module says which permissions its backend needs.

Local kinds open whatever the URI says. A remote one opens only when the URI names its key: the vault file is not
authenticated before it is open, and must neither choose where a token is sent nor which key to trust.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, Protocol

from pydantic import Field, SecretStr

from storage.errors import SettingsError, VaultLocked
from storage.key_backends.aws_kms import AwsKmsKey, StoredAwsKms
from storage.key_backends.hashivault import HashiVaultKey, StoredHashiVault
from storage.key_backends.local import (
    KEY_BYTES,
    AesSiv,
    ScryptCost,
    StoredKeyFile,
    StoredPassphrase,
    create_key_file,
    file_key,
    hkdf,
    passphrase_key,
    write_durably,
)
from storage.settings import Settings

__all__ = [
    "KEY_BYTES",
    "AesSiv",
    "KeyEncryption",
    "ScryptCost",
    "Stored",
    "Unlock",
    "hkdf",
    "unlock_of",
    "write_durably",
]


class KeyEncryption(Protocol):
    """Wraps and unwraps data keys. Implementations never show their key: not in repr, pickles or errors."""

    def wrap(self, secret: bytes, context: Mapping[str, str]) -> bytes:
        """Encrypt and authenticate `secret`, bound to `context`."""
        ...

    def unwrap(self, wrapped: bytes, context: Mapping[str, str]) -> bytes:
        """The secret again. Raises WrongKey when key, context or bytes are not those of `wrap`."""
        ...


Stored = Annotated[
    StoredPassphrase | StoredKeyFile | StoredAwsKms | StoredHashiVault,
    Field(discriminator="kind"),
]
Kek = Literal["passphrase", "key-file"] | AwsKmsKey | HashiVaultKey


@dataclass(frozen=True)
class Unlock:
    """What this process can open a vault with, and how it makes a new one.

    A new vault takes what `kek` says; where it says nothing, the passphrase if one is given, otherwise the key file
    (made when missing). An existing vault takes what it was made with, whatever else is given.
    """

    key_file: Path
    passphrase: SecretStr | None = field(default=None, repr=False)
    cost: ScryptCost = field(default_factory=ScryptCost)
    kek: Kek | None = None

    @classmethod
    def parse(cls, uri: str, key_file: Path, passphrase: SecretStr | None = None) -> "Unlock":
        """The same from a URI; `key_file` is where `file:` alone leads.

        Raises:
            SettingsError: no key-encryption key can be meant by the URI (which is not repeated: who knows what it is).
        """
        scheme, colon, rest = uri.partition(":")
        if scheme == "passphrase" and colon and not rest:
            return cls(key_file, passphrase, kek="passphrase")
        if scheme == "file" and colon:
            path = Path(rest.removeprefix("//")).expanduser() if rest else key_file
            return cls(path, passphrase, kek="key-file")
        if uri.startswith("aws-kms://"):
            return cls(key_file, passphrase, kek=AwsKmsKey.parse(rest.removeprefix("//")))
        if uri.startswith("hashivault://"):
            return cls(key_file, passphrase, kek=HashiVaultKey.parse(rest.removeprefix("//")))
        raise SettingsError(
            "The URI of the key-encryption key is of no known scheme.",
            "It begins with passphrase: (and nothing after it), file:, aws-kms:// or hashivault://",
        )

    def describe_new(self) -> Stored:
        """What a new vault stores; makes the key file when that is what it will need.

        Raises:
            SettingsError: the passphrase is empty, or asked for and not given.
            VaultLocked: the key file exists but can not be used; a remote key is not ours to use.
            KeyVaultError, EnvironmentFault: a remote key is not there, or does not answer.
        """
        if isinstance(self.kek, AwsKmsKey | HashiVaultKey):
            return self.kek.describe()
        if self.kek == "key-file" or (self.kek is None and self.passphrase is None):
            if not self.key_file.exists():
                create_key_file(self.key_file)
            return StoredKeyFile()
        if self.passphrase is None:
            raise SettingsError("The vault is to be locked by a passphrase, and none is given.", _PASSPHRASE)
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
            return file_key(self.key_file)
        if isinstance(stored, StoredPassphrase):
            if self.passphrase is None:
                raise VaultLocked("The vault is locked by a passphrase and none is given.", _PASSPHRASE)
            return passphrase_key(self.passphrase, stored)
        if isinstance(stored, StoredAwsKms) and isinstance(self.kek, AwsKmsKey):
            return self.kek.open(stored)
        if isinstance(stored, StoredHashiVault) and isinstance(self.kek, HashiVaultKey):
            return self.kek.open(stored)
        raise VaultLocked(
            f"The vault is locked with {stored}, and DMCP_VAULT_KEK does not name that.",
            "If that is your own key, set DMCP_VAULT_KEK to it; else restore the vault from your backup.",
        )


_PASSPHRASE = "Set DMCP_VAULT_PASSPHRASE."


def unlock_of(settings: Settings) -> Unlock:
    """What these settings unlock. Raises SettingsError when DMCP_VAULT_KEK can not be used."""
    key_file = settings.vault_key_file or settings.home_path("vault.key")
    if settings.vault_kek is None:
        return Unlock(key_file=key_file, passphrase=settings.vault_passphrase)
    return Unlock.parse(settings.vault_kek, key_file, settings.vault_passphrase)
