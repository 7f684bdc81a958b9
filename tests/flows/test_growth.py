"""A folder of images that grows: new shards only, the surrogate of before, and a version that shares the old shards."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from flows.commands.protect import _surrogate as surrogate_of
from flows.download import download, has_changed
from flows.protect import protect
from flows.publish import latest_published, publish_folder
from flows.restore import restore
from flows.services import object_store
from flows.surrogate import surrogate
from storage.files import sha256_file
from storage.manifest import Manifest, read_manifest, verify_variant
from storage.objects import open_store
from storage.pull import pull
from storage.settings import settings
from storage.shards import read_shard
from tasks.datasets.imagefolder import is_test
from tasks.digests import dvc_digest
from tasks.params import deep_merge, load_params
from tests.flows.world import PROJECT, TINY, entered

DATASET = "imagefolder"
SIZE = 12


def paint(folder: Path, label: str, names: list[str]) -> None:
    """Images of 32x32 whose names decide them: a shade for the class, and noise."""
    (folder / label).mkdir(parents=True, exist_ok=True)
    for name in names:
        random = np.random.default_rng([*label.encode(), *name.encode()])
        shade = random.integers(0, 200, 3) * 0 + [60 * (ord(label[0]) % 4)]
        pixels = np.clip(shade + random.integers(0, 40, (32, 32, 3)), 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / label / f"{name}.png")


def write_params(**surrogate_values: object) -> None:
    raw = yaml.safe_load((PROJECT / "params.yaml").read_text())
    own = {
        "seeds": [0],
        "download": {"path": "images", "test_share": 0.2, "shard_size": SIZE},
        "surrogate": {**TINY["surrogate"], "image_size": None, **surrogate_values},
        "protect": TINY["protect"],
    }
    raw["datasets"][DATASET] = deep_merge(raw["datasets"][DATASET], own)
    Path("params.yaml").write_text(yaml.safe_dump(raw))


def run(*stages) -> None:
    for stage in stages or (download, surrogate, protect):
        stage(DATASET)


def variant(name: str) -> Manifest:
    return verify_variant(Path("data", DATASET, name))


def digests(manifest: Manifest) -> list[str]:
    return [shard.sha256 for shard in manifest.shards]


def reports() -> dict[Path, int]:
    """When each finished shard of the protect stage was finished."""
    return {path: path.stat().st_mtime_ns for path in Path(".dmcp/work/protect", DATASET).glob("*/*/report.json")}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, prefect_api: str) -> Path:
    """A folder in which the first version was made."""
    with entered(tmp_path_factory.mktemp("growth")) as folder:
        for label in ("cat", "dog", "emu"):
            paint(folder / "images", label, [f"{i:03d}" for i in range(20)])
        write_params()
        run()
    return folder


@pytest.fixture
def grown(first: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of it, in which nothing has grown yet."""
    shutil.copytree(first, tmp_path / "copy")
    with entered(tmp_path / "copy") as folder:
        yield folder


def grow() -> None:
    """Ten images in the midst of the old ones, and a class that sorts before the old ones."""
    paint(Path("images"), "cat", [f"{i:03d}-later" for i in range(10)])
    paint(Path("images"), "bee", [f"{i:03d}" for i in range(15)])


def test_a_look_at_the_folder_says_whether_it_changed(grown: Path) -> None:
    assert not has_changed(DATASET)
    path = Path("images/dog/007.png")
    path.write_bytes(path.read_bytes())
    assert has_changed(DATASET)
    run(download)
    assert not has_changed(DATASET)
    path.unlink()
    assert has_changed(DATASET)
    assert not has_changed("sample"), "it never grows"
    Path("images/dog/notes.txt").touch()
    assert has_changed(DATASET), "the stage says what is wrong, and lists it"


def test_what_comes_in_makes_new_shards_only(grown: Path) -> None:
    clean, protected, tests = variant("clean"), variant("protected"), variant("test")
    model, finished = sha256_file(Path("data", DATASET, "surrogate/model.pt")), reports()
    with object_store():
        before = publish_folder(f"data/{DATASET}/protected", DATASET)
        assert latest_published(DATASET) == before["id"]
    grow()
    run()
    now = {name: variant(name) for name in ("clean", "protected", "test")}
    old = len(clean.shards)
    assert now["clean"].shards[:old] == clean.shards
    assert now["test"].shards[: len(tests.shards)] == tests.shards
    assert now["protected"].shards[:old] == protected.shards
    assert len(now["clean"].shards) == len(now["protected"].shards) > old
    assert now["clean"].classes == ["cat", "dog", "emu", "bee"]
    assert now["clean"].samples - clean.samples + now["test"].samples - tests.samples == 25
    assert sha256_file(Path("data", DATASET, "surrogate/model.pt")) == model
    assert {path: reports()[path] for path in finished} == finished, "old shards were not computed again"
    samples = [s for shard in now["clean"].shards for s in read_shard(Path("data", DATASET, "clean", shard.name))]
    assert len({s.key for s in samples}) == len(samples)
    assert {s.label for s in samples} == {0, 1, 2, 3}

    with object_store():
        assert latest_published(DATASET) is None
        after = publish_folder(f"data/{DATASET}/protected", DATASET)
        assert latest_published(DATASET) == after["id"] != before["id"]
        pull(open_store(settings(), "public"), DATASET, Path("old"), before["id"])
    assert (after["shards_shared"], after["shards_uploaded"]) == (old, len(now["clean"].shards) - old)
    assert read_manifest(Path("old")) == protected

    restore(DATASET)
    assert dvc_digest(Path("data", DATASET, "recovered")) == dvc_digest(Path("data", DATASET, "clean"))
    shutil.rmtree(".dmcp/work")
    run(protect)
    assert variant("protected") == now["protected"], "bytes do not depend on what was kept of the run before"


def test_an_image_that_goes_makes_its_own_shard_new(grown: Path) -> None:
    clean = variant("clean")
    ledger = json.loads(Path("data", DATASET, "ledger.json").read_text())
    shard = ledger["splits"]["train"]["shards"][1]
    Path("images", shard["images"][3][1]).unlink()
    run(download)
    now = variant("clean")
    changed = [a.name for a, b in zip(clean.shards, now.shards, strict=True) if a != b]
    assert changed == ["train-000001.tar"]
    kept = [s.key for s in read_shard(Path("data", DATASET, "clean", changed[0]))]
    assert kept == [f"{key:09d}" for i, (key, _) in enumerate(shard["images"]) if i != 3]


def test_an_image_that_is_renamed_keeps_its_place(grown: Path) -> None:
    """Under a new key it would be protected anew, beside what is public of it."""
    clean = variant("clean")
    ledger = json.loads(Path("data", DATASET, "ledger.json").read_text())
    key, name = ledger["splits"]["train"]["shards"][1]["images"][3]
    folder = Path(name).parent
    other = next(n for n in (f"{folder}/renamed-{i}.png" for i in range(99)) if not is_test(n, 0.2, 0))
    Path("images", name).rename(Path("images", other))
    run(download)
    assert variant("clean") == clean
    ledger = json.loads(Path("data", DATASET, "ledger.json").read_text())
    assert ledger["splits"]["train"]["shards"][1]["images"][3] == [key, other]


def test_a_surrogate_that_is_not_kept_is_trained_anew(grown: Path) -> None:
    model = Path("data", DATASET, "surrogate/model.pt")
    before = sha256_file(model)
    grow()
    run(download, surrogate)
    assert sha256_file(model) == before
    write_params(keep=False)
    run(surrogate)
    assert sha256_file(model) != before


@pytest.mark.parametrize("grows", [True, False])
def test_the_surrogate_of_the_command_protect_is_taken_over(grown: Path, grows: bool) -> None:
    """Who published by commands and goes on by the pipeline: what is published stays."""
    model, old = Path("data", DATASET, "surrogate/model.pt"), variant("protected").shards
    before = sha256_file(model)
    shutil.move(model.parent, ".dmcp/work/surrogates/0123456789abcdef")
    if grows:
        grow()
    run()
    assert sha256_file(model) == before
    assert model.with_name("trained_on.json").exists()
    assert variant("protected").shards[: len(old)] == old
    assert Path(".dmcp/work/surrogates/0123456789abcdef/model.pt").exists()


@pytest.mark.parametrize("values", [{"seed": 7}, {"keep": False}])
def test_no_surrogate_is_taken_over_that_is_not_to_be_kept(
    grown: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, object]
) -> None:
    monkeypatch.setattr("flows.surrogate.take_over", lambda *_: pytest.fail("it was taken over"))
    shutil.move(Path("data", DATASET, "surrogate"), ".dmcp/work/surrogates/0123456789abcdef")
    write_params(**values)
    run(surrogate)
    assert Path("data", DATASET, "surrogate/model.pt").exists()


def test_the_command_protect_finds_the_pipelines_surrogate(grown: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.surrogate.train_surrogate", lambda *_, **__: pytest.fail("it was trained anew"))
    clean, section = Path("data", DATASET, "clean"), load_params(DATASET).surrogate
    pipelines = settings().data_path(DATASET, "surrogate", "model.pt")
    assert surrogate_of(clean, DATASET, section) == pipelines
    grow()
    run(download)
    assert surrogate_of(clean, DATASET, section) == pipelines
    shutil.copytree(pipelines.parent, ".dmcp/work/surrogates/0123456789abcdef")
    assert surrogate_of(clean, DATASET, section).exists()


def test_without_the_ledger_it_is_what_a_fresh_run_makes(grown: Path) -> None:
    grow()
    Path("data", DATASET, "ledger.json").unlink()
    run(download)
    afresh = variant("clean")
    assert afresh.classes == ["bee", "cat", "dog", "emu"]
    shutil.rmtree("data")
    run(download)
    assert variant("clean") == afresh
