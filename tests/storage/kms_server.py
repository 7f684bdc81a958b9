"""AWS KMS's JSON protocol on loopback: Encrypt, Decrypt, DescribeKey, with signatures checked and real AES-GCM.

What is like AWS: the wire format (JSON 1.1, `X-Amz-Target`), Signature Version 4, error codes, the key's ARN in every
ciphertext, the encryption context as associated data. What is not: policies (a set of actions a user), durability.
"""

import hashlib
import hmac
import json
import secrets
from base64 import b64decode, b64encode
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from Crypto.Cipher import AES

from tests.storage.loopback import Loopback, Reply

ACCOUNT = "111122223333"
REGION = "eu-central-1"
ALL = frozenset(("Encrypt", "Decrypt", "DescribeKey"))


@dataclass
class Key:
    arn: str
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    state: str = "Enabled"
    spec: str = "SYMMETRIC_DEFAULT"


class Failure(Exception):
    def __init__(self, code: str, status: int = 400) -> None:
        super().__init__(code)
        self.code, self.status = code, status


class KmsServer(Loopback):
    def __init__(self) -> None:
        self.keys: dict[str, Key] = {}
        self.aliases: dict[str, str] = {}
        self.users: dict[str, tuple[str, frozenset[str]]] = {}
        self.failures: list[Failure] = []  # answered first, one a call
        self.calls: list[tuple[str, dict[str, Any]]] = []
        super().__init__()

    def add_key(self, alias: str | None = None, **changes: Any) -> Key:
        plain = "-".join(secrets.token_hex(n) for n in (4, 2, 2, 2, 6))
        key = Key(f"arn:aws:kms:{REGION}:{ACCOUNT}:key/{plain}", **changes)
        self.keys[key.arn] = key
        if alias:
            self.aliases[alias] = key.arn
        return key

    def add_user(self, actions: frozenset[str] = ALL) -> tuple[str, str]:
        name, secret = f"AKIA{secrets.token_hex(8).upper()}", secrets.token_hex(20)
        self.users[name] = secret, actions
        return name, secret

    def uri(self, key: str) -> str:
        return f"aws-kms://{key}?region={REGION}&endpoint={self.url}"

    def answer(self, request: BaseHTTPRequestHandler, body: bytes) -> Reply:
        try:
            action = request.headers["X-Amz-Target"].removeprefix("TrentService.")
            allowed = self._authenticate(request, body)
            asked = json.loads(body)
            self.calls.append((action, asked))
            if self.failures:
                raise self.failures.pop(0)
            if action not in allowed:
                raise Failure("AccessDeniedException")
            done: dict[str, Any] = getattr(self, f"_{action.lower()}")(asked)
            return Reply(200, json.dumps(done).encode(), {"Content-Type": "application/x-amz-json-1.1"})
        except Failure as failure:
            # As AWS does, the message repeats what was asked.
            text = json.dumps({"__type": failure.code, "message": f"refused {body.decode(errors='replace')}"})
            return Reply(failure.status, text.encode(), {"Content-Type": "application/x-amz-json-1.1"})

    def _authenticate(self, request: BaseHTTPRequestHandler, body: bytes) -> frozenset[str]:
        """Signature Version 4, from its specification."""
        header = request.headers.get("Authorization", "")
        if not header.startswith("AWS4-HMAC-SHA256 "):
            raise Failure("MissingAuthenticationTokenException")
        parts = dict(part.strip().split("=", 1) for part in header.split(" ", 1)[1].split(","))
        name, *scope = parts["Credential"].split("/")
        if name not in self.users:
            raise Failure("UnrecognizedClientException")
        secret, allowed = self.users[name]
        signed = parts["SignedHeaders"].split(";")
        assert {"host", "x-amz-date", "x-amz-target"} <= set(signed)
        lines = "".join(f"{n}:{' '.join(request.headers[n].split())}\n" for n in signed)
        canonical = f"POST\n/\n\n{lines}\n{';'.join(signed)}\n{hashlib.sha256(body).hexdigest()}"
        key = f"AWS4{secret}".encode()
        for part in scope:
            key = hmac.digest(key, part.encode(), "sha256")
        date = request.headers["X-Amz-Date"]
        text = f"AWS4-HMAC-SHA256\n{date}\n{'/'.join(scope)}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        if scope[1:] != [REGION, "kms", "aws4_request"] or not hmac.compare_digest(
            hmac.digest(key, text.encode(), "sha256").hex(), parts["Signature"]
        ):
            raise Failure("InvalidSignatureException")
        return allowed

    def _find(self, name: str) -> Key:
        arn = self.aliases.get(name, name)
        arn = arn if arn.startswith("arn:") else f"arn:aws:kms:{REGION}:{ACCOUNT}:key/{arn}"
        if arn not in self.keys:
            raise Failure("NotFoundException")
        return self.keys[arn]

    def _usable(self, name: str) -> Key:
        key = self._find(name)
        if key.state != "Enabled":
            raise Failure("DisabledException" if key.state == "Disabled" else "KMSInvalidStateException")
        return key

    def _describekey(self, asked: dict[str, Any]) -> dict[str, Any]:
        key = self._find(asked["KeyId"])
        metadata = {"Arn": key.arn, "KeyId": key.arn.rpartition("/")[2], "KeyState": key.state, "KeySpec": key.spec}
        usage = "ENCRYPT_DECRYPT" if key.spec == "SYMMETRIC_DEFAULT" else "SIGN_VERIFY"
        return {"KeyMetadata": {**metadata, "KeyUsage": usage, "Enabled": key.state == "Enabled"}}

    def _encrypt(self, asked: dict[str, Any]) -> dict[str, Any]:
        key = self._usable(asked["KeyId"])
        cipher = self._cipher(key, secrets.token_bytes(12), asked)
        sealed, tag = cipher.encrypt_and_digest(b64decode(asked["Plaintext"]))
        blob = key.arn.encode() + b"\0" + cipher.nonce + tag + sealed
        return {"KeyId": key.arn, "CiphertextBlob": b64encode(blob).decode()}

    def _decrypt(self, asked: dict[str, Any]) -> dict[str, Any]:
        named = self._usable(asked["KeyId"])
        arn, _, rest = b64decode(asked["CiphertextBlob"]).partition(b"\0")
        key = self.keys.get(arn.decode("latin-1"))
        if key is None or len(rest) < 28:
            raise Failure("InvalidCiphertextException")
        if key is not named:
            raise Failure("IncorrectKeyException")
        try:
            plain = self._cipher(key, rest[:12], asked).decrypt_and_verify(rest[28:], rest[12:28])
        except ValueError:
            raise Failure("InvalidCiphertextException") from None
        return {"KeyId": key.arn, "Plaintext": b64encode(plain).decode()}

    def _cipher(self, key: Key, nonce: bytes, asked: dict[str, Any]) -> Any:
        cipher = AES.new(key.secret, AES.MODE_GCM, nonce=nonce)
        cipher.update(json.dumps(asked.get("EncryptionContext", {}), sort_keys=True).encode())
        return cipher
