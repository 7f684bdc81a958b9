"""Requests for variants: a published version in the public bucket, or a folder of this machine; nothing is sent."""

import re
from collections.abc import Sequence
from pathlib import Path

from storage.errors import NoSuchPath, NotFound, UsageError
from storage.manifest import Manifest, read_manifest
from storage.names import DATASET_PATTERN
from storage.objects import ObjectStore
from storage.shards import KEY, ShardInfo
from storage.versions import read_version
from tasks.request_index import InputShard, Local, Published, RequestIndex, VariantHead, input_name


def parse_published(source: str | Path) -> tuple[str, str] | None:
    """Data set and version that `DATASET`, `DATASET@VERSION` or `DATASET@latest` names; None when it names a path.

    A path that exists wins over a data set of the same name: write `DATASET@latest` for that.

    Raises:
        NoSuchPath: neither a path that exists nor the name of a data set.
    """
    if Path(source).exists():
        return None
    match = re.fullmatch(rf"({DATASET_PATTERN})(?:@([A-Za-z0-9]+))?", str(source))
    if match is None:
        raise NoSuchPath(
            f"{source} does not exist.", "Name a folder, a tar, a zip, or a published version: DATASET@VERSION."
        )
    return match[1], match[2] or "latest"


def published_index(public: ObjectStore, dataset: str, version: str, subset: Sequence[str] | None) -> RequestIndex:
    """The index of a published version (`latest` becomes its id), of some samples or shards of it when asked.

    Raises:
        NotFound: no such data set, version or shard.
        UsageError: the subset holds something that can name neither.
    """
    identity, manifest, _ = read_version(public, dataset, version)
    return _index(Published(dataset=dataset, version=identity), manifest, subset)


def local_index(folder: Path, subset: Sequence[str] | None) -> RequestIndex:
    """The index of a variant's folder on this machine.

    Raises:
        CorruptManifest: it has no (valid) manifest.
        NotFound, UsageError: as `published_index`.
    """
    return _index(Local(source=str(folder.resolve())), read_manifest(folder), subset)


def _index(origin: Published | Local, manifest: Manifest, subset: Sequence[str] | None) -> RequestIndex:
    shards, keys = _select(manifest, subset)
    return RequestIndex(
        origin=origin,
        layout="shards",
        shards=[
            InputShard(shard=ShardInfo(input_name(i), s.samples, s.bytes, s.sha256), target=s.name)
            for i, s in enumerate(shards)
        ],
        keys=keys,
        variant=VariantHead(dataset=manifest.dataset, split=manifest.split, classes=manifest.classes),
    )


def _select(manifest: Manifest, subset: Sequence[str] | None) -> tuple[list[ShardInfo], list[str] | None]:
    """The shards to read, and the samples wanted of them (None: all).

    A manifest does not say which shard holds a key, so asking for samples reads all shards; keys that none of them
    holds show in the report.
    """
    if subset is None:
        return manifest.shards, None
    if not subset:
        raise UsageError("The subset is empty.", "Name sample keys or shard names, or leave the subset out.")
    named = {name for name in subset if name.endswith(".tar")}
    keys = list(dict.fromkeys(name.removesuffix(".png") for name in subset if name not in named))
    if named and keys:
        raise UsageError("The subset names shards and samples together.", "Make two requests of it.")
    if wrong := next((key for key in keys if not KEY.fullmatch(key)), None):
        raise UsageError(f"{wrong[:100]!a} is no sample key.", "Keys are the names of images in shards, without .png.")
    if missing := named - {shard.name for shard in manifest.shards}:
        raise NotFound(f"There is no shard {min(missing)!a} in {manifest.dataset}.", "Its manifest names the shards.")
    return ([s for s in manifest.shards if s.name in named], None) if named else (manifest.shards, keys)
