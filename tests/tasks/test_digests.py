from pathlib import Path

import pytest

from storage.errors import DatasetError
from tasks import digests as module
from tasks.digests import code_digest, dvc_digest


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


def test_the_digest_of_code_sees_every_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PROJECT", tmp_path)
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.py").write_text("1")
    (tmp_path / "b.py").write_text("2")
    before = code_digest("p", "b.py")
    (tmp_path / "p" / "a.txt").write_text("no code")
    assert code_digest("p", "b.py") == before
    (tmp_path / "p" / "a.py").write_text("3")
    changed = code_digest("p", "b.py")
    (tmp_path / "p" / "a.py").rename(tmp_path / "p" / "c.py")
    assert len({before, changed, code_digest("p", "b.py")}) == 3
