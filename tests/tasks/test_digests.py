from pathlib import Path

import pytest

from storage.errors import DatasetError
from tasks.digests import dvc_digest


def test_it_is_the_digest_that_dvc_gives(tmp_path: Path) -> None:
    from dvc_data.hashfile.build import build
    from dvc_data.hashfile.db import HashFileDB
    from dvc_objects.fs.local import LocalFileSystem

    folder = tmp_path / "data"
    files = {"train-000001.tar": b"two", "train-000000.tar": b"one", "manifest.json": b"{}", "ä/ß.png": b"\x00" * 100}
    for name, data in (files | {"a/b.txt": b"", "a.b/c": b"\r\n"}).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    local = LocalFileSystem()
    _, _, tree = build(HashFileDB(local, str(tmp_path / "cache")), str(folder), local, "md5")
    assert dvc_digest(folder) == tree.hash_info.value
    assert len(dvc_digest(folder)) == 36


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError):
        dvc_digest(tmp_path / "none")
