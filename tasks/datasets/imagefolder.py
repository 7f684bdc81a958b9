"""One's own images: a folder of class folders with PNG or JPEG files, of any sizes from 16x16.

    path/CLASS/any/depth/name.jpg

Classes are sorted by name, samples by their path below `path`. The test split is a folder of its own (`test_path`) or a
share of the images (`test_share`), chosen by a hash of seed and relative path: adding images moves no other. The folder
may grow: its images are told by their paths (tasks/ledger.py).
"""

import hashlib
import os
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from storage.errors import DatasetError, UnusableFiles
from tasks.datasets.images import decode_image
from tasks.datasets.source import CommonParameters, Place, Source, Split, first_of, moved_by

_IMAGES = {".png", ".jpg", ".jpeg"}
_IGNORED = {"thumbs.db", "desktop.ini"}
_SHARE = 0.2


class Parameters(CommonParameters):
    """Where the images lie, and what is kept apart for testing."""

    path: Path = Field(description="the folder of class folders")
    test_path: Path | None = Field(None, description="a folder of the same classes, for testing")
    test_share: float | None = Field(None, gt=0, lt=1, description="share kept for testing; 0.2 without test_path")
    seed: int = 0

    @model_validator(mode="after")
    def _one_way(self) -> "Parameters":
        if self.test_path is not None and self.test_share not in (None, _SHARE):  # what is given drops the default
            raise ValueError("give either test_path or test_share (test_share=null takes that away)")
        return self

    @property
    def share(self) -> float:
        """The share for testing that counts when there is no folder for it."""
        return _SHARE if self.test_share is None else self.test_share

    def record(self) -> dict[str, Any]:
        """What builds the same again, in whatever folder one is; for a file."""
        paths = {name: path for name in ("path", "test_path") if (path := getattr(self, name)) is not None}
        return super().record() | {name: str(path.expanduser().absolute()) for name, path in paths.items()}

    def moves(self, before: Self) -> list[str]:
        """In words, what moves images; not where the folders lie, since images are told by their paths below them."""
        moved = super().moves(before)
        if self.test_path is not None and before.test_path is not None:
            return moved
        if self.test_path is not None or before.test_path is not None:
            return [*moved, *moved_by("test_path", before.test_path, self.test_path)]
        return [*moved, *moved_by("test_share", before.share, self.share), *moved_by("seed", before.seed, self.seed)]


@dataclass(frozen=True)
class _Image:
    path: Path
    name: str
    """Path below the root with slashes, in Unicode's composed form: the same on every file system."""

    @property
    def class_name(self) -> str:
        return self.name.split("/", 1)[0]


@contextmanager
def open_source(parameters: Parameters, place: Place) -> Iterator[Source]:
    """Both splits; files are opened one by one as they are read."""
    images = _images(parameters.path)
    classes = sorted({image.class_name for image in images})
    if len(classes) < 2:
        raise DatasetError(f"{parameters.path} holds {len(classes)} class folders.", "At least two are needed.")
    if parameters.test_path is not None:
        train, test = images, _images(parameters.test_path)
    else:
        chosen = [is_test(image.name, parameters.share, parameters.seed) for image in images]
        train = [image for image, kept in zip(images, chosen, strict=True) if not kept]
        test = [image for image, kept in zip(images, chosen, strict=True) if kept]
    _check_classes(classes, train, test)
    splits = {"train": _split(train, classes), "test": _split(test, classes)}
    yield Source(classes, splits, str(parameters.path))


def fingerprint(parameters: Parameters) -> str:
    """SHA-256 over paths, sizes and times of all images: a look at the folder, not into the files."""
    digest = hashlib.sha256()
    for root in filter(None, (parameters.path, parameters.test_path)):
        for image in _images(root):
            state = image.path.stat()
            digest.update(f"{image.name}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
        digest.update(b"\n")
    return digest.hexdigest()


def is_test(name: str, share: float, seed: int) -> bool:
    """Whether the image of this relative path belongs to the test split; depends on no other image."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < int(share * 2**64)


def _images(root: Path) -> list[_Image]:
    """All images below a root, sorted by name.

    Raises:
        DatasetError: no such folder.
        UnusableFiles: files can not be samples; the first ten are named.
    """
    root = root.expanduser()
    if not root.is_dir():
        what = f"{root} is no folder." if root.exists() else f"There is no folder {root}."
        raise DatasetError(
            what,
            "Name the folder of class folders: --path FOLDER (for testing: --set test_path=FOLDER), or download.path "
            "(and test_path) in params.yaml.",
        )
    images: list[_Image] = []
    problems: list[tuple[str, str]] = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for linked in filter(os.path.islink, (Path(folder, name) for name in folders)):
            problems.append(
                (linked.relative_to(root).as_posix(), "is a symbolic link to a folder, which is not followed")
            )
        for file in sorted(files):
            if file.startswith(".") or file.lower() in _IGNORED:
                continue
            path = Path(folder, file)
            name = unicodedata.normalize("NFC", path.relative_to(root).as_posix())
            problem = _problem(name) if path.exists() else "is a symbolic link that leads nowhere"
            if problem:
                problems.append((name, problem))
            else:
                images.append(_Image(path, name))
    filled = {image.class_name for image in images}
    for folder_name in sorted(_visible_folders(root) - filled):
        problems.append((folder_name, "is a class folder and holds no image"))
    if problems:
        raise UnusableFiles(
            f"{root} holds {len(problems)} things that are no samples: {first_of(problems)}.",
            "Move them elsewhere, or convert them to PNG or JPEG in a class folder; put folders themselves where links "
            "to them are.",
            problems,
        )
    return sorted(images, key=lambda image: image.name)


def _visible_folders(root: Path) -> set[str]:
    return {
        unicodedata.normalize("NFC", entry.name)
        for entry in root.iterdir()
        if entry.is_dir() and not entry.is_symlink() and not entry.name.startswith(".")
    }


def _problem(name: str) -> str | None:
    if Path(name).suffix.lower() not in _IMAGES:
        return "is neither PNG nor JPEG"
    if "/" not in name:
        return "lies in no class folder"
    return None


def _check_classes(classes: list[str], train: list[_Image], test: list[_Image]) -> None:
    untaught = set(classes) - {image.class_name for image in train}
    if untaught:
        raise DatasetError(
            f"No training image is left of {', '.join(sorted(untaught))}.",
            "Lower test_share (--set test_share=0.1), or add images.",
        )
    if not test:
        raise DatasetError(
            "No image is left for testing.", "Raise test_share (--set test_share=0.3), or name a folder: test_path."
        )
    foreign = {image.class_name for image in test} - set(classes)
    if foreign:
        raise DatasetError(
            f"The test folder holds classes without training images: {', '.join(sorted(foreign))}.", "Remove them."
        )


def _split(images: list[_Image], classes: list[str]) -> Split:
    index = {name: label for label, name in enumerate(classes)}
    names = [image.name for image in images]
    return Split(
        [index[image.class_name] for image in images],
        lambda i: decode_image(images[i].path.read_bytes(), images[i].name),
        names if len(set(names)) == len(names) else None,  # two ways of composing one name: no telling which is which
    )
