"""The ledger of a growing data set: which image lies in which shard, under which key, and which number a class has.

Sources that grow (a folder of one's own images) name their images. Without a ledger keys and shards follow the order of
the source, so an image that comes in between would move all that follow. With the ledger of the version before, known
images stay where they are, new ones get the next keys and go into new shards, and new classes come after the old ones:
the shards of the version before stay as they were, byte for byte. An image that was removed or changed makes its own
shard new, and no other. One that is called otherwise now, in the same split, keeps its key and place: it is known by
its pixels, and under a new key it would be protected anew, in another way than in the version before
(storage/overlaps.py has why that must not be). The same source and ledger give the same shards.

`ledger.json` lies beside the clean variant and is the owner's: it holds file names. Without it, and when `shard_size`
or the loader is another, or a class is gone, all begins anew.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from storage.errors import DatasetError
from storage.files import write_atomic

LEDGER_NAME = "ledger.json"
KEY_DIGITS = 9


class LedgerShard(BaseModel):
    """One shard: its number, and (key, name) of its images in order."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    number: int
    images: list[tuple[int, str]]


class SplitLedger(BaseModel):
    """One split. Keys and numbers that were given out are never used again; `pixels`: how each key's image looks."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    next_key: int
    next_shard: int
    shards: list[LedgerShard]
    pixels: dict[int, str] = {}

    @model_validator(mode="after")
    def _each_once(self) -> "SplitLedger":
        """Else two images would get one key, or two shards one name."""
        numbers = [shard.number for shard in self.shards]
        images = [image for shard in self.shards for image in shard.images]
        for given, end in ((numbers, self.next_shard), ([key for key, _ in images], self.next_key)):
            if len(set(given)) != len(given) or not 0 <= min(given, default=0) <= max(given, default=-1) + 1 <= end:
                raise ValueError("a key or a number comes twice, or was not given out yet")
        if len({name for _, name in images}) != len(images):
            raise ValueError("an image comes twice")
        return self


class Ledger(BaseModel):
    """Content of `ledger.json`.

    `fingerprint` says what the source looked like (`GrowingModule.fingerprint`), `parameters` what its loader was given
    (`CommonParameters.record`; None: the ledger is of an earlier release).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["dmcp-ledger/1"] = "dmcp-ledger/1"
    source: str
    shard_size: int = Field(ge=1)
    fingerprint: str | None = None
    parameters: dict[str, Any] | None = None
    classes: list[str] = []
    splits: dict[str, SplitLedger] = {}

    def continues(self, source: str, shard_size: int, classes: Sequence[str]) -> bool:
        """Whether a data set may be built on it."""
        return (self.source, self.shard_size) == (source, shard_size) and set(self.classes) <= set(classes)


def sample_key(number: int) -> str:
    """The key, in shards and for people, of the image that has this number."""
    return f"{number:0{KEY_DIGITS}d}"


def digest_of(png: bytes) -> str:
    """What tells an image by its pixels: of its PNG as shards hold it, which the pixels decide."""
    return hashlib.sha256(png).hexdigest()[:32]


def same_looks(split: SplitLedger) -> list[tuple[tuple[int, str], tuple[int, str]]]:
    """Images that have the same pixels as one before them: (key, name) of each, and of the first that looks so."""
    first: dict[str, tuple[int, str]] = {}
    pairs = []
    for image in (image for shard in split.shards for image in shard.images):
        looks = split.pixels.get(image[0])
        if looks is not None and (before := first.setdefault(looks, image)) is not image:
            pairs.append((image, before))
    return pairs


def follow_renames(before: SplitLedger, names: Sequence[str], look: Callable[[int], str | None]) -> SplitLedger:
    """The ledger with the present names of images that only were renamed.

    Args:
        before: the ledger that is continued.
        names: of all images of the split, each once.
        look: gives `digest_of` image number i, or None where it can not be used; asked only of new names, and only
            while known images are missing.
    """
    now = set(names)
    known = {name: key for shard in before.shards for key, name in shard.images}
    gone: dict[str, list[str]] = {}
    for name, key in known.items():
        if name not in now and key in before.pixels:
            gone.setdefault(before.pixels[key], []).append(name)
    renamed: dict[str, str] = {}
    for index, name in enumerate(names):
        if not gone:
            break
        if name not in known and (same := gone.get(digest := look(index) or "")):
            renamed[same.pop(0)] = name
            if not same:
                del gone[digest]
    if not renamed:
        return before
    shards = [
        LedgerShard(number=shard.number, images=[(key, renamed.get(name, name)) for key, name in shard.images])
        for shard in before.shards
    ]
    return before.model_copy(update={"shards": shards})


def assign(before: SplitLedger | None, names: Sequence[str], chosen: Sequence[int], shard_size: int) -> SplitLedger:
    """Where the chosen images go.

    Args:
        before: the ledger that is continued; None: all is new.
        names: of all images of the split, each once.
        chosen: indices of the images that are wanted.
        shard_size: images a shard at most.
    """
    if before is None:
        before = SplitLedger(next_key=0, next_shard=0, shards=[])
        fresh = [(index, names[index]) for index in chosen]  # the key is the image's place, whatever the limit is
        next_key = len(names)
    else:
        known = {name for shard in before.shards for _, name in shard.images}
        new = [names[index] for index in chosen if names[index] not in known]
        fresh = list(enumerate(new, before.next_key))
        next_key = before.next_key + len(new)
    wanted = {names[index] for index in chosen}
    shards = [
        LedgerShard(number=shard.number, images=images)
        for shard in before.shards
        if (images := [image for image in shard.images if image[1] in wanted])
    ]
    parts = [fresh[first : first + shard_size] for first in range(0, len(fresh), shard_size)]
    shards += [LedgerShard(number=number, images=part) for number, part in enumerate(parts, before.next_shard)]
    return SplitLedger(next_key=next_key, next_shard=before.next_shard + len(parts), shards=shards)


def read_ledger(path: Path) -> Ledger | None:
    """The ledger; None where there is none yet.

    Raises:
        DatasetError: it is damaged.
    """
    try:
        return Ledger.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise DatasetError(
            f"{path} is no ledger of a data set, or is damaged.",
            "Put it back from a backup (dvc checkout), or remove it: then every shard is made anew.",
        ) from error


def write_ledger(path: Path, ledger: Ledger) -> None:
    """Write the ledger, whole or not at all."""
    write_atomic(path, ledger.model_dump_json(indent=1).encode() + b"\n")
