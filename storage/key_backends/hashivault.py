"""HashiCorp Vault's transit engine (or OpenBao's) as key-encryption key: a key that never leaves that server.

    DMCP_VAULT_KEK=hashivault://vault.example.org:8200/transit/dmcp
    options: namespace=NAME   token-file=PATH   tls=off (plain http; on loopback only)

HOST[:PORT], then the engine's mount (may hold slashes), then the key. The token comes from VAULT_TOKEN, or from the
file that `token-file` names (an agent's sink), read anew at each call, so that a renewed token is noticed.
VAULT_CACERT names a private certificate authority. Redirects are not followed: the token goes to this host only.

Permissions (a policy; `create` is left out on purpose: with it, a mistyped name makes a new key):

    path "transit/decrypt/dmcp" { capabilities = ["update"] }     whoever protects or restores
    path "transit/encrypt/dmcp" { capabilities = ["update"] }     whoever makes keys as well
    path "transit/keys/dmcp"    { capabilities = ["read"] }       whoever makes, rotates or restores the vault

The key's type must be aes128-gcm96, aes256-gcm96, chacha20-poly1305 or xchacha20-poly1305. The context of a wrapping
(key id, data set, epoch, creation) travels as associated data, and as context too, for keys made with derived=true.
After `vault write -f transit/keys/dmcp/rotate`, `dmcp key rotate` with the same URI moves the vault to the newest
version; then min_decryption_version may be raised.
"""

import json
import os
import re
import ssl
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, SecretStr
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from storage.errors import DmcpError, EnvironmentFault, KeyVaultError, VaultLocked, WrongKey
from storage.key_backends.uris import LOOPBACK, http_address, take_apart, unusable

if TYPE_CHECKING:
    import httpx

SHAPE = "hashivault://HOST:PORT/MOUNT/KEY, with https unless ?tls=off on loopback."
TYPES = ("aes128-gcm96", "aes256-gcm96", "chacha20-poly1305", "xchacha20-poly1305")
ATTEMPTS = 4

_NAME = r"[A-Za-z0-9_.-]{1,128}"
_PATH = rf"{_NAME}(/{_NAME})*"
_WORTH_ANOTHER_TRY = (412, 429, 500, 502, 503, 504)  # limits, replicas that lag, proxies


class StoredHashiVault(BaseModel):
    """What a vault stores of its transit key. The address is a hint for people: the settings say where to ask."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["hashivault"] = "hashivault"
    address: Annotated[str, Field(pattern=r"^[A-Za-z0-9.:\[\]-]{1,270}$")]
    mount: Annotated[str, Field(pattern=rf"^{_PATH}$")]
    key: Annotated[str, Field(pattern=rf"^{_NAME}$")]
    namespace: Annotated[str, Field(pattern=rf"^({_PATH})?$")] = ""

    def __str__(self) -> str:
        within = f"?namespace={self.namespace}" if self.namespace else ""
        return f"hashivault://{self.address}/{self.mount}/{self.key}{within}"


class _Again(Exception):
    """Worth another try; carries what to raise when there is none left."""

    def __init__(self, error: DmcpError) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(frozen=True)
class HashiVaultKey:
    """A transit key as a URI names it."""

    address: str
    mount: str
    key: str
    namespace: str = ""
    tls: bool = True
    token_file: Path | None = None

    @classmethod
    def parse(cls, rest: str) -> "HashiVaultKey":
        """From what follows `hashivault://`. Raises SettingsError."""
        target, options = take_apart(rest, ("namespace", "tls", "token-file"), SHAPE)
        address, _, path = target.partition("/")
        mount, _, key = path.rpartition("/")
        namespace = options.get("namespace", "").strip("/")
        if options.get("tls", "on") not in ("on", "off"):
            raise unusable("tls is on or off", SHAPE)
        tls = options.get("tls") != "off"
        http_address(f"{'https' if tls else 'http'}://{address}", SHAPE)
        if not re.fullmatch(_PATH, mount) or not re.fullmatch(_NAME, key):
            raise unusable("it names no mount and key", SHAPE)
        if namespace and not re.fullmatch(_PATH, namespace):
            raise unusable("its namespace can not be one", SHAPE)
        if any(part.strip(".") == "" for part in (*mount.split("/"), key)):
            raise unusable("it names no mount and key", SHAPE)
        token_file = Path(options["token-file"]) if "token-file" in options else None
        return cls(address, mount, key, namespace, tls, token_file)

    def describe(self) -> StoredHashiVault:
        """What a new vault stores, for a key that is there and authenticates the context.

        Raises:
            VaultLocked: the token is missing, wrong, or may not do this.
            KeyVaultError: there is no such mount or key, or it is of another type.
            EnvironmentFault: the server does not answer, is sealed, or throttles.
        """
        data = Transit(self).call("GET", "keys")
        if data.get("type") not in TYPES:
            raise KeyVaultError(f"The transit key {self} is of another type.", f"Make one of type {', '.join(TYPES)}.")
        return StoredHashiVault(address=self.address, mount=self.mount, key=self.key, namespace=self.namespace)

    def open(self, stored: StoredHashiVault) -> "Transit":
        """The backend. Raises VaultLocked when the vault says that it was locked with another key.

        The address may differ (servers move): what is asked, and with which token, is what the settings say.
        """
        if (self.mount, self.key, self.namespace) != (stored.mount, stored.key, stored.namespace):
            raise VaultLocked(
                f"The vault is locked with {stored}, and DMCP_VAULT_KEK names another key.",
                "Set it to the vault's own key; to change the key: dmcp key rotate --to URI",
            )
        return Transit(self)

    def token(self) -> SecretStr:
        """The token as it is now. Raises VaultLocked when there is none."""
        try:
            text = self.token_file.read_text() if self.token_file else os.environ.get("VAULT_TOKEN", "")
        except (OSError, UnicodeDecodeError) as error:
            raise VaultLocked(f"The token file {self.token_file} can not be read ({type(error).__name__}).") from None
        token = text.strip()
        if not re.fullmatch(r"[!-~]+", token):
            where = str(self.token_file) if self.token_file else "VAULT_TOKEN"
            raise VaultLocked(f"The vault is locked with {self}, and there is no token.", f"Put one into {where}.")
        return SecretStr(token)

    def __str__(self) -> str:
        within = f"?namespace={self.namespace}" if self.namespace else ""
        return f"hashivault://{self.address}/{self.mount}/{self.key}{within}"


class Transit:
    """`KeyEncryption` by the transit engine's encrypt and decrypt."""

    def __init__(self, key: HashiVaultKey) -> None:
        self.key = key

    def __repr__(self) -> str:
        return f"Transit({str(self.key)!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("key-encryption backends do not leave the process: open the vault again over there")

    def wrap(self, secret: bytes, context: Mapping[str, str]) -> bytes:
        """The engine's own ciphertext, `vault:v1:...` in ASCII."""
        data = self.call("POST", "encrypt", {"plaintext": b64encode(secret).decode(), **_bound(context)})
        ciphertext = data.get("ciphertext")
        if not isinstance(ciphertext, str) or not ciphertext.startswith("vault:"):
            raise self._no_vault()
        return ciphertext.encode()

    def unwrap(self, wrapped: bytes, context: Mapping[str, str]) -> bytes:
        """Raises WrongKey when key, context or bytes are not those of `wrap`; else as `HashiVaultKey.describe`."""
        data = self.call("POST", "decrypt", {"ciphertext": wrapped.decode("latin-1"), **_bound(context)})
        try:
            return b64decode(data["plaintext"], validate=True)
        except (KeyError, TypeError, ValueError):
            raise self._no_vault() from None

    def call(self, method: str, what: str, body: dict[str, str] | None = None) -> dict[str, Any]:
        """One call about this key: `data` of the answer."""
        tries = Retrying(
            retry=retry_if_exception_type(_Again),
            stop=stop_after_attempt(ATTEMPTS),
            wait=wait_random_exponential(multiplier=0.3, max=5),
            reraise=True,
        )
        try:
            return tries(self._once, method, what, body)
        except _Again as last:
            raise last.error from None

    def _once(self, method: str, what: str, body: dict[str, str] | None) -> dict[str, Any]:
        import httpx

        headers = {"X-Vault-Token": self.key.token().get_secret_value(), "X-Vault-Request": "true"}
        if self.key.namespace:
            headers["X-Vault-Namespace"] = self.key.namespace
        path = f"/v1/{self.key.mount}/{what}/{self.key.key}"
        try:
            answer = self._client.request(method, path, headers=headers, json=body)
        except httpx.TransportError as error:
            # Not `from error`: it holds the request, and that the token and the data key.
            raise _Again(_unreachable(self.key, error)) from None
        if answer.status_code != 200:
            raise _failure(self.key, what, answer)
        try:
            data = answer.json()["data"]
        except (ValueError, KeyError, TypeError):
            raise self._no_vault() from None
        if not isinstance(data, dict):
            raise self._no_vault()
        return data

    @cached_property
    def _client(self) -> "httpx.Client":
        import httpx

        parts = http_address(f"{'https' if self.key.tls else 'http'}://{self.key.address}", SHAPE)
        authority = os.environ.get("VAULT_CACERT")
        try:
            trust: ssl.SSLContext | bool = ssl.create_default_context(cafile=authority) if authority else True
        except OSError:
            raise EnvironmentFault(f"VAULT_CACERT: {authority} is no file of certificates.", "Correct it.") from None
        # A proxy set in the environment does not know this machine's loopback.
        own = parts.hostname in LOOPBACK
        timeout = httpx.Timeout(20, connect=5)
        return httpx.Client(base_url=parts.geturl(), verify=trust, trust_env=not own, timeout=timeout)

    def _no_vault(self) -> EnvironmentFault:
        return EnvironmentFault(f"What answers at {self.key.address} is no Vault.", "Check DMCP_VAULT_KEK.")


def _bound(context: Mapping[str, str]) -> dict[str, str]:
    """The context in the one encoding that is authenticated: JSON, sorted, in base64."""
    text = json.dumps(dict(context), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    encoded = b64encode(text.encode()).decode()
    return {"associated_data": encoded, "context": encoded}


# --- what went wrong --------------------------------------------------------------------------------------------------


def _failure(key: HashiVaultKey, what: str, answer: "httpx.Response") -> Exception:
    """The error for an answer other than 200; its text is not repeated: it may quote what was sent."""
    status, errors = answer.status_code, _errors(answer)
    error: DmcpError
    if status == 403:
        error = _denied(key, what)
    elif status == 404 or "encryption key not found" in errors:
        error = KeyVaultError(f"There is no transit key {key}.", "Check mount, key and namespace in DMCP_VAULT_KEK.")
    elif status == 400 and what == "decrypt":
        error = WrongKey(f"A wrapped key does not open under {key}.")
    elif "sealed" in errors:
        error = EnvironmentFault(f"Vault at {key.address} is sealed.", "Unseal it: bao (or vault) operator unseal")
    elif status in (301, 302, 303, 307, 308):
        error = EnvironmentFault(
            f"Vault at {key.address} sends us to another address.",
            "Name the active server, or a load balancer, in DMCP_VAULT_KEK: the token goes nowhere else.",
        )
    elif status == 429:
        error = EnvironmentFault(f"Vault at {key.address} is throttling.", "Try again, or raise its rate limit.")
    else:
        error = EnvironmentFault(f"Vault could not {what} with {key} (status {status}).", "Look into its log.")
    return _Again(error) if status in _WORTH_ANOTHER_TRY and "sealed" not in errors else error


def _denied(key: HashiVaultKey, what: str) -> VaultLocked:
    needed = "read" if what == "keys" else "update"
    return VaultLocked(
        f"Vault denies the token this: {what} {key}.",
        "The token (VAULT_TOKEN or token-file) is wrong or expired, or its policy lacks: "
        f'path "{key.mount}/{what}/{key.key}" {{ capabilities = ["{needed}"] }}',
    )


def _errors(answer: "httpx.Response") -> str:
    try:
        return " ".join(str(line) for line in answer.json()["errors"]).lower()
    except (ValueError, KeyError, TypeError):
        return ""


def _unreachable(key: HashiVaultKey, error: Exception) -> EnvironmentFault:
    if "CERTIFICATE_VERIFY_FAILED" in str(error) or "SSL" in str(error):
        cure = "VAULT_CACERT names a private authority; plain http is for loopback only (?tls=off)."
        return EnvironmentFault(f"No trusted connection to Vault at {key.address}.", cure)
    return EnvironmentFault(
        f"Vault at {key.address} does not answer ({type(error).__name__}).", "Check the network and DMCP_VAULT_KEK."
    )
