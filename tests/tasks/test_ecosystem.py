"""A published version in the hands of others: webdataset, Hugging Face datasets, mlcroissant, torchvision.

The version is real: protected images, published to the embedded server, then pulled, and mirrored object by object.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torchvision.datasets import ImageFolder

from storage.croissant import About, croissant
from storage.datacard import data_card
from storage.manifest import Manifest, read_manifest
from storage.objects import ObjectStore
from storage.png import decode_png
from storage.publication import PublishedVersion, list_versions, pull
from storage.server import ServerAddress
from storage.shards import ShardInfo, read_shard
from storage.versions import version_key
from tasks.export import export_imagefolder
from tasks.method.seal import DataKey
from tasks.publish import publish_variant
from tests.spilled import clean_images, hide, variant_of

KEY = DataKey(bytes(range(32)), "mine")
ABOUT = About("owner@example.org", "An Owner", "https://example.org/mine")


class World:
    """One version: as it was made, as it was pulled, and as a mirror of the bucket has it."""

    def __init__(self, store: ObjectStore, folder: Path) -> None:
        self.store, self.made = store, variant_of(folder / "made", "mine", hide(clean_images(8), KEY))
        self.version: PublishedVersion = publish_variant(self.made, store, "mine", about=ABOUT)
        self.pulled = folder / "pulled"
        pull(store, "mine", self.pulled)
        for item in store.list():
            path = folder / "mirror" / item.key
            path.parent.mkdir(parents=True, exist_ok=True)
            store.get_file(item.key, path)
        self.mirrored = folder / "mirror" / "mine" / "versions" / self.version.id
        self.manifest = read_manifest(self.made)

    @property
    def images(self) -> dict[str, tuple[NDArray[np.uint8], int | None]]:
        """Key to protected pixels and label."""
        shards = [read_shard(self.made / shard.name) for shard in self.manifest.shards]
        return {s.key: (decode_png(s.png, s.key), s.label) for samples in shards for s in samples}

    def same(self, found: Iterator[tuple[str, Any, Any]]) -> None:
        """Assert that these (key, image, label) are the images, all of them."""
        rows = list(found)
        expected = self.images
        assert sorted(key for key, _, _ in rows) == sorted(expected)
        for key, image, label in rows:
            np.testing.assert_array_equal(np.asarray(image), expected[key][0])
            assert int(label) == expected[key][1]


@pytest.fixture(scope="module")
def world(object_server: ServerAddress, tmp_path_factory: pytest.TempPathFactory) -> World:
    store = object_server.store("ecosystem")
    store.ensure_bucket()
    return World(store, tmp_path_factory.mktemp("ecosystem"))


@pytest.fixture(scope="module")
def mlcroissant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CROISSANT_CACHE", str(tmp_path_factory.mktemp("croissant")))
        import mlcroissant

        yield mlcroissant


@pytest.fixture
def datasets(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    return datasets


@pytest.mark.parametrize("where", ["pulled", "mirrored"])
def test_hugging_face_opens_the_folder_itself(world: World, datasets: ModuleType, tmp_path: Path, where: str) -> None:
    data = datasets.load_dataset(str(getattr(world, where)), cache_dir=str(tmp_path))
    assert set(data) == {"train"}
    assert data["train"].features["cls"].names == world.manifest.classes
    world.same((row["__key__"], row["png"], row["cls"]) for row in data["train"])


def test_hugging_face_opens_the_shards_of_a_mirror(world: World, datasets: ModuleType, tmp_path: Path) -> None:
    shards = sorted(str(path) for path in (world.mirrored.parents[1] / "shards").glob("*.tar"))
    data = datasets.load_dataset("webdataset", data_files=shards, split="train", cache_dir=str(tmp_path))
    world.same((row["__key__"], row["png"], row["cls"]) for row in data)


@pytest.mark.parametrize("where", ["pulled", "mirrored"])
def test_webdataset_opens_the_shards(world: World, where: str) -> None:
    import webdataset

    folder = {"pulled": world.pulled, "mirrored": world.mirrored.parents[1] / "shards"}[where]
    shards = sorted(str(path) for path in folder.glob("*.tar"))
    data = webdataset.WebDataset(shards, shardshuffle=False, empty_check=False).decode("pil")
    world.same(iter(data.to_tuple("__key__", "png", "cls")))


def test_torchvision_opens_the_export(world: World, tmp_path: Path) -> None:
    export_imagefolder(world.pulled, tmp_path / "out")
    folder = ImageFolder(str(tmp_path / "out"))
    assert folder.classes == world.manifest.classes
    world.same((Path(path).stem, folder.loader(path), label) for path, label in folder.samples)


def text(value: str | bytes) -> str:
    """mlcroissant gives texts as bytes."""
    return value.decode() if isinstance(value, bytes) else value


def opened(mlcroissant: ModuleType, folder: Path, names: list[str]) -> Any:
    return mlcroissant.Dataset(folder / "croissant.json", mapping={name: folder / name for name in names})


@pytest.mark.parametrize("where", ["pulled", "mirrored"])
def test_mlcroissant_accepts_the_description_and_reads_by_it(world: World, mlcroissant: ModuleType, where: str) -> None:
    names = [shard.name for shard in world.manifest.shards] if where == "pulled" else []
    data = opened(mlcroissant, getattr(world, where), names)
    issues = data.metadata.ctx.issues
    assert not issues.errors
    assert [w for w in issues.warnings if "datePublished" not in w] == [], "it was given no date"
    assert data.metadata.name == "mine"
    assert world.version.id in data.metadata.version and world.version.id in data.metadata.cite_as
    assert "does badly" in data.metadata.data_use_cases[0]
    assert [f.sha256 for f in data.metadata.file_objects] == [shard.sha256 for shard in world.manifest.shards]
    classes = {row["classes/index"]: text(row["classes/name"]) for row in data.records("classes")}
    assert classes == dict(enumerate(world.manifest.classes))
    labels = {text(row["labels/key"]): row["labels/label"] for row in data.records("labels")}
    images = [(text(row["images/key"]), row["images/image"]) for row in data.records("images")]
    world.same((key, image.convert("RGB"), labels[key]) for key, image in images)


def test_mlcroissant_notices_an_altered_shard(world: World, mlcroissant: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    pull(world.store, "mine", folder)
    names = [shard.name for shard in world.manifest.shards]
    path = folder / names[0]
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.unlink()  # what pull fetched may be a link
    path.write_bytes(data)
    with pytest.raises(Exception, match=r"(?i)hash|download"):
        list(opened(mlcroissant, folder, names).records("images"))


def test_what_the_texts_say_and_do_not_say(world: World) -> None:
    card, description = ((world.mirrored / name).read_text() for name in ("README.md", "croissant.json"))
    for said in (card, description):
        assert "owner@example.org" in said
        assert "does badly on real" in said
        assert world.version.id in said
        assert KEY.key_id.hex() not in said
        assert str(world.made.parent) not in said and world.store.endpoint not in said
    assert "An Owner" in card and "https://example.org/mine" in card
    assert "../../shards/" in card and "../../shards/" not in (world.pulled / "README.md").read_text()
    assert croissant(world.version.id, world.manifest, ABOUT).decode() == description
    assert data_card(world.version.id, world.manifest, ABOUT, payloads=True) == card


def test_a_version_of_before_these_files_is_still_listed_and_pulled(
    store: ObjectStore, world: World, tmp_path: Path
) -> None:
    version = publish_variant(world.made, store, "mine").id
    store.delete(version_key("mine", version, "croissant.json"))
    store.put_bytes(version_key("mine", version, "README.md"), b"# mine\n")
    assert [v.id for v in list_versions(store, "mine")] == [version]
    for _ in range(2):
        assert pull(store, "mine", tmp_path / "out").id == version
    assert (tmp_path / "out" / "README.md").read_bytes() == b"# mine\n"
    assert not (tmp_path / "out" / "croissant.json").exists()
    newer = publish_variant(world.made, store, "mine", "Other terms.").id
    assert pull(store, "mine", tmp_path / "out").id == newer
    assert (tmp_path / "out" / "croissant.json").exists()


class_names = st.text(min_size=1, max_size=20).filter(
    lambda name: name == name.strip() and name.isprintable() and name not in (".", "..") and not set("/\\") & set(name)
)
words = st.none() | st.text(max_size=40)


@given(st.lists(class_names, max_size=5, unique=True), words, words, st.integers(0, 10**10), st.integers(0, 2))
def test_any_names_can_be_described(
    classes: list[str], creator: str | None, contact: str | None, samples: int, shards: int
) -> None:
    infos = [ShardInfo(f"train-{i:06d}.tar", samples, 1, f"{i:064x}") for i in range(shards)]
    manifest = Manifest(dataset="mine", split="train", classes=classes, shards=infos)
    about = About(contact, creator)
    fields = yaml.safe_load(data_card("0" * 16, manifest, about).split("\n---\n")[0])
    by_name = {feature["name"]: feature["dtype"] for feature in fields["dataset_info"]["features"]}
    names = by_name["cls"]["class_label"]["names"] if classes else {}
    assert [names[str(i)] for i in range(len(classes))] == classes
    assert fields["configs"][0]["data_files"][0]["split"] == "train"
    described = json.loads(croissant("0" * 16, manifest, about))
    sets = {record_set["@id"]: record_set for record_set in described["recordSet"]}
    assert [row["classes/name"] for row in sets["classes"]["data"]] == classes if classes else set(sets) == {"images"}
    assert described["citeAs"].count("{") == described["citeAs"].count("}")
