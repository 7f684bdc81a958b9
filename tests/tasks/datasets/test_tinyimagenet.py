import io
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from storage.errors import DatasetError, ParameterError
from tasks.datasets import tinyimagenet
from tasks.datasets.source import Place, Source, check_parameters

WORDS = {"n00000001": "goldfish, Carassius", "n00000002": "newt", "n00000003": "bow/arrow", "n00000004": "newt, other"}


def jpeg(grey: int, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (64, 64), grey if mode == "L" else (grey, grey, grey)).save(buffer, "JPEG")
    return buffer.getvalue()


def files() -> dict[str, bytes]:
    content = {"words.txt": "".join(f"{w}\t{name}\n" for w, name in WORDS.items()).encode()}
    content["wnids.txt"] = "\n".join(WORDS).encode()
    lines = []
    for c, wnid in enumerate(WORDS):
        content[f"train/{wnid}/{wnid}_boxes.txt"] = b"x"
        for i in (10, 9, 2):
            content[f"train/{wnid}/images/{wnid}_{i}.JPEG"] = jpeg(c * 40 + i, "L" if i == 9 else "RGB")
        for i in range(2):
            content[f"val/images/val_{c + 4 * i}.JPEG"] = jpeg(c * 40 + 20 + i)
            lines.append(f"val_{c + 4 * i}.JPEG\t{wnid}\t0\t0\t62\t62\n")
    content["val/val_annotations.txt"] = "".join(reversed(lines)).encode()
    return content


def archive(path: Path, content: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, data in content.items():
            file.writestr(f"tiny-imagenet-200/{name}", data)
    return path


@pytest.fixture
def small(tmp_path: Path) -> Path:
    archive(tmp_path / "tiny-imagenet-200-some.zip", files())
    return tmp_path


def read(mirror: Path, **params: object) -> tuple[Source, dict[str, list[np.ndarray]]]:
    parameters = check_parameters(tinyimagenet.Parameters, params, "tinyimagenet")
    with tinyimagenet.open_source(parameters, Place(mirror, mirror / "downloads")) as source:
        return source, {
            name: [split.read(i) for i in range(len(split.labels))] for name, split in source.splits.items()
        }


def test_names_order_and_labels(small: Path) -> None:
    source, images = read(small)
    assert source.classes == ["bow-arrow", "goldfish", "newt (n00000002)", "newt (n00000004)"]
    assert source.splits["train"].labels == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert source.splits["test"].labels == [1, 2, 0, 3, 1, 2, 0, 3]
    assert [int(image.mean()) for image in images["train"]] == [82, 89, 90, 2, 9, 10, 42, 49, 50, 122, 129, 130]
    assert [int(image.mean()) for image in images["test"]] == [20, 60, 100, 140, 21, 61, 101, 141]
    assert all(image.shape == (64, 64, 3) for image in images["train"])


def test_a_folder_is_as_good_as_the_archive(small: Path) -> None:
    source, images = read(small)
    path = small / "tiny-imagenet-200-some.zip"
    zipfile.ZipFile(path).extractall(small)
    path.unlink()
    again, unpacked = read(small)
    assert again.classes == source.classes
    np.testing.assert_array_equal(np.stack(unpacked["train"]), np.stack(images["train"]))


def test_the_official_archive_goes_first(small: Path) -> None:
    archive(small / "tiny-imagenet-200.zip", files())
    assert read(small)[0].origin == "tiny-imagenet-200.zip (mirror)"


def test_choice_of_classes(small: Path) -> None:
    source, images = read(small, wnids=["n00000003", "n00000001"])
    assert source.classes == ["bow-arrow", "goldfish"] and len(images["test"]) == 4
    drawn = Counter(tuple(read(small, classes=2, seed=seed)[0].classes) for seed in range(12))
    assert len(drawn) > 2
    assert read(small, classes=2, seed=5)[0].classes == read(small, classes=2, seed=5)[0].classes
    assert read(small, wnids=["n00000002", "n00000003"])[0].classes == ["bow-arrow", "newt"]


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"classes": 5}, "5 classes"),
        ({"classes": 1}, "classes"),
        ({"wnids": ["n00000001", "n99999999"]}, "n99999999"),
        ({"wnids": ["n00000001", "n00000002"], "classes": 2}, "either"),
        ({"path": "x"}, "path"),
    ],
)
def test_parameters(small: Path, params: dict[str, object], reason: str) -> None:
    with pytest.raises(ParameterError, match=reason):
        read(small, **params)


@pytest.mark.parametrize("missing", ["words.txt", "val/val_annotations.txt", "val/images/val_3.JPEG"])
def test_what_is_missing_is_named(tmp_path: Path, missing: str) -> None:
    content = files()
    del content[missing]
    archive(tmp_path / "tiny-imagenet-200.zip", content)
    with pytest.raises(DatasetError, match=missing):
        read(tmp_path)


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / "tiny-imagenet-200.zip"
    archive(path, {"readme": b""})
    with pytest.raises(DatasetError, match="not laid out"):
        read(tmp_path)
    path.write_bytes(b"PK")
    with pytest.raises(DatasetError, match="no readable zip"):
        read(tmp_path)
    data = bytearray(archive(path, files()).read_bytes())
    data[data.index(b"\xff\xda") + 4] ^= 255
    path.write_bytes(data)
    with pytest.raises(DatasetError, match="damaged"):
        read(tmp_path)


@pytest.mark.mirror
def test_the_real_one(mirror: Path) -> None:
    parameters = check_parameters(tinyimagenet.Parameters, {}, "tinyimagenet")
    with tinyimagenet.open_source(parameters, Place(mirror, mirror)) as source:
        train, test = source.splits["train"], source.splits["test"]
        assert np.bincount(train.labels).tolist() == [500] * len(source.classes)
        assert np.bincount(test.labels).tolist() == [50] * len(source.classes)
        images = [train.read(i) for i in range(0, len(train.labels), 97)]
    assert {image.shape for image in images} == {(64, 64, 3)}
