"""What is to be restored, as one file that can be sent, with its digest.

A zip, a tar or a PNG is sent as it is. A folder becomes an uncompressed tar, the same bytes for the same files: sorted
names, no times, no owners. Only what could be restored travels: PNG files under their relative names, and, in a folder
of shards (or around one), the shards and their manifest. The rest stays here and is listed as refused, with the reason.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from storage.errors import InputError
from storage.files import open_atomic, sha256_file

if TYPE_CHECKING:
    from tasks.request_index import RefusedFile

Packed = Callable[[int], None]
"""Told how many files were packed so far."""

_MEDIA = {b"PK\x03\x04": "application/zip", b"PK\x05\x06": "application/zip", b"\x89PNG": "image/png"}


@dataclass(frozen=True)
class Parcel:
    """A file to send: its path, size in bytes, SHA-256, content type, what it is called, and what was left out."""

    path: Path
    size: int
    sha256: str
    media: str
    name: str
    refused: list[RefusedFile] = field(default_factory=list)


def pack(source: Path, work: Path, packed: Packed | None = None) -> Parcel:
    """Make a source ready to be sent.

    Args:
        source: a folder, a zip, a tar or a PNG; only read.
        work: a folder for the tar of a folder.
        packed: told of progress.

    Raises:
        InputError: there is nothing in it that could be restored, or it can not be read.
    """
    name = source.resolve().name or "images"
    if source.is_dir():
        return _pack_folder(source, work / "upload.tar", f"{name}.tar", packed)
    return Parcel(source, source.stat().st_size, sha256_file(source), media_of(source), name)


def media_of(path: Path) -> str:
    """The content type of a file that is to be sent, by its first bytes."""
    with path.open("rb") as file:
        return _MEDIA.get(file.read(4), "application/x-tar")


def fingerprint(source: Path) -> str:
    """What tells whether a source was touched since: names, sizes and times of its files, digested."""
    digest = hashlib.sha256(os.fsencode(source.resolve()))
    for path in _files(source):
        status = path.lstat()
        digest.update(b"%s\0%d\0%d\0" % (os.fsencode(path), status.st_size, status.st_mtime_ns))
    return digest.hexdigest()


def _files(source: Path) -> Iterator[Path]:
    if not source.is_dir():
        yield source
        return
    for where, folders, files in os.walk(source):
        folders.sort()
        yield from (Path(where, name) for name in sorted(files))


def _pack_folder(folder: Path, target: Path, name: str, packed: Packed | None) -> Parcel:
    names, refused = _chosen(folder)
    if not names:
        first = next((f" The first of {len(refused):,}, {r.name}: {r.reason}." for r in refused), "")
        raise InputError(f"{folder} holds no PNG that could be restored.{first}", "Hand in protected PNG images.")
    with open_atomic(target, 0o600) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for number, member in enumerate(names, start=1):
            _add(tar, folder / member, member)
            if packed is not None:
                packed(number)
    return Parcel(target, target.stat().st_size, sha256_file(target), "application/x-tar", name, refused)


def _add(tar: tarfile.TarFile, path: Path, name: str) -> None:
    info = tarfile.TarInfo(name)  # time, owner and group are 0 and empty by default
    info.mode = 0o644
    try:
        with path.open("rb") as file:
            info.size = os.fstat(file.fileno()).st_size
            tar.addfile(info, file)
    except OSError as error:
        if error.filename is not None:
            raise
        raise InputError(f"{path} was changed while it was read.", "Run it again.") from error


def _chosen(folder: Path) -> tuple[list[str], list[RefusedFile]]:
    """The names of what travels, and what does not."""
    from storage.manifest import MANIFEST_NAME
    from tasks.request_index import name_fault
    from tasks.request_sources import beside, is_litter, kind_fault, list_folder, refuse, shards_among

    found = [name for name in list_folder(folder) if not is_litter(name)]
    faults = {name: name_fault(name) or _plain_fault(folder / name) for name in found}
    shards = [name for name in shards_among(found) if not faults[name]]
    names: list[str] = []
    refused: list[RefusedFile] = []
    among = set(shards)
    for name in found:
        if name in among:
            continue
        if fault := faults[name] or kind_fault(_head(folder / name)):
            refused.append(refuse(name, fault))
        else:
            names.append(name)
    if not shards:
        return names, refused
    if (folder / beside(shards[0], MANIFEST_NAME)).is_file():
        shards.append(beside(shards[0], MANIFEST_NAME))
    # A manifest, a licence and the like lie beside shards; nobody expects them restored.
    return sorted([*names, *shards]), refused if names else [r for r in refused if r.name.lower().endswith(".tar")]


def _plain_fault(path: Path) -> str | None:
    try:
        return None if path.is_file() else "it is not a plain file"
    except OSError as error:
        return f"it can not be read: {error.strerror}"


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(8)
    except OSError as error:
        raise InputError(f"{path} can not be read: {error.strerror}.", "Check its permissions.") from error
