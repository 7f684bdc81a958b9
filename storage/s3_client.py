"""How boto3 is set up here, and what an S3 server makes of a file: addresses, retries, parts, ETags."""

import base64
import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from storage.errors import SettingsError

if TYPE_CHECKING:
    from boto3.s3.transfer import TransferConfig

PART_BYTES = 16 << 20
"""Files above `MULTIPART_FROM` go up in parts of this size; it decides their ETag."""
MULTIPART_FROM = 64 << 20

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class FileDigest:
    """A file's size in bytes, its SHA-256 (hex) and the ETags that an S3 server may give it."""

    size: int
    sha256: str
    etags: frozenset[str]


def digest_file(path: Path) -> FileDigest:
    """Read a file once and digest it all the ways that are needed to recognise it in a bucket.

    The ETags are the MD5 of the whole (single puts anywhere, and every object on the embedded server) and, for files
    that go up in parts, the MD5 of the parts' MD5s, as AWS composes it.
    """
    in_parts = path.stat().st_size >= MULTIPART_FROM
    size, whole, sha256, parts = 0, _md5(), hashlib.sha256(), []
    with path.open("rb") as file:
        while block := file.read(PART_BYTES):
            size += len(block)
            whole.update(block)
            sha256.update(block)
            if in_parts:
                parts.append(_md5(block).digest())
    etags = {whole.hexdigest()}
    if in_parts:
        etags.add(f"{_md5(b''.join(parts)).hexdigest()}-{len(parts)}")
    return FileDigest(size, sha256.hexdigest(), frozenset(etags))


def digest_bytes(data: bytes) -> FileDigest:
    """`digest_file` of what goes up in a single put."""
    return FileDigest(len(data), hashlib.sha256(data).hexdigest(), frozenset({_md5(data).hexdigest()}))


def content_md5(data: bytes) -> str:
    """Value of the Content-MD5 header: the server refuses what does not match it."""
    return base64.b64encode(_md5(data).digest()).decode()


def _md5(data: bytes = b"") -> Any:
    """MD5 as S3 uses it, against transfer errors only."""
    return hashlib.md5(data, usedforsecurity=False)


def plain_endpoint(endpoint: str) -> str:
    """The endpoint as it may be shown: scheme, host and port, without a user's name or password.

    Raises:
        SettingsError: not an http or https address.
    """
    try:
        parts = urlsplit(endpoint)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        parts, port = urlsplit(""), ""
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingsError(
            "The address of the object store can not be used.", "DMCP_S3_ENDPOINT looks like https://host[:port]."
        )
    return f"{parts.scheme}://{parts.hostname}{port}"


def make_client(
    endpoint: str,
    region: str,
    access_key: str | None,
    secret_key: str | None,
    attempts: int | None,
    read_timeout: float,
) -> Any:
    """A boto3 S3 client; see `ObjectStore` for the arguments."""
    import boto3
    import botocore.session
    from botocore import UNSIGNED
    from botocore.config import Config

    core = botocore.session.Session()
    core.register_component("data_loader", _tables())
    session = boto3.session.Session(access_key, secret_key, botocore_session=core)
    host = urlsplit(endpoint).hostname or ""
    local = host in _LOOPBACK
    checksums = "when_supported" if host.endswith(".amazonaws.com") else "when_required"
    config = Config(
        region_name=region,
        signature_version="s3v4" if session.get_credentials() else UNSIGNED,
        s3={"addressing_style": "path"},
        request_checksum_calculation=checksums,
        response_checksum_validation=checksums,
        retries={"mode": "standard", "total_max_attempts": attempts or (3 if local else 5)},
        connect_timeout=5 if local else 10,
        read_timeout=read_timeout,
        max_pool_connections=32,
        proxies={} if local else None,  # a proxy set in the environment does not know this machine's loopback
    )
    return session.client("s3", endpoint_url=endpoint, config=config)


@cache
def _tables() -> Any:
    """boto3's tables of services, read once a process: that takes ten times as long as all else a client needs."""
    from botocore.loaders import create_loader

    return create_loader()


def transfer_config() -> "TransferConfig":
    """Up- and downloads of files: parts of 16 MiB, two at once (several files go at once already)."""
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(
        multipart_threshold=MULTIPART_FROM, multipart_chunksize=PART_BYTES, max_concurrency=2, use_threads=True
    )
