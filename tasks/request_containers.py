"""Reading what a requester hands in as a tar or a zip, one file at a time, never unpacked to disk.

What an archive library reads at one go (the headers of a tar's member, a zip's whole directory) is bounded before it is
read; links and devices are not followed, and a damaged archive gives what lies before the damage.
"""

import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

from storage.errors import InputError, TooLarge
from storage.shards import BAD_TAR, KEY, forwards
from tasks.request_sources import Budget, Found, Item, Limits, is_litter, plain_name, refuse, take

HEADER_BYTES = 1 << 20
"""Headers of one member of a tar, at most."""

ENTRY = b"PK\x01\x02"
"""How each entry of a zip's directory begins."""


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
    """What a tar holds, in order, and where it is damaged (None: it is whole); `name`: what the requester calls it."""

    path: Path
    name: str
    members: list[Member] = field(default_factory=list)
    damage: str | None = None
    nested: bool = False

    def is_shard(self) -> bool:
        """Whether it holds `KEY.png` and `KEY.cls` files side by side and nothing else."""
        split = [member.name.partition(".") for member in self.members]
        return bool(split) and all(
            member.plain and ending in ("png", "cls") and KEY.fullmatch(key)
            for member, (key, _, ending) in zip(self.members, split, strict=True)
        )

    @property
    def size(self) -> int:
        """Bytes of all its files, as it states them."""
        return sum(member.size for member in self.members)

    def has_labels(self) -> bool:
        """Whether there is a `KEY.cls` among the files."""
        return any(member.name.endswith(".cls") for member in self.members)


class _Headers:
    """The file that tarfile reads headers from: so many bytes a member, however large a header says that it is.

    `end` is where the tar ends: that of the file, or that of the member of another tar that this one is.
    """

    def __init__(self, file: BinaryIO, end: int) -> None:
        self.file = file
        self.end = end
        self.left = HEADER_BYTES
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self.left:
            raise tarfile.ReadError("its headers are too large")
        self.left -= size
        return self.file.read(max(0, min(size, self.end - self.tell())))


def list_tar(path: Path, budget: Budget, shown: str | None = None, inside: Member | None = None) -> Listing:
    """List a tar without reading its contents. A damaged one is listed as far as it can be.

    Args:
        path: the file.
        budget: counts its members.
        shown: what it is called; by default, as the file.
        inside: it is this member of the tar in the file.

    Raises:
        InputError: no tar at all (a compressed one neither), or more members than the limit.
    """
    listing = Listing(path, path.name if shown is None else shown, nested=inside is not None)
    try:
        with path.open("rb") as file:
            headers = _Headers(file, inside.offset + inside.size if inside else path.stat().st_size)
            file.seek(inside.offset if inside else 0)
            with tarfile.open(fileobj=cast(BinaryIO, headers), mode="r:") as tar:
                try:
                    _list_members(tar, headers, listing, budget)
                except BAD_TAR as error:
                    listing.damage = f"it is damaged after {len(listing.members):,} files ({_reason(error)})"
    except (*BAD_TAR, OSError) as error:
        raise InputError(
            f"{shown or path} can not be read as a tar file ({_reason(error)}).",
            "Hand in a folder of PNGs or of shards, an uncompressed tar, a zip, or a PNG.",
        ) from error
    return listing


def _reason(error: BaseException) -> str:
    return "its headers are nested" if isinstance(error, RecursionError) else str(error)


def _list_members(tar: tarfile.TarFile, headers: _Headers, listing: Listing, budget: Budget) -> None:
    for member in forwards(tar):
        tar.members = []  # type: ignore[attr-defined]  # tarfile keeps them all, about a kilobyte each
        tar.pax_headers = {}  # what a global header said, which each later one would copy
        headers.left = HEADER_BYTES
        if member.isdir() or is_litter(plain_name(member.name)):
            continue
        budget.count(member.name)
        if listing.nested and member.offset_data + member.size > headers.end:
            raise tarfile.ReadError("it is cut off")  # what follows is not its own
        plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE) and not member.issparse()
        listing.members.append(Member(plain_name(member.name), member.offset_data, member.size, plain))
    # tarfile takes a damaged header for the end of the archive, which is a block of zeros.
    headers.seek(tar.offset)
    headers.left = tarfile.BLOCKSIZE
    if headers.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
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
        yield refuse(listing.name, listing.damage)


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
                item = take(f"{listing.name}/{member.name}", file, member.size, budget)
                key = member.name.removesuffix(".png")
                yield Found(key, item.png, labels.get(key)) if isinstance(item, Found) else item
    if listing.damage:
        yield refuse(listing.name, listing.damage)


# --- zip -------------------------------------------------------------------------------------------------------------


class _Directory:
    """The file that zipfile reads a directory from, at one go: not more of it than the limits (None: any number)."""

    def __init__(self, file: BinaryIO, limits: Limits | None) -> None:
        self.file = file
        self.limits = limits
        self.size = file.seek(0, os.SEEK_END)
        self.seek, self.tell, self.seekable, self.close = file.seek, file.tell, file.seekable, file.close

    def read(self, size: int = -1) -> bytes:
        if self.limits is None:
            return self.file.read(size)
        there = max(0, self.size - self.file.tell())
        if (there if size < 0 else min(size, there)) > max(self.limits.directory_bytes, HEADER_BYTES):
            raise TooLarge("The directory of the zip file is too large.", "Hand it in in parts.")
        data = self.file.read(size)
        if data.count(ENTRY) > self.limits.members:  # zipfile makes objects of them all
            raise TooLarge(
                f"The directory of the zip file names more than {self.limits.members:,} files.", "Hand it in in parts."
            )
        return data


_BAD_ZIP = (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError, struct.error)


def read_zip(path: Path, budget: Budget, shown: str | None = None) -> Iterator[Item]:
    """The files of a zip.

    Raises:
        InputError: no zip at all, or beyond a limit of the whole.
    """
    with path.open("rb") as file:
        directory = _Directory(file, budget.limits)
        try:
            archive = zipfile.ZipFile(cast(BinaryIO, directory))
        except _BAD_ZIP as error:
            raise InputError(f"{shown or path} can not be read as a zip file ({error}).", "Pack it again.") from error
        directory.limits = None
        with archive:
            yield from _read_members(archive, directory.size, shown or str(path), budget)


def _read_members(archive: zipfile.ZipFile, packed: int, shown: str, budget: Budget) -> Iterator[Item]:
    most = budget.limits.ratio * packed + (64 << 20)  # members may share their packed bytes
    before = budget.size
    for info in archive.infolist():
        if budget.size - before > most:
            raise TooLarge(f"{shown} unpacks to more than {budget.limits.ratio} times its size.", "Pack it again.")
        # Some archivers on Windows write backslashes.
        stated = info.filename.replace("\\", "/")
        name = plain_name(stated)
        if stated.endswith("/") or is_litter(name):  # not is_dir(), which fails for an empty name
            continue
        budget.count(name)
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
    except (*_BAD_ZIP, zlib.error, RuntimeError) as error:
        return refuse(name, f"it is damaged ({error})")
