import hashlib
import pickle
import shutil
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from storage.errors import DatasetError, NotFound, ParameterError, UnsupportedImage, UnusableFiles, UsageError
from storage.manifest import read_manifest, verify_variant
from tasks.download import DownloadReport, download_dataset
from tasks.variants import load_arrays


def build(out: Path, params: dict[str, object], name: str = "sample", mirror: Path | None = None) -> DownloadReport:
    return download_dataset(name, params, out / "clean", out / "test", mirror)


def digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_both_variants(tmp_path: Path) -> None:
    heard: list[tuple[str, int, int | None]] = []
    report = download_dataset(
        "sample",
        {"train_limit": 20, "test_limit": 10, "shard_size": 8},
        tmp_path / "clean",
        tmp_path / "test",
        None,
        lambda *said: heard.append(said),
        dataset="mine",
    )
    clean, test = verify_variant(tmp_path / "clean"), verify_variant(tmp_path / "test")
    assert [shard.samples for shard in clean.shards] == [8, 8, 4]
    assert [shard.name for shard in test.shards] == ["test-000000.tar", "test-000001.tar"]
    assert (clean.dataset, clean.split, test.split) == ("mine", "train", "test")
    assert asdict(report) | {"seconds": 0.0} == {
        "dataset": "mine",
        "origin": "generated",
        "classes": clean.classes,
        "train_images": 20,
        "test_images": 10,
        "train_bytes": sum(shard.bytes for shard in clean.shards),
        "test_bytes": sum(shard.bytes for shard in test.shards),
        "seconds": 0.0,
        "duplicates": [],
    }
    assert ("train", 20, 20) in heard and heard[-1] == ("test", 10, 10)


def test_twice_the_same_bytes_and_limits_keep_keys(tmp_path: Path) -> None:
    for name in ("one", "two"):
        build(tmp_path / name, {"train_limit": 12, "test_limit": 4})
        build(tmp_path / name, {"train_limit": 12, "test_limit": 4})
    assert digest(tmp_path / "one" / "clean") == digest(tmp_path / "two" / "clean")
    assert digest(tmp_path / "one" / "test") == digest(tmp_path / "two" / "test")
    build(tmp_path / "more", {"train_limit": 40, "test_limit": 4})
    few, many = load_arrays(tmp_path / "one" / "clean"), load_arrays(tmp_path / "more" / "clean")
    assert Counter(many.labels.tolist()) == dict.fromkeys(range(8), 5)
    index = {key: i for i, key in enumerate(many.keys)}
    for key, image in zip(few.keys, few.images, strict=True):
        np.testing.assert_array_equal(image, many.images[index[key]])


@pytest.mark.parametrize(
    "params",
    [{"shards": 3}, {"shard_size": 0}, {"train_limit": "many"}, {"path": "x"}, {"test_limit": -1}],
)
def test_parameters_are_checked_by_name(tmp_path: Path, params: dict[str, object]) -> None:
    with pytest.raises(ParameterError, match=next(iter(params))):
        build(tmp_path, params)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_data_set(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="cifar10"):
        build(tmp_path, {}, "cifar100")


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "thesis.tex").touch()
    with pytest.raises(UsageError, match="something else"):
        build(tmp_path, {"train_limit": 8, "test_limit": 8})
    assert [p.name for p in tmp_path.iterdir()] == ["test"]


def photos(root: Path, bad: int) -> Path:
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for i in range(20):
            Image.new("RGB", (20 + i, 30), (i, i, i)).save(root / name / f"{i}.png")
    for i in range(bad):
        Image.new("RGBA", (20, 20)).save(root / "cat" / f"bad{i:02d}.png")
    return root


def test_unsupported_images_are_refused_together_by_name(tmp_path: Path) -> None:
    build(tmp_path / "out", {"path": str(photos(tmp_path / "good", 0))}, "imagefolder")
    before = digest(tmp_path / "out" / "clean")
    photos(tmp_path / "photos", 13)
    with pytest.raises(UnsupportedImage, match=r"^13 images can not be used: .*cat/bad\d\d\.png is RGBA") as caught:
        build(tmp_path / "out", {"path": str(tmp_path / "photos")}, "imagefolder")
    assert caught.value.what.count("is RGBA") == 10
    assert "3 more" in caught.value.what
    assert digest(tmp_path / "out" / "clean") == before
    listed = tmp_path / "out" / "refused.csv"
    assert f"All of them are in {listed}." in caught.value.what
    rows = listed.read_text().splitlines()
    assert rows[0] == "file,reason" and sorted(rows[1:]) == [f"cat/bad{i:02d}.png,is RGBA" for i in range(13)]
    for path in (tmp_path / "photos").rglob("bad*"):
        path.unlink()
    build(tmp_path / "out", {"path": str(tmp_path / "photos")}, "imagefolder")
    assert not listed.exists()


def test_files_that_are_no_samples_are_all_listed(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", 0)
    for i in range(15):
        (root / "cat" / f"{i:02d}.gif").touch()
    with pytest.raises(DatasetError, match=r"15 things that are no samples: .*; and 5 more\. All of them are in "):
        build(tmp_path / "new" / "out", {"path": str(root)}, "imagefolder")
    rows = (tmp_path / "new" / "out" / "refused.csv").read_text().splitlines()
    assert rows[1:] == [f"cat/{i:02d}.gif,is neither PNG nor JPEG" for i in range(15)]


def test_what_is_refused_survives_being_sent(tmp_path: Path) -> None:
    sent = pickle.loads(pickle.dumps(UnusableFiles("What.", "Cure.", [("a", "is b")])))
    assert (sent.what, sent.cure, sent.files, sent.exit_code) == ("What.", "Cure.", [("a", "is b")], 3)


def test_images_that_come_twice_are_named_and_listed(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", 0)
    params = {"path": str(root), "test_path": str(photos(tmp_path / "tests", 0))}
    for i in range(4):
        shutil.copy(root / "cat" / f"{i}.png", root / "cat" / f"{i} (1).png")
    shutil.copy(root / "cat" / "0.png", root / "dog" / "again.png")
    (root / "dog" / "0.png").unlink()  # `photos` draws the same in both classes
    for i in range(1, 20):
        Image.new("RGB", (20 + i, 30), (i, 0, i)).save(root / "dog" / f"{i}.png")
    report = build(tmp_path / "out", params, "imagefolder")
    again = {"cat/0.png": "cat/0 (1).png", "dog/again.png": "cat/0 (1).png"}
    again |= {f"cat/{i}.png": f"cat/{i} (1).png" for i in (1, 2, 3)}
    assert dict(report.duplicates) == again and len(report.duplicates) == 5
    listed = tmp_path / "out" / "duplicates.csv"
    assert len(listed.read_text().splitlines()) == 6
    warning = report.warning(listed)
    assert warning is not None
    assert "again in 5 of 44 training images (cat/0.png is cat/0 (1).png, " in warning and str(listed) in warning
    assert warning.count(" is cat/") == 3

    for path in [*root.glob("cat/*(1).png"), root / "dog" / "again.png"]:
        path.unlink()
    report = build(tmp_path / "out", params, "imagefolder")
    assert report.warning(listed) is None
    assert not listed.exists()


def test_names_that_no_manifest_can_carry(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", 0)
    (root / "dog").rename(root / "dog ")
    with pytest.raises(DatasetError, match="can not be a class name"):
        build(tmp_path / "out", {"path": str(root)}, "imagefolder")


@pytest.mark.mirror
def test_cifar10(mirror: Path, tmp_path: Path) -> None:
    report = build(tmp_path, {"train_limit": 500, "test_limit": 100, "shard_size": 200}, "cifar10", mirror)
    assert (report.train_images, report.test_images) == (500, 100)
    arrays = load_arrays(tmp_path / "clean")
    assert arrays.images.shape == (500, 32, 32, 3)
    assert np.bincount(arrays.labels).tolist() == [50] * 10
    assert read_manifest(tmp_path / "clean").classes[6] == "frog"


@pytest.mark.mirror
def test_tinyimagenet(mirror: Path, tmp_path: Path) -> None:
    params = {"classes": 3, "seed": 1, "train_limit": 30, "test_limit": 9}
    report = build(tmp_path, params, "tinyimagenet", mirror)
    assert len(report.classes) == 3 and report.classes == sorted(report.classes)
    assert load_arrays(tmp_path / "clean").images.shape == (30, 64, 64, 3)
    assert np.bincount(load_arrays(tmp_path / "test").labels).tolist() == [3, 3, 3]
