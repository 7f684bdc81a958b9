"""Reading what a requester hands in: folders here, archives in `tasks/request_containers.py`; one file at a time.

Sources are hostile until shown otherwise: nothing is written under a file's name, every file and the whole have limits
that are enforced while reading, and nothing is decoded. What can not be taken comes out as a `RefusedFile` with its
reason, in its place among the rest.
"""

import os
import stat
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from storage.errors import TooLarge
from storage.png import MAX_PIXELS
from tasks.request_index import RefusedFile, is_presentable, name_fault

PIECE = 4 << 20  # bytes read at once
SIGNATURE = b"\x89PNG\r\n\x1a\n"
LITTER = ("__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini")  # what desktops add by themselves: not worth a word

_IMAGES = {b"\xff\xd8\xff": "a JPEG", b"GIF8": "a GIF", b"RIFF": "a WebP", b"BM": "a BMP"}
_ZIP = b"PK\x03\x04"


@dataclass(frozen=True)
class Limits:
    """What is taken at most. Sizes are bytes; `ratio` is unpacked to packed size inside a zip.

    `name_bytes` are for all names together: they travel in one file, and are held in memory. `directory_bytes` are for
    a zip's directory, which is read as a whole and takes up to 13 times as much memory. `refused` are files that are
    not taken and named with the reason; with more of them, nothing of the source is taken.
    """

    member_bytes: int = 256 << 20
    total_bytes: int = 1 << 40
    members: int = 5_000_000
    name_bytes: int = 48 << 20
    directory_bytes: int = 256 << 20
    refused: int = 100_000
    ratio: int = 200


def upload_limits(size: int) -> Limits:
    """What is taken of an upload of so many bytes. PNGs hardly shrink: what unpacks to much more is no set of them."""
    return Limits(total_bytes=2 * size + (64 << 20), members=1_000_000, directory_bytes=16 << 20, refused=10_000)


@dataclass(frozen=True)
class Found:
    """One PNG: its name in the source, its bytes as they are, and its label when the source is a shard that has one."""

    name: str
    png: bytes
    label: int | None = None


Item = Found | RefusedFile


class Readable(Protocol):
    """What files are read by, wherever they lie."""

    def read(self, size: int = -1, /) -> bytes: ...  # noqa: D102


@dataclass
class Budget:
    """Counts what was read against the limits of the whole source."""

    limits: Limits
    members: int = 0
    names: int = 0
    size: int = 0

    def count(self, name: str) -> None:
        """One more file was met. Raises TooLarge beyond the limits."""
        self.members += 1
        self.names += len(name)
        if self.members > self.limits.members:
            raise TooLarge(f"The source holds more than {self.limits.members:,} files.", "Hand it in in parts.")
        if self.names > self.limits.name_bytes:
            raise TooLarge("The names of its files alone are too much.", "Hand it in in parts, or with shorter names.")

    def spend(self, size: int) -> None:
        """So many bytes were read. Raises TooLarge beyond the limit."""
        self.size += size
        if self.size > self.limits.total_bytes:
            raise TooLarge(f"The source holds more than {self.limits.total_bytes:,} bytes.", "Hand it in in parts.")


def refuse(name: str, reason: str) -> RefusedFile:
    """A refusal on the way in; what can not be printed of the name is escaped."""
    shown = name if is_presentable(name) else ascii(name)[1:-1]
    return RefusedFile(name=shown[:2000], error="InputError", reason=reason)


def take(name: str, file: Readable, size: int, budget: Budget) -> Item:
    """Read one PNG of a given size from its start, or refuse what is no PNG or too large, having read its head only."""
    head = b"" if name_fault(name) else file.read(len(SIGNATURE))
    fault = name_fault(name) or kind_fault(head)
    if not fault and size > budget.limits.member_bytes:
        fault = f"it has {size:,} bytes; at most {budget.limits.member_bytes:,} are taken"
    if fault:
        return refuse(name, fault)
    rest = _read(file, size - len(head))
    budget.spend(size)
    if len(rest) != size - len(head):
        return refuse(name, "it is cut off")
    width, height = struct.unpack_from(">8xII", rest) if len(rest) >= 16 else (0, 0)
    if width * height > MAX_PIXELS:
        return refuse(name, f"it claims {width:,} x {height:,} pixels; at most {MAX_PIXELS:,} are taken")
    return Found(name, head + rest)


def _read(file: Readable, size: int) -> bytes:
    """So many bytes, or as many as there are; a size that is only claimed takes no memory."""
    pieces: list[bytes] = []
    while size > 0 and (piece := file.read(min(size, PIECE))):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def kind_fault(head: bytes) -> str | None:
    """Why a file that begins like this is no PNG, or None when it is one."""
    if head == SIGNATURE:
        return None
    if not head:
        return "it is empty"
    if kind := image_kind(head):
        return f"it is {kind}, not a PNG, and can not be restored from that; fetch it again with dmcp pull"
    return "it is a zip archive, not a PNG" if head.startswith(_ZIP) else "it is not a PNG"


def image_kind(head: bytes) -> str | None:
    """What kind of image a file that begins like this is, where it is one and no PNG."""
    return next((kind for magic, kind in _IMAGES.items() if head.startswith(magic)), None)


def plain_name(name: str) -> str:
    """A member's name without the `./` and doubled slashes that archivers leave in."""
    parts = name.split("/")
    return "/".join(part for i, part in enumerate(parts) if part != "." and (part or i == 0))


def is_litter(name: str) -> bool:
    """Whether a desktop made this file and nobody meant to hand it in."""
    parts = name.split("/")
    return parts[0] == LITTER[0] or parts[-1] in LITTER


def shards_among(names: Sequence[str]) -> list[str]:
    """Those that may be shards: tars in the folder that all files lie in, however deep below the source that is.

    So a pulled variant is found in the folder around it too, and in what `zip -r` or `tar` made of either.
    """
    folders = [name[: name.rfind("/") + 1] for name in names if not is_litter(name)] or [""]
    first, last = min(folders), max(folders)
    shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    top = first[: first.rfind("/", 0, shared) + 1]
    return [n for n in names if n.startswith(top) and "/" not in n[len(top) :] and n.lower().endswith(".tar")]


def beside(path: str, name: str) -> str:
    """The path of the file of this name in the same folder."""
    folder, slash, _ = path.rpartition("/")
    return f"{folder}{slash}{name}"


# --- folders ---------------------------------------------------------------------------------------------------------


def list_folder(folder: Path) -> Iterator[str]:
    """Relative names of all files below a folder, sorted within each; linked folders are named and not entered."""
    for where, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted([*files, *(name for name in folders if Path(where, name).is_symlink())]):
            yield Path(where, name).relative_to(folder).as_posix()


def read_folder(folder: Path, names: Iterator[str] | list[str], budget: Budget) -> Iterator[Item]:
    """The files of these relative names."""
    for name in names:
        if not is_litter(name):
            yield read_file(folder / name, name, budget)


def read_file(path: Path, name: str, budget: Budget) -> Item:
    """One file, called `name`."""
    budget.count(name)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return refuse(name, "it is not a plain file")
        with path.open("rb") as file:
            return take(name, file, status.st_size, budget)
    except OSError as error:
        return refuse(name, f"it can not be read: {error.strerror}")
