import hashlib
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from storage.errors import DatasetError
from tasks.datasets import cifar10
from tasks.datasets.source import CommonParameters, Place


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("echo owned",)


class Subtle:
    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return np.load, ("/etc/passwd",)


def batch(count: int = 4) -> bytes:
    data = np.arange(count * 3072, dtype=np.int64).reshape(count, 3072).astype(np.uint8)
    return pickle.dumps({b"data": data, b"labels": [i % 10 for i in range(count)]}, protocol=3)


@pytest.mark.parametrize("protocol", [3, 4])  # the published ones are Python 2's; see the test of the real one
def test_a_batch_is_read(protocol: int) -> None:
    data = np.arange(2 * 3072, dtype=np.uint16).reshape(2, 3072).astype(np.uint8)
    read = cifar10.load_batch(pickle.dumps({b"data": data, b"labels": [3, 4]}, protocol=protocol))
    np.testing.assert_array_equal(read[b"data"], data)


@pytest.mark.parametrize("evil", [Evil(), Subtle()])
def test_a_pickle_that_calls_something_is_refused(evil: object, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DatasetError, match="asks for"):
        cifar10.load_batch(pickle.dumps({b"data": evil}))
    assert "owned" not in capfd.readouterr().out


@pytest.mark.parametrize("data", [b"", b"garbage", pickle.dumps([1]), batch()[:-9]])
def test_damaged_batches(data: bytes) -> None:
    with pytest.raises(DatasetError):
        cifar10.load_batch(data)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A mirror in CIFAR-10's layout with four images a batch, whose digests stand in for the published ones."""
    folder = tmp_path / cifar10.FOLDER
    folder.mkdir()
    digest = hashlib.md5(batch()).hexdigest()
    batches = {split: dict.fromkeys(names, digest) for split, names in cifar10.BATCHES.items()}
    monkeypatch.setattr(cifar10, "BATCHES", batches)
    for names in batches.values():
        for name in names:
            (folder / name).write_bytes(batch())
    return tmp_path


def images(mirror: Path) -> np.ndarray:
    with cifar10.open_source(CommonParameters(), Place(mirror, mirror / "downloads")) as source:
        assert len(source.splits["train"].labels) == 20 and len(source.splits["test"].labels) == 4
        return np.stack([source.splits["train"].read(i) for i in range(20)])


def test_folder_and_archive_are_the_same(small: Path) -> None:
    from_folder = images(small)
    np.testing.assert_array_equal(from_folder[1, 0, 0], np.array([3072, 4096, 5120]).astype(np.uint8))
    with tarfile.open(small / "cifar-10-python.tar.gz", "w:gz") as tar:
        tar.add(small / cifar10.FOLDER, cifar10.FOLDER)
    (small / cifar10.FOLDER).rename(small / "unpacked")
    np.testing.assert_array_equal(images(small), from_folder)


def test_missing_or_altered_batches(small: Path) -> None:
    third = small / cifar10.FOLDER / "data_batch_3"
    third.write_bytes(batch(5))
    with pytest.raises(DatasetError, match=r"data_batch_3.*MD5"):
        images(small)
    third.unlink()
    with pytest.raises(DatasetError, match="data_batch_3 is missing"):
        images(small)


def test_a_broken_archive(small: Path) -> None:
    (small / cifar10.FOLDER).rename(small / "unpacked")
    (small / "cifar-10-python.tar.gz").write_bytes(b"\x1f\x8b" + bytes(100))
    with pytest.raises(DatasetError, match="archive"):
        images(small)


@pytest.mark.mirror
def test_the_real_one_equals_torchvisions(mirror: Path) -> None:
    from torchvision.datasets import CIFAR10

    with cifar10.open_source(CommonParameters(), Place(mirror, mirror)) as source:
        for split, train in (("train", True), ("test", False)):
            theirs = CIFAR10(str(mirror), train=train, download=False)
            ours = source.splits[split]
            assert source.classes == theirs.classes
            assert ours.labels == theirs.targets
            for i in range(0, len(ours.labels), 777):
                np.testing.assert_array_equal(ours.read(i), theirs.data[i])
