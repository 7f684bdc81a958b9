"""From `dmcp data get` on one's own folder to the pipeline: the same parameters, the same images in the same place."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner, Result

from flows.cli import app
from flows.download import download
from storage.manifest import Manifest, read_manifest
from tests.flows.world import PROJECT, entered

OUT = Path("data", "mine")


@pytest.fixture
def folder(tmp_path: Path, prefect_api: str) -> Iterator[Path]:
    """A working folder with the project's params.yaml and a folder of photographs."""
    random = np.random.default_rng(0)
    with entered(tmp_path):
        for label in ("cat", "dog"):
            (tmp_path / "photos" / label).mkdir(parents=True)
            for i in range(15):
                pixels = random.integers(0, 256, (20, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{i}.png")
        Path("params.yaml").write_text((PROJECT / "params.yaml").read_text())
        yield tmp_path


def dmcp(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def get(*sets: str, code: int = 0) -> Result:
    options = [part for value in sets for part in ("--set", value)]
    return dmcp("data", "get", "imagefolder", OUT, "--path", "photos", "--dataset", "mine", *options, code=code)


def variants() -> list[Manifest]:
    return [read_manifest(OUT / name) for name in ("clean", "test")]


def everything() -> dict[str, str]:
    files = (path for path in OUT.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def add_entry(lines: str, *changes: tuple[str, object]) -> None:
    raw = yaml.safe_load((PROJECT / "params.yaml").read_text())
    raw["datasets"] |= yaml.safe_load(lines)
    raw["datasets"]["mine"]["download"] |= dict(changes)
    Path("params.yaml").write_text(yaml.safe_dump(raw))


def printed_lines() -> str:
    said = dmcp("evaluate-protection", "--dataset", "mine", "--preset", "tiny", code=2).stderr
    return said.split("\n\n", 1)[1]


def test_the_lines_that_are_printed_build_the_same_again(folder: Path) -> None:
    get("test_share=0.4", "seed=3", "shard_size=7")
    built = everything()
    add_entry(printed_lines())
    download("mine")
    assert {path: everything()[path] for path in built} == built


def test_with_a_folder_for_testing_too(folder: Path) -> None:
    get("test_path=photos", "train_limit=12")
    built = variants()
    add_entry(printed_lines())
    download("mine")
    assert variants() == built


@pytest.mark.parametrize(
    ("first", "then", "said"),
    [
        ((), "test_share=0.4", "test_share 0.2 (now 0.4)"),
        (("test_share=0.4",), "seed=0", "test_share 0.4 (now 0.2)"),
        ((), "seed=1", "seed 0 (now 1)"),
        ((), "shard_size=9", "shard_size 500 (now 9)"),
        ((), "test_path=photos", "test_path unset (now photos)"),
        ((), "train_limit=5", "train_limit unset (now 5)"),
    ],
)
def test_what_would_move_images_is_refused(folder: Path, first: tuple[str, ...], then: str, said: str) -> None:
    get(*first)
    built = everything()
    refused = get(then, code=2).stderr
    assert f"{OUT} was built with {said}." in refused and f"remove {OUT / 'ledger.json'}" in refused
    assert everything() == built
    get(*first)
    (OUT / "ledger.json").unlink()
    get(then)


def test_more_images_and_a_moved_folder_are_not_refused(folder: Path) -> None:
    get("train_limit=5")
    get("train_limit=8", "test_limit=2")
    Path("photos").rename("pictures")
    dmcp("data", "get", "imagefolder", OUT, "--path", "pictures", "--dataset", "mine")


def test_a_ledger_of_an_earlier_release_goes_on_working(folder: Path) -> None:
    get()
    path = OUT / "ledger.json"
    old = json.loads(path.read_text())
    del old["parameters"]
    path.write_text(json.dumps(old))
    assert "path: FOLDER" in printed_lines()
    before = variants()
    get("train_limit=100")
    assert variants() == before


def test_a_change_in_params_yaml_is_followed_and_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    get()
    before = variants()
    add_entry(printed_lines(), ("test_share", 0.5))
    download("mine")
    assert variants() != before
    assert "Warning: mine was built with test_share 0.2 (now 0.5) before." in capsys.readouterr().err
    download("mine")
    assert "Warning" not in capsys.readouterr().err
