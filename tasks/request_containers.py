"""Reading what a requester hands in as a tar or a zip, one file at a time, never unpacked to disk.

Tars are read where they lie, in a tar or a zip too: from a deflated zip three times over (names, labels, images).
What an archive library reads at one go (the headers of a tar's member, a zip's whole directory) is bounded before it is
read; links and devices are not followed, and a damaged archive gives what lies before the damage.
"""

import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol, Self, cast

from storage.errors import InputError, TooLarge
from storage.shards import BAD_TAR, KEY, forwards
from tasks.request_index import RefusedFile
from tasks.request_sources import Budget, Found, Item, Limits, Readable, is_litter, plain_name, refuse, take

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


class Seekable(Readable, Protocol):
    """What a tar is read by: a file, or a part of a zip as it unpacks."""

    def seek(self, offset: int, whence: int = 0, /) -> int: ...  # noqa: D102

    def tell(self) -> int: ...  # noqa: D102


Opener = Callable[[], AbstractContextManager[Seekable]]
"""Opens, from the beginning, the file that a tar lies in."""


@dataclass
class Listing:
    """What a tar holds, in order, and where it is damaged (None: it is whole); `name`: what the requester calls it."""

    open: Opener
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

    def __init__(self, file: Seekable, end: int) -> None:
        self.file = file
        self.end = end
        self.left = HEADER_BYTES
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self.left:
            raise tarfile.ReadError("its headers are too large")
        self.left -= size
        return self.file.read(max(0, min(size, self.end - self.tell())))


def list_tar(path: Path, budget: Budget, shown: str | None = None) -> Listing:
    """List a tar without reading its contents. A damaged one is listed as far as it can be.

    Args:
        path: the file.
        budget: counts its members.
        shown: what it is called; by default, as the file.

    Raises:
        InputError: no tar at all (a compressed one neither), or more members than the limit.
    """
    name = path.name if shown is None else shown
    return _listed(Listing(lambda: path.open("rb"), name), 0, path.stat().st_size, budget, shown or str(path))


def list_inner_tar(outer: Opener, name: str, offset: int, size: int, budget: Budget) -> Listing:
    """`list_tar` of a tar that is part of another file: so many bytes from this offset on."""
    return _listed(Listing(outer, name, nested=True), offset, offset + size, budget, name)


def _listed(listing: Listing, start: int, end: int, budget: Budget, shown: str) -> Listing:
    try:
        with listing.open() as file:
            headers = _Headers(file, end)
            file.seek(start)
            with tarfile.open(fileobj=cast(BinaryIO, headers), mode="r:") as tar:
                try:
                    _list_members(tar, headers, listing, budget)
                except BAD_TAR as error:
                    listing.damage = f"it is damaged after {len(listing.members):,} files ({_reason(error)})"
    except (*BAD_TAR, OSError) as error:
        raise InputError(
            f"{shown} can not be read as a tar file ({_reason(error)}).",
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
    with listing.open() as file:
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
    with listing.open() as file:
        labels: dict[str, int] = {}
        for member in listing.members:
            if member.name.endswith(".cls") and member.size <= 32:
                file.seek(member.offset)
                text = file.read(member.size).strip()
                if text.isdigit() and len(text) <= 9:
                    labels[member.name.removesuffix(".cls")] = int(text)
    with listing.open() as file:  # anew: of a zip's member that is damaged, nothing is read beyond the damage
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


Zipped = tuple[str, zipfile.ZipInfo]
"""A file in a zip, and its name as it is read here."""


class Zip:
    """An open zip: its files in order, without folders and what desktops add. As long as `open_zip` says."""

    def __init__(self, archive: zipfile.ZipFile, packed: int, shown: str, budget: Budget) -> None:
        self._archive, self._shown, self._budget = archive, shown, budget
        self._most = budget.limits.ratio * packed + (64 << 20)  # members may share their packed bytes
        self.members: list[Zipped] = []
        for info in archive.infolist():
            # Some archivers on Windows write backslashes.
            stated = info.filename.replace("\\", "/")
            name = plain_name(stated)
            if not stated.endswith("/") and not is_litter(name):  # not is_dir(), which fails for an empty name
                budget.count(name)
                self.members.append((name, info))

    def read(self, members: Sequence[Zipped]) -> Iterator[Item]:
        """These files. Raises TooLarge when they unpack to far more than the zip has."""
        before = self._budget.size
        for name, info in members:
            if self._budget.size - before > self._most:
                raise self._bomb()
            if fault := self._fault(info):
                yield refuse(name, fault)
                continue
            with self._open(info) as file:  # no more than the size that the directory states
                item = take(name, file, info.file_size, self._budget)
                damage = file.damage
            yield refuse(name, damage) if damage else item

    def list_tars(self, members: Sequence[Zipped]) -> Iterator[Listing | RefusedFile]:
        """`list_tar` of each of these files."""
        if sum(info.file_size for _, info in members) > min(self._most, self._budget.limits.total_bytes):
            raise self._bomb()
        for name, info in members:
            if fault := self._fault(info):
                yield refuse(name, fault)
                continue
            try:
                yield list_inner_tar(partial(self._open, info), name, 0, info.file_size, self._budget)
            except TooLarge:
                raise
            except InputError as error:
                yield refuse(name, error.what)

    def text(self, info: zipfile.ZipInfo, most: int) -> bytes:
        """A file's bytes, so many at most; none where it can not be read."""
        if self._fault(info):
            return b""
        with self._open(info) as file:
            return file.read(min(most, info.file_size))

    def _open(self, info: zipfile.ZipInfo) -> "_Unpacked":
        return _Unpacked(self._archive, info)

    def _fault(self, info: zipfile.ZipInfo) -> str | None:
        """Why a file is not read."""
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
            return "it is a link or a special file"
        if info.flag_bits & 1:
            return "it is encrypted"
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            return "its compression is not taken; store or deflate it"
        ratio = self._budget.limits.ratio
        if info.file_size > (1 << 20) and info.file_size > ratio * max(info.compress_size, 1):
            return f"it unpacks to more than {ratio} times its size"
        return None

    def _bomb(self) -> TooLarge:
        return TooLarge(
            f"{self._shown} unpacks to more than {self._budget.limits.ratio} times its size.", "Pack it again."
        )


class _Unpacked:
    """A file in a zip, read as it unpacks; where it is damaged it ends, and `damage` says so.

    Its CRC is checked by who reads it from beginning to end, which of a shard nobody does: its images are sealed.
    """

    def __init__(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
        self.damage: str | None = None
        self._file: BinaryIO | None = None
        with self._noted():
            self._file = cast(BinaryIO, archive.open(info))

    @contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except (*_BAD_ZIP, zlib.error, RuntimeError) as error:
            self.damage = f"it is damaged ({error})"

    def read(self, size: int = -1) -> bytes:
        """So many bytes, fewer at the end."""
        with self._noted():
            if self._file is not None and self.damage is None:
                return self._file.read(size)
        return b""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to an offset: forwards by unpacking, backwards by beginning anew."""
        with self._noted():
            if self._file is not None and self.damage is None:
                return self._file.seek(offset, whence)
        return 0

    def tell(self) -> int:
        """Where it is."""
        return 0 if self._file is None else self._file.tell()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()


@contextmanager
def open_zip(path: Path, budget: Budget, shown: str | None = None) -> Iterator[Zip]:
    """Open a zip.

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
            yield Zip(archive, directory.size, shown or str(path), budget)
