"""Reading what a requester hands in: folders, tar files and zip files, one file at a time, never unpacked to disk.

Archives are hostile until shown otherwise: nothing is written under a member's name, every member and the whole have
size limits that are enforced while reading, links and devices are not followed, and a damaged archive gives what lies
before the damage. What can not be taken comes out as a `RefusedFile` with its reason, in its place among the rest.
"""

import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

from storage.errors import InputError
from storage.shards import KEY
from tasks.request_index import RefusedFile, is_presentable, name_fault

SIGNATURE = b"\x89PNG\r\n\x1a\n"
LITTER = ("__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini")  # what desktops add by themselves: not worth a word

_OTHERS = {
    b"\xff\xd8\xff": "a JPEG",
    b"GIF8": "a GIF",
    b"RIFF": "a WebP",
    b"BM": "a BMP",
    b"PK\x03\x04": "a zip archive",
}


@dataclass(frozen=True)
class Limits:
    """What is taken at most. Sizes are bytes; `ratio` is unpacked to packed size inside a zip."""

    member_bytes: int = 256 << 20
    total_bytes: int = 1 << 40
    members: int = 5_000_000
    ratio: int = 200


@dataclass(frozen=True)
class Found:
    """One PNG: its name in the source, its bytes as they are, and its label when the source is a shard that has one."""

    name: str
    png: bytes
    label: int | None = None


Item = Found | RefusedFile


@dataclass
class Budget:
    """Counts what was read against the limits of the whole source."""

    limits: Limits
    members: int = 0
    size: int = 0

    def count(self) -> None:
        """One more file was met. Raises InputError beyond the limit."""
        self.members += 1
        if self.members > self.limits.members:
            raise InputError(f"The source holds more than {self.limits.members:,} files.", "Hand it in in parts.")

    def spend(self, size: int) -> None:
        """So many bytes were read. Raises InputError beyond the limit."""
        self.size += size
        if self.size > self.limits.total_bytes:
            raise InputError(f"The source holds more than {self.limits.total_bytes:,} bytes.", "Hand it in in parts.")


def refuse(name: str, reason: str) -> RefusedFile:
    """A refusal on the way in; what can not be printed of the name is escaped."""
    shown = name if is_presentable(name) else ascii(name)[1:-1]
    return RefusedFile(name=shown[:2000], error="InputError", reason=reason)


def take(name: str, file: BinaryIO, size: int, budget: Budget) -> Item:
    """Read one PNG of a given size from its start, or refuse what is no PNG or too large, having read its head only."""
    fault = name_fault(name)
    if fault:
        return refuse(name, fault)
    head = file.read(len(SIGNATURE))
    if head != SIGNATURE:
        kind = next((kind for magic, kind in _OTHERS.items() if head.startswith(magic)), None)
        return refuse(name, f"it is {kind}, not a PNG" if kind else "it is not a PNG")
    if size > budget.limits.member_bytes:
        return refuse(name, f"it has {size:,} bytes; at most {budget.limits.member_bytes:,} are taken")
    rest = file.read(size - len(head))
    budget.spend(size)
    if len(rest) != size - len(head):
        return refuse(name, "it is cut off")
    return Found(name, head + rest)


def plain_name(name: str) -> str:
    """A member's name without the `./` and doubled slashes that archivers leave in."""
    parts = name.split("/")
    return "/".join(part for i, part in enumerate(parts) if part != "." and (part or i == 0))


def is_litter(name: str) -> bool:
    """Whether a desktop made this file and nobody meant to hand it in."""
    parts = name.split("/")
    return parts[0] == LITTER[0] or parts[-1] in LITTER


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
        if is_litter(name):
            continue
        budget.count()
        path = folder / name
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                yield refuse(name, "it is not a plain file")
                continue
            with path.open("rb") as file:
                yield take(name, file, status.st_size, budget)
        except OSError as error:
            yield refuse(name, f"it can not be read: {error.strerror}")


# --- tar -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Member:
    """Where one file lies in a tar: name, offset and size in bytes, and whether it is a plain file."""

    name: str
    offset: int
    size: int
    plain: bool


@dataclass
class Listing:
    """What a tar holds, in order, and where it is damaged (None: it is whole)."""

    path: Path
    members: list[Member] = field(default_factory=list)
    damage: str | None = None

    def is_shard(self) -> bool:
        """Whether it holds `KEY.png` and `KEY.cls` files side by side and nothing else."""
        split = [member.name.partition(".") for member in self.members]
        return bool(split) and all(
            member.plain and ending in ("png", "cls") and KEY.fullmatch(key)
            for member, (key, _, ending) in zip(self.members, split, strict=True)
        )

    def has_labels(self) -> bool:
        """Whether there is a `KEY.cls` among the files."""
        return any(member.name.endswith(".cls") for member in self.members)


def list_tar(path: Path, budget: Budget) -> Listing:
    """List a tar without reading its contents. A damaged one is listed as far as it can be.

    Raises:
        InputError: no tar at all (a compressed one neither), or more members than the limit.
    """
    listing = Listing(path)
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            try:
                _list_members(tar, listing, budget)
            except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
                listing.damage = f"it is damaged after {len(listing.members):,} files ({error})"
    except (tarfile.TarError, ValueError, OverflowError, EOFError, OSError) as error:
        raise InputError(f"{path} can not be read as a tar file ({error}).", "Hand in an uncompressed tar.") from error
    return listing


def _list_members(tar: tarfile.TarFile, listing: Listing, budget: Budget) -> None:
    last = -1
    for member in tar:
        if member.offset <= last or member.size < 0:
            raise tarfile.ReadError("its headers lead backwards")
        last = member.offset
        tar.members = []  # type: ignore[attr-defined]  # tarfile keeps them all, about a kilobyte each
        if member.isdir() or is_litter(plain_name(member.name)):
            continue
        budget.count()
        plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE) and not member.issparse()
        listing.members.append(Member(plain_name(member.name), member.offset_data, member.size, plain))
    # tarfile takes a damaged header for the end of the archive, which is a block of zeros.
    file = cast(BinaryIO, tar.fileobj)
    file.seek(tar.offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        listing.damage = f"it is cut off or damaged after {len(listing.members):,} files"


def read_tar(listing: Listing, budget: Budget, prefix: str = "") -> Iterator[Item]:
    """The files of a tar, `prefix` put before their names."""
    with listing.path.open("rb") as file:
        for member in listing.members:
            name = prefix + member.name
            if not member.plain:
                yield refuse(name, "it is a link or a special file")
                continue
            file.seek(member.offset)
            yield take(name, file, member.size, budget)
    if listing.damage:
        yield refuse(listing.path.name, listing.damage)


def read_shard_members(listing: Listing, budget: Budget) -> Iterator[Item]:
    """The samples of a tar that `is_shard`, named by their keys, with their labels."""
    with listing.path.open("rb") as file:
        labels: dict[str, int] = {}
        for member in listing.members:
            if member.name.endswith(".cls") and member.size <= 32:
                file.seek(member.offset)
                text = file.read(member.size).strip()
                if text.isdigit() and len(text) <= 9:
                    labels[member.name.removesuffix(".cls")] = int(text)
        for member in listing.members:
            if member.name.endswith(".png"):
                file.seek(member.offset)
                item = take(f"{listing.path.name}/{member.name}", file, member.size, budget)
                key = member.name.removesuffix(".png")
                yield Found(key, item.png, labels.get(key)) if isinstance(item, Found) else item
    if listing.damage:
        yield refuse(listing.path.name, listing.damage)


# --- zip -------------------------------------------------------------------------------------------------------------


def read_zip(path: Path, budget: Budget) -> Iterator[Item]:
    """The files of a zip.

    Raises:
        InputError: no zip at all, or beyond a limit of the whole.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError) as error:
        raise InputError(f"{path} can not be read as a zip file ({error}).", "Pack it again.") from error
    most = budget.limits.ratio * path.stat().st_size + (64 << 20)  # members may share their packed bytes
    before = budget.size
    with archive:
        for info in archive.infolist():
            if budget.size - before > most:
                raise InputError(f"{path} unpacks to more than {budget.limits.ratio} times its size.", "Pack it again.")
            # Some archivers on Windows write backslashes.
            name = plain_name(info.filename.replace("\\", "/"))
            if info.is_dir() or name.endswith("/") or is_litter(name):
                continue
            budget.count()
            yield _read_zipped(archive, info, name, budget)


def _read_zipped(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, budget: Budget) -> Item:
    mode = info.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        return refuse(name, "it is a link or a special file")
    if info.flag_bits & 1:
        return refuse(name, "it is encrypted")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return refuse(name, "its compression is not taken; store or deflate it")
    if info.file_size > (1 << 20) and info.file_size > budget.limits.ratio * max(info.compress_size, 1):
        return refuse(name, f"it unpacks to more than {budget.limits.ratio} times its size")
    try:
        with archive.open(info) as file:  # reads no more than the size that the directory states, and checks the CRC
            return take(name, cast(BinaryIO, file), info.file_size, budget)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        return refuse(name, f"it is damaged ({error})")
