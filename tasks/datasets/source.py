"""What every data set's module gives: a `Source` with its splits, and the checks of its parameters.

A module of this package has

    Parameters                                  a model of the parameters it takes, derived from `CommonParameters`
    open_source(parameters, place) -> context   a `Source`; files it reads are closed with the context

and is named in the registry of `tasks/datasets/__init__.py`. A sample's index is its place in the full split, before
any limit, so that the same image has the same key whatever the limit is.
"""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from storage.errors import ParameterError
from storage.files import Progress

SPLITS = ("train", "test")
_SHOWN = 10


@dataclass(frozen=True)
class Split:
    """One split, in its fixed order.

    Attributes:
        labels: the class index of every image; known without decoding any.
        read: gives image number i as uint8 [H, W, 3]; raises UnsupportedImage, which names the image and the reason.
        names: what tells the images of a source that grows, each once (tasks/ledger.py); None: it never grows.
    """

    labels: list[int]
    read: Callable[[int], NDArray[np.uint8]]
    names: list[str] | None = None


@dataclass(frozen=True)
class Source:
    """A data set that is ready to be read.

    Attributes:
        classes: class names, in the order of the labels, sorted by name (as torchvision's ImageFolder sorts folders).
        splits: "train" and "test".
        origin: where it came from, in words, for the report of the download.
    """

    classes: list[str]
    splits: Mapping[str, Split]
    origin: str


@dataclass(frozen=True)
class Place:
    """Where a data set's files are looked for, and put.

    Attributes:
        mirror: a folder with data sets already downloaded, looked into first; or None.
        downloads: the folder that downloads are kept in.
        progress: told about downloads.
    """

    mirror: Path | None
    downloads: Path
    progress: Progress | None = None

    def obtain(self, names: Sequence[str], address: str, md5: str) -> tuple[Path, str]:
        """A file or folder of the mirror, or else the download, and where it came from in words.

        Args:
            names: what the mirror may hold, best first: patterns of `Path.glob`.
            address: official address; its last part is the download's file name.
            md5: published MD5 of the download.

        Raises:
            DownloadError: it is not in the mirror and can not be downloaded.
        """
        held = [path for name in names for path in sorted(self.mirror.glob(name))] if self.mirror else []
        if held:
            return held[0], f"{held[0].name} (mirror)"
        from tasks.fetch import fetch

        return fetch(address, self.downloads / address.rsplit("/", 1)[1], md5, self.progress), address


class CommonParameters(BaseModel):
    """What every data set takes. Unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shard_size: int = Field(1000, ge=1, description="images a shard")
    train_limit: int | None = Field(None, ge=1, description="training images at most, balanced over the classes")
    test_limit: int | None = Field(None, ge=1, description="test images at most, balanced over the classes")

    def limit(self, split: str) -> int | None:
        """The limit of a split."""
        return self.train_limit if split == "train" else self.test_limit

    def record(self) -> dict[str, Any]:
        """What builds the same again, in whatever folder one is; for a file."""
        return self.model_dump(mode="json")

    def moves(self, before: Self) -> list[str]:
        """In words, what moves or removes images of a variant that was built with `before`; more images do not."""
        moved = moved_by("shard_size", before.shard_size, self.shard_size)
        if self.train_limit is not None and self.train_limit < (before.train_limit or math.inf):
            moved += moved_by("train_limit", before.train_limit, self.train_limit)
        return moved


def moved_by(name: str, old: object, new: object) -> list[str]:
    """A parameter that is another now, in words; nothing when it is the same."""
    return [] if old == new else [f"{name} {_shown(old)} (now {_shown(new)})"]


def _shown(value: object) -> object:
    return "unset" if value is None else value


class DatasetModule(Protocol):
    """What the registry hands out."""

    Parameters: type[CommonParameters]

    def open_source(self, parameters: Any, place: Place) -> contextlib.AbstractContextManager[Source]:
        """Open the data set, downloading it when it is neither in the mirror nor among the downloads."""


@runtime_checkable
class GrowingModule(Protocol):
    """What the module of a source that grows has besides."""

    def fingerprint(self, parameters: Any) -> str:
        """What the source looks like, without reading an image: another one, when images came, went or changed."""


P = TypeVar("P", bound=CommonParameters)


def check_parameters(model: type[P], params: Mapping[str, Any], dataset: str) -> P:
    """Parameters of a data set, checked. `download.NAME`, as params.yaml has it in full, is the same as `NAME`.

    Raises:
        ParameterError: a name is not known, or a value can not be used; the message names it and what there is.
    """
    values = dict(params)
    if isinstance(section := values.get("download"), Mapping):
        values = {**{name: value for name, value in values.items() if name != "download"}, **section}
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(_problem(e["loc"], e["type"], e["msg"]) for e in error.errors())
        path = ", the path also as --path FOLDER" if "path" in model.model_fields else ""
        raise ParameterError(
            f"The data set {dataset!r} can not be had with these parameters: {problems}.",
            f"It takes {', '.join(model.model_fields)}: in a command as --set NAME=VALUE{path}, for the pipeline in "
            "the section 'download' of params.yaml.",
        ) from error


def _problem(place: Sequence[int | str], kind: str, message: str) -> str:
    name = ".".join(map(str, place))
    return f"{name} is not given" if kind == "missing" else f"{name or 'together'}: {message}"


def first_of(problems: Sequence[tuple[str, str]]) -> str:
    """The first ten files that can not be used, each with the reason, as part of a sentence."""
    shown = "; ".join(f"{name} {reason}" for name, reason in problems[:_SHOWN])
    return shown if len(problems) <= _SHOWN else f"{shown}; and {len(problems) - _SHOWN:,} more"


def choose(labels: list[int], limit: int | None) -> list[int]:
    """Indices of the samples that stay: all, or the first ones of each class, evenly, `limit` together."""
    if limit is None or limit >= len(labels):
        return list(range(len(labels)))
    seen: dict[int, int] = {}
    ranked = []
    for index, label in enumerate(labels):
        ranked.append((seen.setdefault(label, 0), label, index))
        seen[label] += 1
    return sorted(index for _, _, index in sorted(ranked)[:limit])
