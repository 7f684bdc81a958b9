"""Digests of folders, as DVC has them, so that MLflow and DVC call the same data by the same name; and of code."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from storage.errors import DatasetError

_PROJECT = Path(__file__).resolve().parent.parent


def dvc_digest(folder: Path) -> str:
    """MD5 of a folder as `dvc.lock` and the DVC cache name it: 32 hex digits and ".dir", 36 characters.

    MD5 is a name here, no protection; a variant's own manifest holds SHA-256.

    Raises:
        DatasetError: there is no such folder.
    """
    if not folder.is_dir():
        raise DatasetError(f"The folder {folder} does not exist.", "Run the stage that builds it: dvc repro.")
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    text = json.dumps([{"md5": _md5(files[name]), "relpath": name} for name in sorted(files)])
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest() + ".dir"


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def code_digest(*paths: str) -> str:
    """SHA-256 over the Python files at or below these paths of the project: whoever changes them starts afresh."""
    digest = hashlib.sha256()
    for path in _sources(paths):
        digest.update(f"{path.relative_to(_PROJECT)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _sources(paths: Iterable[str]) -> list[Path]:
    found = [_PROJECT / path for path in paths]
    return sorted({file for path in found for file in (path.rglob("*.py") if path.is_dir() else [path])})
