"""What the embedded object store keeps below HOME: folders, credentials, where it answers; see `storage/server.py`."""

import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from storage.errors import ServiceError
from storage.files import write_atomic
from storage.ports import LOOPBACK

if TYPE_CHECKING:
    from storage.objects import ObjectStore


@dataclass(frozen=True)
class ServerAddress:
    """Where the embedded server answers, and with which credentials."""

    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)
    region: str = "us-east-1"

    def environment(self) -> dict[str, str]:
        """Environment variables that lead boto3, DVC and MLflow to this server. Holds the secret: never log it."""
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
            "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        }

    def store(
        self, bucket: str, prefix: str = "", attempts: int | None = None, read_timeout: float = 60
    ) -> "ObjectStore":
        """A client for one of this server's buckets; see `ObjectStore`."""
        from storage.objects import ObjectStore

        keys = (self.access_key, self.secret_key)
        store = ObjectStore(self.endpoint, self.region, *keys, bucket, prefix, attempts, read_timeout)
        store.embedded = True
        return store


@dataclass(frozen=True)
class ServerState:
    """What server.json says: the port (kept when the server stops, so that addresses stay), the process, its life."""

    port: int
    pid: int | None
    keep: bool


def folder(home: Path) -> Path:
    """Where the server's files and the objects lie."""
    return home.resolve() / "objects"


def buckets(home: Path) -> Path:
    """The folder that is served: one folder a bucket."""
    return folder(home) / "buckets"


def log_file(home: Path) -> Path:
    """The server's log, of at most 10 MB, with two older ones beside it."""
    return home.resolve() / "logs" / "objects.log"


def make_folders(home: Path) -> None:
    """Make the folders, for this user only."""
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    for path in (folder(home), buckets(home)):
        path.mkdir(exist_ok=True, mode=0o700)


def credentials(home: Path) -> tuple[str, str]:
    """Access and secret key, generated at the first call.

    Raises:
        ServiceError: the file can not be used.
    """
    path = folder(home) / "credentials.json"
    try:
        stored = json.loads(path.read_bytes())
        return str(stored["access_key"]), str(stored["secret_key"])
    except FileNotFoundError:
        made = {"access_key": secrets.token_hex(10).upper(), "secret_key": secrets.token_hex(20)}
        write_atomic(path, json.dumps(made).encode(), mode=0o600)
        return made["access_key"], made["secret_key"]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ServiceError(
            f"The credentials in {path} can not be read ({type(error).__name__}).",
            "Remove the file and run `dmcp down`, then `dmcp up`: new ones are made, the objects stay.",
        ) from error


def read_state(home: Path) -> ServerState | None:
    """What server.json says; None when it is missing or damaged (then a new one is written)."""
    try:
        stored = json.loads((folder(home) / "server.json").read_bytes())
        pid = stored["pid"]
        return ServerState(int(stored["port"]), None if pid is None else int(pid), bool(stored["keep"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_state(home: Path, state: ServerState) -> None:
    """Write server.json, whole or not at all."""
    content = {"endpoint": f"http://{LOOPBACK}:{state.port}", "port": state.port, "pid": state.pid, "keep": state.keep}
    write_atomic(folder(home) / "server.json", json.dumps(content).encode(), mode=0o600)


def address_at(home: Path, port: int) -> ServerAddress:
    """The address of this home's server on that port."""
    return ServerAddress(f"http://{LOOPBACK}:{port}", *credentials(home))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file; it ends with the process, however that ends."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
