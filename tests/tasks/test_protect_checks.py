"""What `dmcp protect` refuses before it begins."""

from pathlib import Path

import numpy as np
import pytest

from storage.errors import CorruptShard, DatasetError, ParameterError, UsageError
from storage.manifest import MANIFEST_NAME, Manifest, read_manifest, write_manifest
from storage.shards import Sample, write_shard
from tasks.growth import write_trained_on
from tasks.learning.models import Normalized, build_model
from tasks.method.seal import DataKey
from tasks.models_io import ModelInfo, save_model
from tasks.params import SurrogateParams
from tasks.protect_checks import (
    check_clean,
    check_network,
    check_split,
    check_surrogate,
    check_target,
    doubts,
    first_image,
    is_guessing,
    is_protected,
)
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


# --- the source ------------------------------------------------------------------------------------------------------


def test_what_is_protected_is_not_protected_again(clean: Path, tmp_path: Path) -> None:
    check_clean(read_manifest(clean), "clean", lambda name: (clean / name).open("rb"))
    made = protected_variant(tmp_path / "protected")
    opened: list[str] = []
    with pytest.raises(UsageError, match=r"protected already.*train-000000.tar"):
        check_clean(read_manifest(made), "it", lambda name: opened.append(name) or (made / name).open("rb"))
    assert opened == ["train-000000.tar"]
    (made / "train-000000.tar").write_bytes((clean / "train-000000.tar").read_bytes())
    with pytest.raises(UsageError, match=r"protected already.*train-000001.tar"):
        check_clean(read_manifest(made), "it", lambda name: (made / name).open("rb"))


def test_the_test_split_is_not_protected() -> None:
    for split in ("train", "extra"):
        check_split(Manifest(dataset="pets", split=split, classes=["cat"], shards=[]), "it")
    with pytest.raises(UsageError, match="it is the test split of pets"):
        check_split(Manifest(dataset="pets", split="test", classes=["cat"], shards=[]), "it")


# --- the surrogate ---------------------------------------------------------------------------------------------------

SECTION = SurrogateParams(
    architecture="resnet18", stem="imagenet", recipe="paper", epochs=1, lr=None, batch_size=None, seed=0, snapshots=1,
    image_size=None, keep=True,
)  # fmt: skip


def network(folder: Path, classes: list[str], architecture: str = "mobilenet_v2") -> Path:
    folder.mkdir()
    model = Normalized(build_model(architecture, len(classes), "imagenet"), (0.5,) * 3, (0.25,) * 3)
    save_model(folder / "model.pt", model, ModelInfo(architecture, "imagenet", classes, 32, 32))
    return folder / "model.pt"


def test_a_network_that_could_be_the_surrogate() -> None:
    check_network(SECTION, 2, "layer4")
    check_network(SECTION, 2, "logits")
    for changed in ({"architecture": "linear"}, {"architecture": "nothing"}):
        with pytest.raises(ParameterError):
            check_network(SECTION.model_copy(update=changed), 2, "layer4")


def test_a_surrogate_of_these_classes(clean: Path, tmp_path: Path) -> None:
    manifest = read_manifest(clean)
    assert check_surrogate(network(tmp_path / "same", ["cat", "dog"]), manifest, "logits").classes == ["cat", "dog"]
    for number, classes in enumerate((["dog", "cat"], ["car", "bus"], ["cat", "dog", "emu"])):
        with pytest.raises(UsageError, match="other classes"):
            check_surrogate(network(tmp_path / str(number), classes), manifest, "logits")
    with pytest.raises(ParameterError, match="no layer 'layer4'"):
        check_surrogate(tmp_path / "same" / "model.pt", manifest, "layer4")
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "nothing"):
        with pytest.raises(DatasetError):
            check_surrogate(path, manifest, "logits")


def test_a_surrogate_of_before_the_data_set_grew(clean: Path, tmp_path: Path) -> None:
    before = read_manifest(clean)
    grown = before.model_copy(update={"classes": ["cat", "dog", "emu"]})
    model = network(tmp_path / "model", ["cat", "dog"])
    with pytest.raises(ParameterError, match="no record beside it"):
        check_surrogate(model, grown, "logits")
    write_trained_on(model.parent, before, {})
    check_surrogate(model, grown, "logits")


def test_what_little_is_to_be_expected_of(tmp_path: Path) -> None:
    model = tmp_path / "model.pt"
    assert doubts(model, "resnet18", 10) == []
    (tmp_path / "metrics.json").write_text("{}")
    assert doubts(model, "resnet18", 10) == []
    (tmp_path / "metrics.json").write_text('{"test_accuracy": 0.11, "n_test": 500}')
    (said,) = doubts(model, "resnet18", 10)
    assert "11.0% of 500 images right" in said
    assert "expect no protection" in said
    (tmp_path / "metrics.json").write_text('{"test_accuracy": 0.31, "n_test": 500}')
    assert doubts(model, "resnet18", 10) == []
    assert "protects nothing" in doubts(model, "linear", 10)[0]


def test_guessing() -> None:
    assert is_guessing(0.1, 10_000, 10)
    assert not is_guessing(0.12, 10_000, 10)
    assert is_guessing(0.12, 100, 10)
    assert is_guessing(1.0, 10, 1)


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
