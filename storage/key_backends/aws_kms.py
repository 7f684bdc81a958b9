"""AWS KMS as key-encryption key: each data key is encrypted and decrypted by a symmetric KMS key that never leaves AWS.

    DMCP_VAULT_KEK=aws-kms://alias/dmcp?region=eu-central-1
    DMCP_VAULT_KEK=aws-kms://arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab
    options: region=NAME, profile=NAME (of ~/.aws/config), endpoint=https://... (a VPC endpoint)

Credentials come from boto3's own chain (environment, profile, role of the machine); none stand in the URI. Where the
environment holds the credentials of another object store, name a profile here.

Permissions, on this one key:

    kms:Decrypt                    whoever protects or restores
    kms:Encrypt                    whoever makes keys as well
    kms:DescribeKey                whoever makes, rotates or restores the vault: the key's ARN is written into it

The encryption context is the wrapping's own (key_id, dataset, epoch, created), so a policy can allow one data set only
(`kms:EncryptionContext:dataset`), and CloudTrail names data set and key id of every use. It is authenticated, and not
secret. Every vault also wraps one key of its own, under the context `purpose: dmcp/v1/vault-mac`.

Only symmetric keys (SYMMETRIC_DEFAULT). KMS's yearly rotation needs nothing here. Decrypt names the key, so that
a wrapped key made under another key, in whoever's account, is refused.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field

from storage.errors import DmcpError, EnvironmentFault, KeyVaultError, SettingsError, VaultLocked, WrongKey
from storage.key_backends.uris import LOOPBACK, http_address, take_apart, unusable

SHAPE = "aws-kms://KEY?region=REGION, where KEY is an id, alias/NAME or an ARN."
ATTEMPTS = 4

_ARN = r"arn:aws[a-z-]*:kms:[a-z0-9-]+:[0-9]{12}"
_KEY_ID = r"(mrk-[0-9a-f]{32}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})"
_ALIAS = r"alias/[A-Za-z0-9/_-]{1,250}"
_KEY = re.compile(rf"({_ARN}:)?{_ALIAS}|{_ARN}:key/{_KEY_ID}|{_KEY_ID}")


class StoredAwsKms(BaseModel):
    """What a vault stores of its KMS key: the ARN."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["aws-kms"] = "aws-kms"
    key: Annotated[str, Field(pattern=rf"^{_ARN}:key/{_KEY_ID}$")]

    def __str__(self) -> str:
        return f"aws-kms://{self.key}"


@dataclass(frozen=True)
class AwsKmsKey:
    """A KMS key as a URI names it."""

    key: str
    region: str | None = None
    endpoint: str | None = None
    profile: str | None = None

    @classmethod
    def parse(cls, rest: str) -> "AwsKmsKey":
        """From what follows `aws-kms://`. Raises SettingsError."""
        key, options = take_apart(rest, ("region", "endpoint", "profile"), SHAPE)
        if not _KEY.fullmatch(key):
            raise unusable("it names no KMS key", SHAPE)
        if "endpoint" in options:
            http_address(options["endpoint"], SHAPE)
        of_arn = key.split(":")[3] if key.startswith("arn:") else None
        return cls(key, options.get("region", of_arn), options.get("endpoint"), options.get("profile"))

    def describe(self) -> StoredAwsKms:
        """What a new vault stores: the key's ARN, for a key that can encrypt.

        Raises:
            VaultLocked: the credentials are missing, wrong, or may not do this.
            KeyVaultError: there is no such key, or it is disabled or of another sort.
            EnvironmentFault: KMS does not answer, or throttles.
        """
        backend = AwsKms(self)
        with _translated(self, "describe"):
            answer = backend.client.describe_key(KeyId=self.key)["KeyMetadata"]
        if answer.get("KeyState") != "Enabled":
            raise _disabled(self, str(answer.get("KeyState")))
        if answer.get("KeySpec") != "SYMMETRIC_DEFAULT" or answer.get("KeyUsage") != "ENCRYPT_DECRYPT":
            raise KeyVaultError(
                f"The KMS key {self.key} is not symmetric.", "Make one with key spec SYMMETRIC_DEFAULT."
            )
        return StoredAwsKms(key=answer["Arn"])

    def open(self, stored: StoredAwsKms) -> "AwsKms":
        """The backend. Raises VaultLocked when the vault says that it was locked with another key.

        What an alias names is KMS's to say: if it was moved to another key, decrypting fails.
        """
        plain = self.key.rpartition(":key/")[2]
        if "alias/" not in self.key and plain != stored.key.rpartition("/")[2]:
            raise VaultLocked(
                f"The vault is locked with {stored}, and DMCP_VAULT_KEK names another key.",
                "Set it to the vault's own key; to change the key: dmcp key rotate --to URI",
            )
        return AwsKms(self)

    def __str__(self) -> str:
        return f"aws-kms://{self.key}"


class AwsKms:
    """`KeyEncryption` by KMS's Encrypt and Decrypt."""

    def __init__(self, key: AwsKmsKey) -> None:
        self.key = key

    def __repr__(self) -> str:
        return f"AwsKms({self.key.key!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("key-encryption backends do not leave the process: open the vault again over there")

    def wrap(self, secret: bytes, context: Mapping[str, str]) -> bytes:
        """KMS's own ciphertext, some 200 bytes."""
        with _translated(self.key, "encrypt with"):
            answer = self.client.encrypt(KeyId=self.key.key, Plaintext=secret, EncryptionContext=dict(context))
        return bytes(answer["CiphertextBlob"])

    def unwrap(self, wrapped: bytes, context: Mapping[str, str]) -> bytes:
        """Raises WrongKey when key, context or bytes are not those of `wrap`; else as `AwsKmsKey.describe`."""
        with _translated(self.key, "decrypt with"):
            answer = self.client.decrypt(KeyId=self.key.key, CiphertextBlob=wrapped, EncryptionContext=dict(context))
        return bytes(answer["Plaintext"])

    @cached_property
    def client(self) -> Any:
        """The boto3 client, made at the first use: it takes a third of a second."""
        import boto3
        from botocore.config import Config

        key = self.key
        local = key.endpoint is not None and http_address(key.endpoint, SHAPE).hostname in LOOPBACK
        config = Config(
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
            connect_timeout=5,
            read_timeout=20,
            proxies={} if local else None,  # a proxy set in the environment does not know this machine's loopback
        )
        with _translated(key, "reach"):
            session = boto3.session.Session(profile_name=key.profile, region_name=key.region)
            return session.client("kms", endpoint_url=key.endpoint, config=config)


# --- what went wrong --------------------------------------------------------------------------------------------------

_CREDENTIALS = {
    "ExpiredToken",
    "ExpiredTokenException",
    "IncompleteSignature",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidSignatureException",
    "MissingAuthenticationToken",
    "MissingAuthenticationTokenException",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
}
_THROTTLED = {"ThrottlingException", "Throttling", "TooManyRequestsException", "LimitExceededException"}
_CHECK_CREDENTIALS = "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, the profile or the role, and the clock."


@contextmanager
def _translated(key: AwsKmsKey, action: str) -> Iterator[None]:
    """Run a block of boto3 calls, unlogged; its errors leave as this project's, without the request they hold."""
    from botocore.exceptions import BotoCoreError, ClientError

    quiet = _quiet.set(True)
    _guard_logs()
    try:
        yield
    except ClientError as error:
        raise _answered(key, action, error.response) from None
    except BotoCoreError as error:
        raise _unanswered(key, action, error) from None
    finally:
        _quiet.reset(quiet)


def _answered(key: AwsKmsKey, action: str, response: Any) -> DmcpError:
    """KMS answered, with an error; its text is not repeated: it may quote what was sent."""
    code = str(response.get("Error", {}).get("Code", ""))
    error: DmcpError
    if code in ("InvalidCiphertextException", "IncorrectKeyException"):
        error = WrongKey(f"A wrapped key does not open under the KMS key {key.key} ({code}).")
    elif code in _CREDENTIALS:
        error = VaultLocked(f"AWS does not accept the credentials ({code}).", _CHECK_CREDENTIALS)
    elif code in ("AccessDeniedException", "AccessDenied"):
        needed = "kms:Decrypt (to make keys kms:Encrypt, to make or rotate the vault kms:DescribeKey)"
        error = VaultLocked(f"AWS does not let you {action} the KMS key {key.key}.", f"Allow {needed} on this key.")
    elif code in _THROTTLED:
        error = EnvironmentFault(f"AWS KMS is throttling ({code}).", "Try again in a while, or raise the quota.")
    elif code in ("NotFoundException", "InvalidArnException"):
        cure = "Check key, region and account in DMCP_VAULT_KEK."
        error = KeyVaultError(f"There is no KMS key {key.key} here.", cure)
    elif code in ("DisabledException", "KMSInvalidStateException", "InvalidKeyUsageException"):
        error = _disabled(key, code)
    else:
        error = EnvironmentFault(
            f"AWS KMS could not {action} {key.key} ({code}).", "Try again; see the service's health."
        )
    return error


def _disabled(key: AwsKmsKey, state: str) -> KeyVaultError:
    return KeyVaultError(
        f"The KMS key {key.key} can not be used now ({state}).",
        "Enable it. If it is about to be deleted, cancel that at once: with it every data key is lost.",
    )


def _unanswered(key: AwsKmsKey, action: str, error: Exception) -> DmcpError:
    from botocore import exceptions as boto

    name = type(error).__name__
    if isinstance(error, boto.NoRegionError):
        return SettingsError("No region is set for AWS KMS.", "Add ?region=NAME to DMCP_VAULT_KEK, or use an ARN.")
    if isinstance(error, boto.SSLError):
        return EnvironmentFault(
            f"No trusted connection to AWS KMS ({name}).", "AWS_CA_BUNDLE names a private authority."
        )
    if isinstance(error, boto.ConnectionError | boto.HTTPClientError):
        return EnvironmentFault(
            f"AWS KMS does not answer ({name}), so it can not {action} {key.key}.",
            "Check the network, and region and endpoint in DMCP_VAULT_KEK.",
        )
    missing = (boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError)
    others = (boto.ProfileNotFound, boto.TokenRetrievalError, boto.SSOError)
    if isinstance(error, missing + others):
        return VaultLocked(
            f"The vault is locked with {key}, and there are no AWS credentials ({name}).", _CHECK_CREDENTIALS
        )
    return EnvironmentFault(f"Could not {action} the KMS key {key.key} ({name}).", "Check DMCP_VAULT_KEK.")


# --- boto3's logs -----------------------------------------------------------------------------------------------------

_quiet: ContextVar[bool] = ContextVar("quiet", default=False)


class _Withheld(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not _quiet.get()


_WITHHELD = _Withheld()


def _guard_logs() -> None:
    """At level DEBUG botocore logs whole requests and answers, and with them data keys in clear: not ours."""
    for name in ("auth", "awsrequest", "endpoint", "hooks", "httpsession", "parsers", "regions", "retryhandler"):
        logging.getLogger(f"botocore.{name}").addFilter(_WITHHELD)
