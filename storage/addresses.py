"""Variants that lie in an object store, at an address that people write: `s3://BUCKET/PREFIX`.

The server and its credentials are those of the settings; DMCP_S3_PREFIX is not put before an address, which says all.
Below the prefix lie the files of a variant under their own names, as they lie in a folder: the shards and
`manifest.json`.
"""

import re
from pathlib import Path

from storage.errors import CorruptShard, NotFound, UsageError
from storage.manifest import MANIFEST_NAME, Manifest, parse_manifest
from storage.objects import ObjectStore, open_store
from storage.settings import Settings
from storage.shards import ShardInfo

SCHEME = "s3://"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


def is_address(text: str) -> bool:
    """Whether this names a place in an object store, not a path."""
    return text.startswith(SCHEME)


def open_address(settings: Settings, address: str) -> ObjectStore:
    """The place that an address names; nothing is asked of the server.

    Raises:
        UsageError: it is no address.
        ServiceError, SettingsError: as `open_store`.
    """
    bucket, _, prefix = address.removeprefix(SCHEME).partition("/")
    if not is_address(address) or not _BUCKET.fullmatch(bucket):
        raise UsageError(f"{address[:200]!a} is no address in an object store.", "As in: s3://BUCKET/PREFIX")
    there = settings.model_copy(update={"s3_private_bucket": bucket, "s3_prefix": prefix})
    return open_store(there, "private")


def open_private_address(settings: Settings, address: str) -> ObjectStore:
    """`open_address` for what not everybody may read. Raises UsageError for the public bucket too."""
    place = open_address(settings, address)
    if place.bucket == settings.s3_public_bucket:
        raise UsageError(
            f"{place.bucket} is the public bucket, and restored images are not for everybody.", "Name another bucket."
        )
    return place


def open_public_address(settings: Settings, address: str) -> ObjectStore:
    """`open_address` for what is published: whatever looks for published versions looks there, and nowhere else.

    Raises:
        UsageError: it is not the public bucket of the settings, with their prefix.
    """
    place, public = open_address(settings, address), open_store(settings, "public")
    if (place.bucket, place.prefix) != (public.bucket, public.prefix):
        here = f"{SCHEME}{public.bucket}/{public.prefix}".rstrip("/")
        raise UsageError(
            f"{address} is not where this installation publishes, {here}: no grant, request or check of earlier "
            "versions would find what lies there.",
            f"Name {here}, or set DMCP_S3_PUBLIC_BUCKET and DMCP_S3_PREFIX.",
        )
    return place


def read_remote_manifest(place: ObjectStore) -> Manifest:
    """The manifest of the variant at an address.

    Raises:
        NotFound: there is none.
        CorruptManifest: it is not valid.
        ObjectStoreError: the server failed.
    """
    try:
        data = place.get_bytes(MANIFEST_NAME)
    except NotFound as error:
        raise NotFound(
            f"There is no variant at {place.where()}: {error.what}",
            f"Check bucket and prefix; they name the place where {MANIFEST_NAME} and the shards lie.",
        ) from error
    return parse_manifest(data, place.where(MANIFEST_NAME))


def fetch_shard(place: ObjectStore, shard: ShardInfo, path: Path) -> None:
    """Download one shard of a variant; `path` appears when it is whole and is what the manifest says.

    Raises:
        CorruptShard: it is missing, or another file than the manifest names.
        ObjectStoreError: the server failed.
    """
    cure = "Upload this shard of the variant again, then run the same command: what is done is kept."
    try:
        place.get_file(shard.name, path, shard.sha256, shard.bytes)
    except NotFound as error:
        raise CorruptShard(f"The shard {shard.name} is missing: {place.where(shard.name)}.", cure) from error
    except CorruptShard as error:
        raise CorruptShard(f"The shard {shard.name} is not the one its manifest names: {error.what}", cure) from error
