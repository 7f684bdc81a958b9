"""The manifest of a variant: which shards, how large, with which digests, and what the classes are called.

A variant is a folder of shards `SPLIT-000000.tar` ... and `manifest.json`. The manifest is canonical JSON (sorted keys,
a newline at the end), so that the same content is the same file, and it says nothing that differs between the clean
and the recovered variant: no variant's name, no key id, no time, no tool's version.
"""

import json
import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from storage.errors import CorruptManifest, CorruptShard
from storage.files import Progress, sha256_file, write_atomic
from storage.shards import ShardInfo

FORMAT: Literal["dmcp-variant/1"] = "dmcp-variant/1"
MANIFEST_NAME = "manifest.json"

_MAX_BYTES = 64 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Manifest(BaseModel):
    """What `manifest.json` says; see the module's text."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["dmcp-variant/1"] = FORMAT
    dataset: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    split: str = Field(pattern=r"^[a-z][a-z0-9_]{0,30}$")
    classes: list[str] = Field(description="class names; a label is an index into this list")
    shards: list[ShardInfo]

    @property
    def samples(self) -> int:
        """Images in all shards together."""
        return sum(shard.samples for shard in self.shards)

    @field_validator("classes")
    @classmethod
    def _class_names(cls, classes: list[str]) -> list[str]:
        """Class names become folder names on export, so they must be fit for it."""
        for name in classes:
            if (
                not name
                or name in (".", "..")
                or name != name.strip()
                or not name.isprintable()
                or set("/\\") & set(name)
            ):
                raise ValueError(f"{name!r} can not be a class name")
        if len(set(classes)) != len(classes):
            raise ValueError("two classes have the same name")
        return classes

    @model_validator(mode="after")
    def _shard_entries(self) -> "Manifest":
        """Names are the split's own, rising, without a path; sizes and digests are possible ones."""
        for shard in self.shards:
            if not re.fullmatch(rf"{self.split}-[0-9]{{6}}\.tar", shard.name):
                raise ValueError(f"{shard.name!r} is no shard name of the split {self.split!r}")
            if shard.samples < 0 or shard.bytes < 0 or not _SHA256.fullmatch(shard.sha256):
                raise ValueError(f"the entry of {shard.name!r} has an impossible size or digest")
        names = [shard.name for shard in self.shards]
        if names != sorted(set(names)):
            raise ValueError("shard names do not rise")
        return self


def shard_name(split: str, index: int) -> str:
    """File name of a shard: `SPLIT-000000.tar`."""
    return f"{split}-{index:06d}.tar"


def dump_manifest(manifest: Manifest) -> bytes:
    """Canonical JSON of a manifest, UTF-8: sorted keys, two spaces, a newline at the end."""
    text = json.dumps(manifest.model_dump(mode="json"), sort_keys=True, indent=2, ensure_ascii=False)
    return f"{text}\n".encode()


def parse_manifest(data: bytes, name: str) -> Manifest:
    """Read a manifest's bytes; `name` is what to call it in a message.

    Raises:
        CorruptManifest: not a manifest of this format, or one that names files outside its folder.
    """
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'whole'}: {e['msg']}" for e in error.errors()[:3])
        raise CorruptManifest(
            f"{name} is no valid manifest ({problems}).", "Fetch or build the variant again."
        ) from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` into a variant's folder, after its shards."""
    write_atomic(folder / MANIFEST_NAME, dump_manifest(manifest))


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a variant's folder.

    Raises:
        CorruptManifest: missing, or not valid.
    """
    path = folder / MANIFEST_NAME
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CorruptManifest(
            f"{folder} is no variant: it has no {MANIFEST_NAME}.", "Name the folder that holds the shards."
        ) from error
    return parse_manifest(data, str(path))


def verify_variant(folder: Path, progress: Progress | None = None) -> Manifest:
    """Check that a folder is exactly what its manifest says, and return the manifest.

    Args:
        folder: the variant.
        progress: told the shard's name and the bytes checked so far.

    Raises:
        CorruptManifest: missing or not valid, or a shard lies beside it that it does not name.
        CorruptShard: a shard is missing, or its size or SHA-256 differs.
    """
    manifest = read_manifest(folder)
    total = sum(shard.bytes for shard in manifest.shards)
    done = 0
    for shard in manifest.shards:
        verify_shard(folder / shard.name, shard)
        done += shard.bytes
        if progress is not None:
            progress(shard.name, done, total)
    extra = {path.name for path in folder.glob("*.tar")} - {shard.name for shard in manifest.shards}
    if extra:
        raise CorruptManifest(
            f"{folder} holds {min(extra)}, which its manifest does not name.", "Remove it, or fetch the variant again."
        )
    return manifest


def verify_shard(path: Path, shard: ShardInfo) -> None:
    """Check that a shard is the one its manifest names.

    Raises:
        CorruptShard: it is missing, or its size or SHA-256 differs.
    """
    again = "Fetch or build the variant again."
    if not path.is_file():
        raise CorruptShard(f"The shard {path} is missing.", again)
    if path.stat().st_size != shard.bytes:
        raise CorruptShard(f"The shard {path} has {path.stat().st_size} bytes instead of {shard.bytes}.", again)
    if sha256_file(path) != shard.sha256:
        raise CorruptShard(f"The shard {path} is not the one its manifest names: its SHA-256 differs.", again)
