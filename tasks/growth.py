"""Growing data sets: what a surrogate was trained on, so that the first version's is kept when images only came in.

Another surrogate would change every protected image. So beside `model.pt` lies `trained_on.json`: the shards of the
clean variant that it saw, by digest, its classes and its parameters. A variant that still holds all of these shards,
with the same classes first, has grown; for it the surrogate is kept (`surrogate.keep`), and the library of targets is
made of the images that it was trained on. So shards of the old version come out byte for byte as before, and only new
ones are computed.

A new class, which the surrogate does not know, takes the target (and texture) of an old one: its label, modulo the
number of old classes. That protects it, but two classes with one target are told apart by what they show: when many
classes came, train the surrogate anew (`surrogate.keep: false`), which makes every shard new.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from storage.files import write_atomic
from storage.manifest import Manifest

TRAINED_ON = "trained_on.json"


class TrainedOn(BaseModel):
    """Content of `trained_on.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["dmcp-trained-on/1"] = "dmcp-trained-on/1"
    parameters: dict[str, Any]
    classes: list[str]
    shards: list[str]

    def fits(self, manifest: Manifest) -> bool:
        """Whether the variant holds all that the surrogate saw."""
        there = {shard.sha256 for shard in manifest.shards}
        return manifest.classes[: len(self.classes)] == self.classes and there.issuperset(self.shards)

    def is_less_than(self, manifest: Manifest, parameters: Mapping[str, Any]) -> bool:
        """Whether the variant only grew since, and would be trained on with the same parameters."""
        more = len(manifest.shards) > len(self.shards)
        return more and self.parameters == dict(parameters) and self.fits(manifest)


@dataclass(frozen=True)
class Basis:
    """Of what the library of targets is made.

    Attributes:
        classes: how many: the first ones of the variant.
        shards: names of shards of the variant, in its order.
        digests: their SHA-256.
    """

    classes: int
    shards: list[str]
    digests: list[str]

    @property
    def digest(self) -> str:
        """SHA-256 of what decides the library."""
        return hashlib.sha256("\n".join([str(self.classes), *self.digests]).encode()).hexdigest()


def write_trained_on(folder: Path, manifest: Manifest, parameters: Mapping[str, Any]) -> None:
    """Leave beside a surrogate what it was trained on."""
    shards = [shard.sha256 for shard in manifest.shards]
    record = TrainedOn(parameters=dict(parameters), classes=manifest.classes, shards=shards)
    write_atomic(folder / TRAINED_ON, record.model_dump_json(indent=2).encode() + b"\n")


def read_trained_on(folder: Path) -> TrainedOn | None:
    """What the surrogate in a folder was trained on; None where that is not known."""
    try:
        return TrainedOn.model_validate_json((folder / TRAINED_ON).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValidationError):
        return None


def basis_of(manifest: Manifest, surrogate: Path) -> Basis:
    """The part of a variant that a surrogate (its model.pt) was trained on; all of it where that is not known."""
    record = read_trained_on(surrogate.parent)
    known = record is not None and record.fits(manifest)
    wanted = set(record.shards) if record and known else {shard.sha256 for shard in manifest.shards}
    kept = [shard for shard in manifest.shards if shard.sha256 in wanted]
    classes = len(record.classes) if record and known else len(manifest.classes)
    return Basis(classes, [shard.name for shard in kept], [shard.sha256 for shard in kept])
