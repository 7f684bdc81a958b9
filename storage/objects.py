"""A small, typed S3 client: what this project asks of an object store, with errors that say what to do.

One `ObjectStore` is one bucket (and prefix) at one endpoint. It works with any S3-compatible server: addresses are
path-style, signatures version 4, and the newer checksum headers are sent only to AWS itself, since others refuse
them. Requests are retried by botocore (mode `standard`), interrupted downloads by s3transfer. Without any credentials
requests go out unsigned, which is how anyone reads a public bucket. An object is safe to use from several threads.

Nothing relies on object metadata or on conditional puts: the embedded server forgets the former when it is killed and
ignores the latter (`storage/guarantee.py`). What must be right is checked by its SHA-256.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from storage import object_errors, s3_client
from storage.disk import writing
from storage.errors import CorruptShard, NotFound, ObjectStoreError, SettingsError, UsageError
from storage.s3_client import FileDigest
from storage.settings import Settings

MAX_IN_MEMORY = 64 << 20
"""Largest object that `get` reads into memory."""

Advance = Callable[[int], None]
"""Called with the number of bytes just moved, possibly from several threads."""


@dataclass(frozen=True)
class ObjectInfo:
    """One object: its key below the store's prefix, size in bytes, ETag without quotes, time of writing (UTC)."""

    key: str
    size: int
    etag: str
    modified: datetime


@dataclass(frozen=True)
class Unfinished:
    """An upload in parts that was begun and neither ended nor given up: key below the prefix, its id, when (UTC)."""

    key: str
    upload_id: str
    begun: datetime


class ObjectStore:
    """One bucket and prefix at one S3-compatible endpoint.

    Every method raises ObjectStoreError when the server is out of reach, refuses the credentials or answers with
    another error, and UsageError for a key that no server would keep apart from others.

    Args:
        endpoint: address of the server, e.g. `https://s3.eu-central-1.amazonaws.com`.
        region: AWS region; other servers take any.
        access_key: None for the AWS default chain (environment, profile, instance role), and unsigned without those.
        secret_key: goes with `access_key`.
        bucket: name of the bucket.
        prefix: put before every key; with or without a slash at the end.
        attempts: tries of one request; None: 3 on this machine, 5 elsewhere.
        read_timeout: seconds without a byte after which a try is given up.
    """

    def __init__(
        self,
        endpoint: str,
        region: str,
        access_key: str | None,
        secret_key: str | None,
        bucket: str,
        prefix: str = "",
        attempts: int | None = None,
        read_timeout: float = 60,
    ) -> None:
        self.endpoint = s3_client.plain_endpoint(endpoint)
        self.bucket = bucket
        self.prefix = f"{_checked_key(prefix.strip('/'))}/" if prefix.strip("/") else ""
        self.region = region
        self.quotes_etags = True
        """Whether If-Match has the ETag in quotes, as in HTTP; some servers want it bare (`storage/guarantee.py`)."""
        self.embedded = False
        """Whether the server is this machine's own, for messages: what others published is not there."""
        self._client = s3_client.make_client(endpoint, region, access_key, secret_key, attempts, read_timeout)

    def __repr__(self) -> str:
        return f"ObjectStore({self.where()})"

    def where(self, key: str = "") -> str:
        """Endpoint, bucket and key as they are shown to people."""
        return f"{self.endpoint}/{self.bucket}/{self.prefix}{key}"

    def ensure_bucket(self) -> None:
        """Create the bucket when it does not exist."""
        with self._errors("look for", ""):
            try:
                self._client.head_bucket(Bucket=self.bucket)
                return
            except self._client.exceptions.ClientError as error:
                if object_errors.code(error) not in object_errors.MISSING:
                    raise
        elsewhere = {"CreateBucketConfiguration": {"LocationConstraint": self.region}}
        with self._errors("create", ""):
            try:
                self._client.create_bucket(Bucket=self.bucket, **({} if self.region == "us-east-1" else elsewhere))
            except self._client.exceptions.ClientError as error:
                if object_errors.code(error) not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                    raise

    def put_bytes(
        self,
        key: str,
        data: bytes,
        if_none_match: bool = False,
        if_match: str | None = None,
        content_type: str = "application/octet-stream",
    ) -> str:
        """Store bytes and return the ETag. The server checks their MD5, so what it acknowledges is whole.

        Args:
            key: where, below the prefix.
            data: the content.
            if_none_match: only when nothing is there yet, on servers that honour it (`storage/guarantee.py`).
            if_match: only when the object there still has this ETag, likewise.
            content_type: what a browser is told.

        Raises:
            PublicationConflict: the condition does not hold. A request that was retried may meet its own first try,
                so compare what is there before giving up.
        """
        etag = f'"{if_match}"' if self.quotes_etags else if_match
        condition = {"IfNoneMatch": "*"} if if_none_match else {"IfMatch": etag} if if_match else {}
        with self._errors("write", key):
            answer = self._client.put_object(
                **self._at(key),
                Body=data,
                ContentType=content_type,
                ContentMD5=s3_client.content_md5(data),
                **condition,
            )
        return str(answer["ETag"]).strip('"')

    def put_file(
        self,
        path: Path,
        key: str,
        sha256: str | None = None,
        content_type: str = "application/octet-stream",
        advance: Advance | None = None,
    ) -> None:
        """Upload a file, in parts when it is large. The object appears only when it is whole.

        `sha256` is stored as metadata for people to compare; nothing here trusts it. To be sure of the upload, ask
        `holds` afterwards.
        """
        extra: dict[str, Any] = {"ContentType": content_type, "Metadata": {"sha256": sha256} if sha256 else {}}
        with self._errors("upload", key):
            self._client.upload_file(
                str(path), **self._at(key), ExtraArgs=extra, Callback=advance, Config=s3_client.transfer_config()
            )

    def holds(self, key: str, digest: FileDigest) -> bool:
        """Whether the object is there and is exactly this file.

        Size and ETag decide when the ETag is one of the file's MD5 forms, at the price of one HEAD. Where it is none
        (buckets encrypted with KMS, other part sizes, altered objects) the object is read back and its SHA-256
        decides.
        """
        try:
            info = self.head(key)
        except NotFound:
            return False
        if info.size != digest.size:
            return False
        return info.etag in digest.etags or self._sha256(key) == digest.sha256

    def get(self, key: str) -> tuple[bytes, str]:
        """Content and ETag of a small object (at most 64 MiB).

        Raises:
            NotFound: no such object.
        """
        with self._errors("read", key):
            answer = self._client.get_object(**self._at(key))
            with closing(answer["Body"]) as body:
                data: bytes = body.read(MAX_IN_MEMORY + 1)
        if len(data) > MAX_IN_MEMORY:
            raise ObjectStoreError(
                f"{self.where(key)} is larger than {MAX_IN_MEMORY >> 20} MiB, too large for what it should be.",
                "Look at it with an S3 tool; publish or upload it again.",
            )
        return data, str(answer["ETag"]).strip('"')

    def get_bytes(self, key: str) -> bytes:
        """Content of a small object; see `get`."""
        return self.get(key)[0]

    def get_file(
        self,
        key: str,
        path: Path,
        sha256: str | None = None,
        size: int | None = None,
        advance: Advance | None = None,
    ) -> None:
        """Download an object. `path` appears only when the file is whole and, if asked, verified.

        Raises:
            NotFound: no such object.
            CorruptShard: size or SHA-256 is not the expected one; nothing is kept.
            DiskFault: the disk is full, or the folder can not be written.
        """
        stored = self.head(key).size
        if size is not None and stored != size:
            raise self._corrupt(key, f"it has {stored} bytes instead of {size}")
        part = path.with_name(f"{path.name}.part")
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._download(key, part, path, sha256, advance)

    def _download(self, key: str, part: Path, path: Path, sha256: str | None, advance: Advance | None) -> None:
        try:
            with self._errors("download", key):
                self._client.download_file(
                    **self._at(key), Filename=str(part), Callback=advance, Config=s3_client.transfer_config()
                )
            if sha256 is not None:
                with part.open("rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                        raise self._corrupt(key, "its SHA-256 is not the expected one")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def head(self, key: str) -> ObjectInfo:
        """Size, ETag and time of an object.

        Raises:
            NotFound: no such object (or no such bucket: servers do not tell).
        """
        with self._errors("look at", key):
            answer = self._client.head_object(**self._at(key))
        return _info(key, answer["ContentLength"], answer)

    def size(self, key: str) -> int:
        """Size of an object in bytes; NotFound when there is none."""
        return self.head(key).size

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        try:
            self.head(key)
        except NotFound:
            return False
        return True

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """All objects whose keys begin with `prefix`, page by page; none when the bucket is empty.

        Raises:
            NotFound: no such bucket.
        """
        with self._errors("list", prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=self.prefix + prefix
            )
            for page in pages:
                for entry in page.get("Contents", ()):
                    key = entry["Key"].removeprefix(self.prefix)
                    yield _info(key, entry["Size"], entry)

    def delete(self, key: str) -> None:
        """Remove an object; nothing happens when there is none."""
        with self._errors("delete", key):
            self._client.delete_object(**self._at(key))

    def unfinished(self, prefix: str = "") -> Iterator[Unfinished]:
        """Uploads in parts under way, or cut off, whose keys begin with `prefix`. `list` does not show them.

        None on a server that can not tell, as S3-compatible ones may.

        Raises:
            NotFound: no such bucket.
        """
        with self._errors("list uploads to", prefix):
            pages = self._client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self.bucket, Prefix=self.prefix + prefix
            )
            try:
                for page in pages:
                    for entry in page.get("Uploads", ()):
                        key = entry["Key"].removeprefix(self.prefix)
                        yield Unfinished(key, entry["UploadId"], entry["Initiated"].astimezone(UTC))
            except self._client.exceptions.ClientError as error:
                # The embedded server says so of a bucket in which no upload was begun since it was started.
                if object_errors.code(error) not in (*object_errors.NOT_OFFERED, "NoSuchUpload"):
                    raise

    def give_up(self, upload: Unfinished) -> None:
        """Remove the parts of an upload that was cut off; nothing happens when it ended meanwhile."""
        with self._errors("give up the upload to", upload.key):
            try:
                self._client.abort_multipart_upload(
                    Bucket=self.bucket, Key=self.prefix + upload.key, UploadId=upload.upload_id
                )
            except self._client.exceptions.ClientError as error:
                if object_errors.code(error) != "NoSuchUpload":
                    raise

    def presigned_get(self, key: str, seconds: int = 3600) -> str:
        """An address from which anyone may download the object for so many seconds. Treat it as a secret."""
        with self._errors("sign an address for", key):
            return str(self._client.generate_presigned_url("get_object", Params=self._at(key), ExpiresIn=seconds))

    def presigned_put(self, key: str, size: int, seconds: int = 3600) -> str:
        """An address to which anyone may upload exactly `size` bytes for so many seconds. Treat it as a secret."""
        with self._errors("sign an address for", key):
            return str(
                self._client.generate_presigned_url(
                    "put_object", Params={**self._at(key), "ContentLength": size}, ExpiresIn=seconds
                )
            )

    def stream(self, key: str, block: int = 1 << 20, part: tuple[int, int] | None = None) -> Iterator[bytes]:
        """The content of an object in blocks, unverified, as it comes; `part`: only the bytes from first to last.

        Raises:
            NotFound: no such object; at the first block.
        """
        wanted = {} if part is None else {"Range": f"bytes={part[0]}-{part[1]}"}
        with self._errors("read", key), closing(self._client.get_object(**self._at(key), **wanted)["Body"]) as body:
            yield from body.iter_chunks(block)

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self.prefix + _checked_key(key)}

    def _sha256(self, key: str) -> str:
        digest = hashlib.sha256()
        with self._errors("read back", key), closing(self._client.get_object(**self._at(key))["Body"]) as body:
            for block in body.iter_chunks(1 << 20):
                digest.update(block)
        return digest.hexdigest()

    def _corrupt(self, key: str, why: str) -> CorruptShard:
        return CorruptShard(f"{self.where(key)} is corrupt: {why}.", "Have it uploaded again, then try again.")

    @contextmanager
    def _errors(self, action: str, key: str) -> Iterator[None]:
        """Turn what boto3 raises into this project's errors."""
        with object_errors.translated(action, self.where(key), self.endpoint, self.bucket):
            yield


def open_store(settings: Settings, kind: Literal["public", "private"]) -> ObjectStore:
    """The store that the settings name; starts nothing.

    Args:
        settings: without `s3_endpoint` the embedded server below `home` is meant.
        kind: `public` for publications, `private` for requests and what is restored for them.

    Raises:
        ServiceError: the embedded server does not run.
        SettingsError: only one half of the credentials is set, or no bucket's name on AWS.
    """
    bucket = settings.s3_public_bucket if kind == "public" else settings.s3_private_bucket
    if settings.s3_endpoint is None:
        from storage.server import running_address

        return running_address(settings.home).store(bucket, settings.s3_prefix)
    _check_owned(settings.s3_endpoint, kind, bucket)
    secret = settings.s3_secret_key.get_secret_value() if settings.s3_secret_key else None
    if (settings.s3_access_key is None) != (secret is None):
        raise SettingsError(
            "Only one of DMCP_S3_ACCESS_KEY and DMCP_S3_SECRET_KEY is set.", "Set both, or neither (AWS default chain)."
        )
    return ObjectStore(
        settings.s3_endpoint, settings.s3_region, settings.s3_access_key, secret, bucket, settings.s3_prefix
    )


def _check_owned(endpoint: str, kind: str, bucket: str) -> None:
    """On AWS all accounts share the names of buckets: one of the default name may be a stranger's."""
    host = urlsplit(endpoint).hostname or ""
    if host.endswith(".amazonaws.com") and bucket == Settings.model_fields[f"s3_{kind}_bucket"].default:
        raise SettingsError(
            f"The bucket {bucket} at {host} may be anybody's: on AWS all accounts share the names of buckets.",
            f"Set DMCP_S3_{kind.upper()}_BUCKET to a name of your own.",
        )


def _info(key: str, size: int, answer: dict[str, Any]) -> ObjectInfo:
    return ObjectInfo(key, size, answer["ETag"].strip('"'), answer["LastModified"].astimezone(UTC))


def _checked_key(key: str) -> str:
    """The key itself when every server keeps it apart from others (the embedded one maps keys to paths)."""
    if not key or any(part in ("", ".", "..") for part in key.split("/")) or not key.isprintable():
        raise UsageError(f"{key!r} can not name an object.", "Use plain names joined by single slashes.")
    return key
