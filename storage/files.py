"""Files and folders that appear whole or not at all, and digests.

Everything is written aside, on the same file system, and renamed into place. A reader never sees half a file, and what
stood there before stays until the new thing is complete. What a killed process left aside is removed: a folder by the
next process that makes the same one, files by `remove_partials`. Files on their way lie in a `scratch_folder`; what a
killed process left of those is removed by `remove_abandoned`.
"""

import csv
import fcntl
import hashlib
import io
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from storage.disk import writing
from storage.errors import UsageError

Progress = Callable[[str, int, int | None], None]
"""Called as `progress(what, done, total)`: a short label, units done so far (bytes, images), all of them if known."""


REPLACED = "replaced"
"""In a holder: the folder that was there before, while the new one takes its place."""

YOUNG_SECONDS = 60
"""A file that was begun just now may not have its lock yet."""


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in lower-case hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def csv_bytes(head: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """A table as CSV, UTF-8, lines ended by \\n."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return text.getvalue().encode()


@contextmanager
def open_atomic(path: Path, mode: int | None = None) -> Iterator[BinaryIO]:
    """A binary file for writing that takes the name `path` only when the block ends without an error.

    Args:
        path: the final name; its folder is made when missing.
        mode: permission bits, in force before the first byte is written; None: what the umask gives.

    Raises:
        DiskFault: the disk is full, or the folder can not be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}.partial")
        handle = os.open(aside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666 if mode is None else mode)
        try:
            with os.fdopen(handle, "wb") as file:
                with suppress(OSError):  # some network file systems lock nothing
                    fcntl.flock(handle, fcntl.LOCK_EX)
                if mode is not None:
                    os.fchmod(file.fileno(), mode)
                yield file
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise


def write_atomic(path: Path, data: bytes, mode: int | None = None) -> None:
    """Write a whole file at once; see `open_atomic`."""
    with open_atomic(path, mode) as file:
        file.write(data)


def remove_partials(folder: Path) -> None:
    """Remove files that `open_atomic` of killed processes left in a folder (not below it)."""
    for path in folder.glob(".*.partial"):
        with suppress(OSError):
            handle = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.is_file() and time.time() - path.stat().st_mtime > YOUNG_SECONDS:
                    path.unlink()
            finally:
                os.close(handle)


@contextmanager
def replace_directory(target: Path, marker: str | None = None) -> Iterator[Path]:
    """An empty work folder beside `target` that takes its place when the block ends without an error.

    After an error the work folder is removed and `target` is as it was. The work folder lies in a locked holder
    `.NAME.*.partial`; holders whose lock is free belong to processes that were killed and are removed first; where such
    a process had put the old folder aside and not yet the new one in its place, the old one goes back.

    Args:
        target: the folder to make or to replace.
        marker: a file that tells a folder of ours: when `target` holds anything and not this file, it is left alone.

    Raises:
        UsageError: `target` is not ours to replace.
        DiskFault: the disk is full, or the folder can not be written.
    """
    target = Path(os.path.abspath(target))  # noqa: PTH100 - resolve() would follow a link that is to be replaced
    _check_ours(target, marker)
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target)
        holder, lock = _locked_folder(target.parent, f".{target.name}.", ".partial")
        try:
            work = holder / target.name
            work.mkdir()
            yield work
            _swap(work, target, holder / REPLACED)
        finally:
            shutil.rmtree(holder, ignore_errors=True)
            os.close(lock)


@contextmanager
def scratch_folder(root: Path, prefix: str) -> Iterator[Path]:
    """A new folder `root`/PREFIX*, its owner's only, for the length of the block; `remove_abandoned` spares it so long.

    Raises:
        DiskFault: the disk is full, or the folder can not be written.
    """
    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
        folder, lock = _locked_folder(root, prefix)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def remove_abandoned(root: Path) -> int:
    """Remove the folders in `root` that killed processes left of `scratch_folder`; how many there were."""
    removed = 0
    for folder in root.iterdir() if root.is_dir() else ():
        if folder.is_dir() and (lock := _free_lock(folder)) is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)
            removed += 1
    return removed


def make_private(root: Path, *parts: str) -> Path:
    """The folder `root`/PARTS, made if missing; it and those between are their owner's only (0700), old ones too."""
    folder = root
    for part in ("", *parts):
        folder = folder / part
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if folder.stat().st_mode & 0o077:
                folder.chmod(0o700)
    return folder


def _check_ours(target: Path, marker: str | None) -> None:
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target} is a file, not a folder.", "Name another folder.")
    if marker is not None and target.is_dir() and any(target.iterdir()) and not (target / marker).is_file():
        raise UsageError(
            f"{target} holds something else (there is no {marker} in it) and is not replaced.",
            "Name another folder, or remove this one first.",
        )


def _swap(work: Path, target: Path, aside: Path) -> None:
    if not os.path.lexists(target):
        work.rename(target)
        return
    target.rename(aside)
    try:
        work.rename(target)
    except OSError:
        aside.rename(target)
        raise


def _locked_folder(parent: Path, prefix: str, suffix: str = "") -> tuple[Path, int]:
    """A new folder and the descriptor that holds its lock (which ends with the process).

    Until the lock is ours another process may take the folder for abandoned; then there is another.
    """
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, suffix=suffix, dir=parent))
        try:
            lock = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue
        with suppress(OSError):  # some network file systems lock no folders: then nothing is ever taken for abandoned
            fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return folder, lock
        os.close(lock)


def _free_lock(folder: Path) -> int | None:
    """A descriptor that holds the folder's lock; None: it is in use, or gone, or its file system locks no folders."""
    try:
        lock = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock


def _remove_abandoned(target: Path) -> None:
    for holder in target.parent.glob(f".{_escaped(target.name)}.*.partial"):
        if not holder.is_dir() or (lock := _free_lock(holder)) is None:
            continue
        with suppress(OSError):
            if (holder / REPLACED).exists() and not os.path.lexists(target):
                (holder / REPLACED).rename(target)
            shutil.rmtree(holder, ignore_errors=True)
        os.close(lock)


def _escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
