from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from storage.errors import DatasetError, ParameterError
from tasks.datasets import imagefolder
from tasks.datasets.imagefolder import is_test
from tasks.datasets.source import Place, Source, check_parameters

PLACE = Place(None, Path("unused"))


def photo(path: Path, size: tuple[int, int] = (20, 18), mode: str = "RGB", value: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, value, value)).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    for name in ("zebra", "Ant", "dog"):
        for i in range(12):
            suffix = (".png", ".jpg", ".JPEG")[i % 3]
            photo(root / name / ("old" if i % 2 else "") / f"{i}{suffix}", (16 + i, 40 - i), "L" if i == 6 else "RGB")
    (root / "dog" / ".DS_Store").touch()
    (root / "dog" / "Thumbs.db").touch()
    (root / ".cache").mkdir()
    (root / ".cache" / "x.png").touch()
    return root


def read(root: Path, **params: object) -> tuple[Source, dict[str, list[np.ndarray]]]:
    parameters = check_parameters(imagefolder.Parameters, {"path": str(root), **params}, "imagefolder")
    with imagefolder.open_source(parameters, PLACE) as source:
        return source, {
            name: [split.read(i) for i in range(len(split.labels))] for name, split in source.splits.items()
        }


def test_order_sizes_and_split(photos: Path) -> None:
    source, images = read(photos)
    assert source.classes == ["Ant", "dog", "zebra"]
    train, test = source.splits["train"].labels, source.splits["test"].labels
    assert train == sorted(train) and len(train) + len(test) == 36 and 2 <= len(test) <= 14
    names = sorted(
        p.relative_to(photos).as_posix() for p in photos.rglob("*") if p.suffix.lower() in imagefolder._IMAGES
    )
    names = [name for name in names if not name.startswith(".")]
    expected = [name for name in names if not is_test(name, 0.2, 0)]
    sizes = [Image.open(photos / name).size for name in expected]
    assert [(image.shape[1], image.shape[0]) for image in images["train"]] == sizes
    assert all(image.shape[2] == 3 for image in images["train"])


def test_adding_images_moves_no_other(photos: Path) -> None:
    before = {name: is_test(name, 0.3, 7) for name in (f"dog/{i}.png" for i in range(500))}
    assert 100 < sum(before.values()) < 200
    assert before != {name: is_test(name, 0.3, 8) for name in before}
    _, images = read(photos, test_share=0.4, seed=3)
    sizes = [image.shape for image in images["test"]]
    for i in range(20):
        photo(photos / "zebra" / f"zz{i}.png", (50, 50))
    _, more = read(photos, test_share=0.4, seed=3)
    assert [image.shape for image in more["test"] if image.shape != (50, 50, 3)] == sizes


def test_a_test_folder_of_its_own(photos: Path, tmp_path: Path) -> None:
    for name in ("dog", "zebra"):
        photo(tmp_path / "test" / name / "1.png")
    source, images = read(photos, test_path=str(tmp_path / "test"), test_share=0.2)  # as params.yaml has it
    assert len(images["train"]) == 36 and source.splits["test"].labels == [1, 2]
    photo(tmp_path / "test" / "cow" / "1.png")
    with pytest.raises(DatasetError, match="cow"):
        read(photos, test_path=str(tmp_path / "test"))


def test_problems_are_named_together(photos: Path) -> None:
    (photos / "empty").mkdir()
    (photos / "notes.txt").touch()
    photo(photos / "loose.png")
    for i in range(12):
        (photos / "dog" / f"x{i:02d}.webp").touch()
    with pytest.raises(DatasetError, match="15 things") as caught:
        read(photos)
    assert "dog/x00.webp is neither PNG nor JPEG" in caught.value.what
    assert caught.value.what.count(";") == 10 and "; and " in caught.value.what and " more." in caught.value.what


def test_each_layout_problem(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no folder.*--path"):
        read(tmp_path / "missing")
    photo(tmp_path / "a" / "1.png")
    with pytest.raises(DatasetError, match=r"1\.png is no folder"):
        read(tmp_path / "a" / "1.png")
    with pytest.raises(DatasetError, match="1 class"):
        read(tmp_path)
    (tmp_path / "b").mkdir()
    with pytest.raises(DatasetError, match="b is a class folder and holds no image"):
        read(tmp_path)
    photo(tmp_path / "b" / "1.png")
    with pytest.raises(DatasetError, match="for testing"):
        read(tmp_path, test_share=1e-9)
    with pytest.raises(DatasetError, match="No training image is left of a, b"):
        read(tmp_path, test_share=1 - 1e-9)


@pytest.mark.parametrize("params", [{"test_share": 0.3, "test_path": "x"}, {"test_share": 1}, {"wnids": []}])
def test_parameters(photos: Path, params: dict[str, object]) -> None:
    with pytest.raises(ParameterError):
        read(photos, **params)
    with pytest.raises(ParameterError, match=r"path is not given.*--path FOLDER"):
        check_parameters(imagefolder.Parameters, {}, "imagefolder")


def test_the_section_of_params_yaml_may_be_named_too(photos: Path) -> None:
    given = {"path": str(photos), "test_share": 0.2, "download": {"test_share": 0.5}}
    assert check_parameters(imagefolder.Parameters, given, "imagefolder").test_share == 0.5


def test_links_are_named(photos: Path, tmp_path: Path) -> None:
    (photos / "ibex").symlink_to(photos / "dog")
    (photos / "dog" / "more").symlink_to(photos / "zebra")
    (photos / "dog" / "gone.png").symlink_to(tmp_path / "nothing")
    (photos / "dog" / "there.png").symlink_to(sorted(photos.glob("dog/*.png"))[0])
    with pytest.raises(DatasetError, match="3 things") as caught:
        read(photos)
    for name in ("ibex is a symbolic link to a folder", "dog/more is a", "dog/gone.png is a symbolic link that leads"):
        assert name in caught.value.what


def test_composed_and_decomposed_names_are_the_same(tmp_path: Path) -> None:
    for root, name in (("nfc", "caf\u00e9"), ("nfd", "cafe\u0301")):
        for i in range(8):
            photo(tmp_path / root / name / f"{i}.png")
            photo(tmp_path / root / "bar" / f"{i}.png")
    one, two = read(tmp_path / "nfc", test_share=0.5)[0], read(tmp_path / "nfd", test_share=0.5)[0]
    assert one.classes == two.classes
    assert one.splits["test"].labels == two.splits["test"].labels
