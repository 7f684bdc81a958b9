"""What `dmcp protect` refuses before it begins."""

from pathlib import Path

import numpy as np
import pytest

from storage.errors import CorruptShard, UsageError
from storage.manifest import MANIFEST_NAME, Manifest, read_manifest, write_manifest
from storage.shards import Sample, write_shard
from tasks.method.seal import DataKey
from tasks.protect_checks import check_target, first_image, is_protected
from tests.protected import protect_images
from tests.services import make_variant
from tests.spilled import variant_of


def protected_variant(folder: Path, dataset: str = "pets") -> Path:
    clean = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    return variant_of(folder, dataset, protect_images(clean, DataKey(bytes(32), dataset)))


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    make_variant(tmp_path / "clean", dataset="pets")
    return tmp_path / "clean"


def check(clean: Path, target: Path) -> None:
    check_target(clean, target, read_manifest(clean))


# --- the target ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target", ["clean", "clean/", "clean/../clean", "link", "there/clean", "", "clean/p", "link/p"]
)
def test_the_source_is_never_replaced(clean: Path, tmp_path: Path, target: str) -> None:
    (tmp_path / "link").symlink_to(clean)
    (tmp_path / "there").symlink_to(tmp_path)
    with pytest.raises(UsageError, match="clean images would be destroyed"):
        check(clean, Path(f"{tmp_path}/{target}"))
    with pytest.raises(UsageError, match="clean images would be destroyed"):
        check(tmp_path / "link", Path(f"{tmp_path}/{target}"))


def test_nor_is_a_link_in_it_that_leads_out_of_it(clean: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (clean / "out").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="clean images would be destroyed"):
        check(clean, clean / "out")


def test_a_relative_target_is_found_out(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clean)
    for target in (".", "..", "../clean", "new"):
        with pytest.raises(UsageError, match="clean images would be destroyed"):
            check(clean, Path(target))


def test_a_new_an_empty_and_an_earlier_folder_are_taken(clean: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for target in (tmp_path / "new", tmp_path / "empty", protected_variant(tmp_path / "protected")):
        check(clean, target)
    next((tmp_path / "protected").glob("*.tar")).unlink()
    check(clean, tmp_path / "protected")  # damaged, and made again


def test_other_variants_are_not_replaced(clean: Path, tmp_path: Path) -> None:
    make_variant(tmp_path / "recovered", dataset="pets")
    with pytest.raises(UsageError, match=r"images that are not protected \(train-000000.tar\)"):
        check(clean, tmp_path / "recovered")
    with pytest.raises(UsageError, match="the data set cars, split train"):
        check(clean, protected_variant(tmp_path / "cars", "cars"))
    mine = protected_variant(tmp_path / "test")
    tests = Manifest(dataset="pets", split="test", classes=["cat", "dog"], shards=[])
    write_manifest(mine, tests)
    with pytest.raises(UsageError, match="the data set pets, split test"):
        check(clean, mine)


def test_one_clean_shard_is_enough(clean: Path, tmp_path: Path) -> None:
    mixed = protected_variant(tmp_path / "mixed")
    (mixed / "train-000001.tar").write_bytes((clean / "train-000001.tar").read_bytes())
    with pytest.raises(UsageError, match="not protected"):
        check(clean, mixed)


def test_what_is_no_variant_is_not_replaced(clean: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"):
        check(clean, tmp_path / "file")
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "1.jpg").touch()
    with pytest.raises(UsageError, match="something else"):
        check(clean, folder)
    (folder / MANIFEST_NAME).write_text("{}")
    with pytest.raises(UsageError, match="can not be read"):
        check(clean, folder)
    mine = protected_variant(tmp_path / "p")
    (mine / "train-000000.tar").write_bytes(b"no tar")
    with pytest.raises(UsageError, match="can not be told from clean"):
        check(clean, mine)


# --- the first image of a shard --------------------------------------------------------------------------------------


def test_the_first_image_of_a_shard(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", [Sample("a", b"first", 1), Sample("b", b"second", 1)])
    write_shard(tmp_path / "b.tar", [])
    with (tmp_path / "a.tar").open("rb") as file:
        assert first_image(file, "a.tar") == b"first"
    with (tmp_path / "b.tar").open("rb") as file:
        assert first_image(file, "b.tar") is None
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:514])
    with (tmp_path / "a.tar").open("rb") as file, pytest.raises(CorruptShard, match="The shard"):
        first_image(file, "a.tar")


def test_a_protection_header_is_found(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    (png,) = protect_images(images, DataKey(bytes(32), "pets"))
    assert is_protected(png, "p")
