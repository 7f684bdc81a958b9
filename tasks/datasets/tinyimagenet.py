"""TinyImageNet (Stanford CS231n): 64x64, 500 training images a class.

The test split is the 50 validation images a class (the official test images have no labels).
Read from the archive as it lies. A mirror may hold the official `tiny-imagenet-200.zip`, any other archive or folder in
its layout (`tiny-imagenet-200*.zip`, `tiny-imagenet-200/`), with all or some of the classes.
"""

import hashlib
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, model_validator

from storage.errors import DatasetError, ParameterError
from tasks.datasets.images import decode_image
from tasks.datasets.source import CommonParameters, Place, Source, Split

ADDRESS = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
ROOT = "tiny-imagenet-200"

_TRAIN = re.compile(r"train/(?P<wnid>n[0-9]{8})/images/(?P=wnid)_(?P<number>[0-9]+)\.JPEG")


class Parameters(CommonParameters):
    """Which classes: a list, or a number of those that are present; neither: all that are present."""

    wnids: list[str] | None = Field(None, min_length=2, description="WordNet ids")
    classes: int | None = Field(None, ge=2, description="how many, drawn by seed")
    seed: int = 0

    @model_validator(mode="after")
    def _one_way(self) -> "Parameters":
        if self.wnids is not None and self.classes is not None:
            raise ValueError("give either wnids or classes")
        return self


@dataclass(frozen=True)
class _Files:
    """An archive or a folder in the official layout: names below its root, and how to read one."""

    origin: str
    names: list[str]
    read: Callable[[str], bytes]

    def text(self, name: str) -> str:
        try:
            return self.read(name).decode()
        except (KeyError, FileNotFoundError, UnicodeDecodeError) as error:
            raise _layout(self.origin, f"{name} is missing or no text") from error


@contextmanager
def open_source(parameters: Parameters, place: Place) -> Iterator[Source]:
    """The chosen classes; images are decoded one by one while the archive stays open."""
    found, origin = place.obtain([f"{ROOT}.zip", f"{ROOT}*.zip", ROOT], ADDRESS, MD5)
    with _open(found, origin) as files:
        train: dict[str, list[tuple[int, str]]] = {}
        for name in files.names:
            if match := _TRAIN.fullmatch(name):
                train.setdefault(match["wnid"], []).append((int(match["number"]), name))
        if not train:
            raise _layout(files.origin, "there is no train/WNID/images/WNID_NUMBER.JPEG")
        chosen = choose_wnids(sorted(train), parameters)
        names = _class_names(files, chosen)
        order = sorted(chosen, key=names.__getitem__)
        training = [(label, name) for label, wnid in enumerate(order) for _, name in sorted(train[wnid])]
        test = _validation(files, order)
        splits = {"train": _split(files, training), "test": _split(files, test)}
        yield Source([names[wnid] for wnid in order], splits, files.origin)


@contextmanager
def _open(path: Path, origin: str) -> Iterator[_Files]:
    if path.is_dir():
        names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
        yield _Files(origin, names, lambda name: (path / name).read_bytes())
        return
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise DatasetError(f"{path} is no readable zip file ({error}).", "Remove it and fetch it again.") from error
    with archive:
        prefix = f"{ROOT}/"
        names = [name.removeprefix(prefix) for name in archive.namelist() if name.startswith(prefix)]
        yield _Files(origin, names, lambda name: _member(archive, prefix + name))


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        return archive.read(name)
    except (zipfile.BadZipFile, EOFError) as error:
        raise DatasetError(f"{name} in {archive.filename} is damaged ({error}).", "Fetch the archive again.") from error


def choose_wnids(present: list[str], parameters: Parameters) -> list[str]:
    """The WordNet ids that are asked for.

    A draw by seed orders the ids by a hash of seed and id, so it is the same on every machine.

    Raises:
        ParameterError: an id is not present, or more classes are asked for than there are.
    """
    if parameters.wnids is not None:
        missing = sorted(set(parameters.wnids) - set(present))
        if missing:
            raise ParameterError(
                f"TinyImageNet has no class {', '.join(missing)} here.", f"Present are {', '.join(present)}."
            )
        return sorted(set(parameters.wnids))
    count = parameters.classes or len(present)
    if count > len(present):
        raise ParameterError(
            f"{count} classes are asked for and {len(present)} are here.", "Lower download.classes in params.yaml."
        )
    drawn = sorted(present, key=lambda wnid: hashlib.sha256(f"{parameters.seed}/{wnid}".encode()).digest())
    return sorted(drawn[:count])


def _class_names(files: _Files, wnids: list[str]) -> dict[str, str]:
    """The first word of each id in words.txt; where two are the same, the id is added."""
    words = dict(line.split("\t", 1) for line in files.text("words.txt").splitlines() if "\t" in line)
    names = {wnid: words.get(wnid, wnid).split(",")[0].strip().replace("/", "-") or wnid for wnid in wnids}
    taken = list(names.values())
    return {wnid: name if taken.count(name) == 1 else f"{name} ({wnid})" for wnid, name in names.items()}


def _validation(files: _Files, order: list[str]) -> list[tuple[int, str]]:
    """Label and name of every validation image of the chosen classes, by number."""
    present = set(files.names)
    found = []
    for line in files.text("val/val_annotations.txt").splitlines():
        name, wnid, *_ = [*line.split("\t"), ""]
        number = re.fullmatch(r"val_([0-9]+)\.JPEG", name)
        if wnid in order and number:
            path = f"val/images/{name}"
            if path not in present:
                raise _layout(files.origin, f"{path} is missing")
            found.append((int(number[1]), order.index(wnid), path))
    return [(label, path) for _, label, path in sorted(found)]


def _split(files: _Files, entries: list[tuple[int, str]]) -> Split:
    return Split(
        [label for label, _ in entries],
        lambda index: decode_image(files.read(entries[index][1]), entries[index][1]),
    )


def _layout(origin: str, why: str) -> DatasetError:
    return DatasetError(f"{origin} is not laid out as TinyImageNet: {why}.", f"Fetch it again from {ADDRESS}.")
