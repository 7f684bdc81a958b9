"""Vault's transit engine on loopback: its JSON protocol in memory, and a real OpenBao where one is installed.

`TransitServer` is like Vault in wire format, token and policy checks, key versions and types, errors, sealing, and in
that the associated data is authenticated by real AES-GCM. `OpenBao` is the real server (`bao` beside this Python or on
PATH). Both offer the same few methods, so the same tests run against both.
"""

import json
import os
import secrets
import shutil
import socket
import ssl
import subprocess
import sys
import time
from base64 import b64decode, b64encode
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx
from Crypto.Cipher import AES
from Crypto.Hash import HMAC, SHA256

from tests.storage.loopback import Loopback, Reply

ENCRYPT, DECRYPT, READ = "encrypt", "decrypt", "keys"
ALL = (ENCRYPT, DECRYPT, READ)


class TransitServer(Loopback):
    def __init__(self) -> None:
        self.keys: dict[str, dict[str, Any]] = {}
        self.tokens: dict[str, set[str]] = {}
        self.replies: list[Reply] = []  # answered first, one a call
        self.calls: list[tuple[str, dict[str, str], bytes]] = []
        self.sealed = False
        super().__init__()

    def uri(self, key: str) -> str:
        return f"hashivault://{self.address}/transit/{key}?tls=off"

    def add_key(self, name: str, type: str = "aes256-gcm96", derived: bool = False) -> None:
        self.keys[name] = {"type": type, "derived": derived, "versions": [secrets.token_bytes(32)]}

    def new_version(self, name: str) -> None:
        self.keys[name]["versions"].append(secrets.token_bytes(32))

    def add_token(self, key: str, capabilities: tuple[str, ...] = ALL) -> str:
        token = f"s.{secrets.token_hex(12)}"
        self.tokens[token] = {f"{what}/{key}" for what in capabilities}
        return token

    def set_sealed(self, sealed: bool) -> None:
        self.sealed = sealed

    def answer(self, request: BaseHTTPRequestHandler, body: bytes) -> Reply:
        self.calls.append((request.path, dict(request.headers), body))
        if self.replies:
            return self.replies.pop(0)
        if self.sealed:
            return self._refused(503, "Vault is sealed")
        mount, _, path = request.path.removeprefix("/v1/").partition("/")
        if path not in self.tokens.get(request.headers.get("X-Vault-Token", ""), ()):
            return self._refused(403, "permission denied")
        what, _, name = path.partition("/")
        if mount != "transit" or (name not in self.keys and what == READ):
            return self._refused(404)
        if name not in self.keys:
            return self._refused(400, "encryption key not found")
        key = self.keys[name]
        if what == READ:
            return self._data({"type": key["type"], "derived": key["derived"], "name": name})
        return self._encrypt(key, json.loads(body)) if what == ENCRYPT else self._decrypt(key, json.loads(body))

    def _encrypt(self, key: dict[str, Any], asked: dict[str, str]) -> Reply:
        cipher = self._cipher(key, len(key["versions"]), secrets.token_bytes(12), asked)
        sealed, tag = cipher.encrypt_and_digest(b64decode(asked["plaintext"], validate=True))
        text = b64encode(cipher.nonce + sealed + tag).decode()
        return self._data({"ciphertext": f"vault:v{len(key['versions'])}:{text}"})

    def _decrypt(self, key: dict[str, Any], asked: dict[str, str]) -> Reply:
        try:
            prefix, version, text = asked["ciphertext"].split(":")
            blob = b64decode(text, validate=True)
            assert prefix == "vault" and 1 <= int(version[1:]) <= len(key["versions"]) and len(blob) > 28
            cipher = self._cipher(key, int(version[1:]), blob[:12], asked)
            return self._data({"plaintext": b64encode(cipher.decrypt_and_verify(blob[12:-16], blob[-16:])).decode()})
        except (AssertionError, ValueError):
            return self._refused(400, "cipher: message authentication failed")

    def _cipher(self, key: dict[str, Any], version: int, nonce: bytes, asked: dict[str, str]) -> Any:
        secret = key["versions"][version - 1]
        if key["derived"]:
            secret = HMAC.new(secret, b64decode(asked["context"]), SHA256).digest()
        cipher = AES.new(secret, AES.MODE_GCM, nonce=nonce)
        cipher.update(b64decode(asked.get("associated_data", "")))
        return cipher

    def _data(self, data: dict[str, Any]) -> Reply:
        return Reply(200, json.dumps({"data": data}).encode(), {"Content-Type": "application/json"})

    def _refused(self, status: int, *errors: str) -> Reply:
        return Reply(status, json.dumps({"errors": list(errors)}).encode(), {"Content-Type": "application/json"})


def find_openbao() -> str | None:
    """The program, when it is installed: beside this Python, or on PATH."""
    return shutil.which("bao", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))


class OpenBao:
    """A real OpenBao in memory (development mode, unsealed), over http or https. Use in a `with` block."""

    def __init__(self, folder: Path, tls: bool = False) -> None:
        program = find_openbao()
        assert program is not None
        self.root = f"root-{secrets.token_hex(8)}"
        self.tls = tls
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.authority = folder / "vault-ca.pem"
        how = ["-dev-tls", f"-dev-tls-cert-dir={folder}"] if tls else ["-dev"]
        command = [program, "server", *how, f"-dev-listen-address={self.address}", "-dev-no-store-token"]
        self._log = (folder / "bao.log").open("wb")
        environment = {"HOME": str(folder), "BAO_DEV_ROOT_TOKEN_ID": self.root, "PATH": os.environ["PATH"]}
        self._process = subprocess.Popen(command, stdout=self._log, stderr=self._log, env=environment, cwd=folder)

    def __enter__(self) -> "OpenBao":
        scheme = "https" if self.tls else "http"
        deadline = time.monotonic() + 60
        while True:
            try:
                verify = ssl.create_default_context(cafile=self.authority) if self.tls else True
                self._client = httpx.Client(
                    base_url=f"{scheme}://{self.address}/v1", verify=verify, trust_env=False, timeout=30
                )
                if self._client.get("/sys/health").status_code == 200:
                    break
            except (httpx.TransportError, OSError):
                assert self._process.poll() is None, Path(self._log.name).read_text()
                assert time.monotonic() < deadline
            time.sleep(0.1)
        self.call("POST", "/sys/mounts/transit", {"type": "transit"})
        return self

    def __exit__(self, *error: object) -> None:
        self._process.terminate()
        self._process.wait(30)
        self._log.close()

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        answer = self._client.request(method, path, json=body, headers={"X-Vault-Token": self.root})
        assert answer.status_code in (200, 204), answer.text
        return answer.json() if answer.content else {}

    def uri(self, key: str) -> str:
        return f"hashivault://{self.address}/transit/{key}{'' if self.tls else '?tls=off'}"

    def add_key(self, name: str, type: str = "aes256-gcm96", derived: bool = False) -> None:
        self.call("POST", f"/transit/keys/{name}", {"type": type, "derived": derived})

    def new_version(self, name: str) -> None:
        self.call("POST", f"/transit/keys/{name}/rotate")

    def add_token(self, key: str, capabilities: tuple[str, ...] = ALL) -> str:
        rules = [
            f'path "transit/{what}/{key}" {{ capabilities = ["{"read" if what == READ else "update"}"] }}'
            for what in capabilities
        ]
        policy = f"p{secrets.token_hex(6)}"
        self.call("PUT", f"/sys/policies/acl/{policy}", {"policy": "\n".join(rules)})
        made = self.call("POST", "/auth/token/create", {"policies": [policy], "no_default_policy": True})
        return str(made["auth"]["client_token"])
