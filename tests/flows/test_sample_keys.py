"""From file names to keys, and from keys to a grant for them: `dmcp data keys` and `dmcp access grant --samples`."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from flows.cli import app
from storage.manifest import Manifest, write_manifest
from storage.registry import open_registry
from storage.settings import settings
from storage.shards import Sample, write_shard
from tasks.ledger import sample_key
from tasks.method.seal import DataKey
from tests.spilled import clean_images, hide

KEYS = (0, 2, 17)


def dmcp(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def granted() -> list[list[str] | None]:
    with open_registry(settings()) as book:
        return [made.samples for made in book.list_grants()]


@pytest.fixture
def pets(home: Path) -> Path:
    """A protected variant of three images, with a user who may be granted some of them."""
    folder = settings().data_path("pets", "protected")
    folder.mkdir(parents=True)
    pngs = hide(clean_images(3), DataKey(bytes(32), "pets"))
    samples = [Sample(sample_key(key), png, 0) for key, png in zip(KEYS, pngs, strict=True)]
    shards = [write_shard(folder / f"train-{i:06d}.tar", part) for i, part in enumerate((samples[:2], samples[2:]))]
    write_manifest(folder, Manifest(dataset="pets", split="train", classes=["cat", "dog"], shards=shards))
    dmcp("access", "add-user", "ann")
    dmcp("key", "create", "pets")
    return folder


@pytest.mark.parametrize("local", [True, False])
def test_keys_are_completed_and_those_of_no_image_refused(pets: Path, tmp_path: Path, local: bool) -> None:
    version = dmcp("publish", pets).stdout.split("pets@")[1][:16]
    if not local:
        pets.rename(tmp_path / "elsewhere")
    file = tmp_path / "keys.txt"
    grant = ("access", "grant", "ann", "pets", "--version", version, "--samples", file)
    file.write_text("17\n000000002.png\n")
    assert "2 samples" in dmcp(*grant).stdout
    assert granted() == [["000000002", "000000017"]]
    file.write_text("2\n3\ncat/1.jpg\n")
    said = dmcp(*grant, code=8).stderr
    assert "2 of 3 keys are of no image of pets as published: '3', 'cat/1.jpg'." in said
    assert "dmcp data keys" in said
    file.write_text("2\n3\n")
    dmcp(*grant, "--ahead")
    assert ["000000002", "000000003"] in granted()


def test_before_anything_is_published_the_local_variant_is_looked_at(pets: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    file.write_text("3\n")
    grant = ("access", "grant", "ann", "pets", "--version", "0123456789abcdef", "--samples", file)
    assert "'3'" in dmcp(*grant, code=8).stderr
    file.write_text("0\n")
    dmcp(*grant)
    assert granted() == [["000000000"]]


def test_an_owner_finds_the_keys_of_files(home: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "mine" / label).mkdir(parents=True)
        for i in range(10):
            pixels = random.integers(0, 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "mine" / label / f"{i}.png")
    out = tmp_path / "v"
    dmcp("data", "get", "imagefolder", out, "--path", tmp_path / "mine", "--dataset", "pets")
    listed = dmcp("data", "keys", out, "--csv").stdout.splitlines()
    assert listed[0] == "key,class,file"
    key, label, name = listed[-1].split(",")
    assert (len(key), label) == (9, "dog") and name.startswith("dog/")
    assert dmcp("data", "keys", out, name, "--quiet").stdout == f"{key}\n"
    assert key in dmcp("data", "keys", out, tmp_path / "mine" / name).stdout
    dmcp("data", "keys", out, "dog/nosuch.png", code=8)
    assert "ledger.json" in dmcp("data", "keys", tmp_path / "mine", code=3).stderr
    dmcp("data", "get", "sample", tmp_path / "s", "--set", "train_limit=8", "--set", "test_limit=8")
    assert "no file names" in dmcp("data", "keys", tmp_path / "s", code=3).stderr
