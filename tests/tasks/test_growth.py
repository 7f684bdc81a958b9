"""What a surrogate was trained on, and whether a variant only grew since."""

from pathlib import Path

import pytest

from storage.manifest import Manifest
from storage.shards import ShardInfo
from tasks.growth import TRAINED_ON, basis_of, read_trained_on, write_trained_on
from tasks.surrogate import deciding, is_kept

PARAMS = {"architecture": "resnet18", "lr": 0.1, "image_size": None, "seed": 1}


def manifest(*digits: str, classes: str = "ab") -> Manifest:
    shards = [ShardInfo(f"train-{i:06d}.tar", 1, 1, digit * 64) for i, digit in enumerate(digits)]
    return Manifest(dataset="x", split="train", classes=list(classes), shards=shards)


@pytest.fixture
def surrogate(tmp_path: Path) -> Path:
    write_trained_on(tmp_path, manifest("1", "2"), PARAMS)
    return tmp_path / "model.pt"


@pytest.mark.parametrize(
    ("now", "grown"),
    [
        (manifest("1", "2"), False),
        (manifest("1", "2", "3"), True),
        (manifest("1", "2", "3", classes="abc"), True),
        (manifest("1", "3", "4"), False),
        (manifest("1", "2", "3", classes="cab"), False),
    ],
)
def test_only_what_came_in_is_growth(surrogate: Path, now: Manifest, grown: bool) -> None:
    record = read_trained_on(surrogate.parent)
    assert record is not None
    assert record.is_less_than(now, PARAMS) == grown
    assert not record.is_less_than(now, PARAMS | {"lr": 0.2})


def test_the_library_is_of_what_the_surrogate_saw(surrogate: Path) -> None:
    before = basis_of(manifest("1", "2"), surrogate)
    after = basis_of(manifest("1", "2", "3", classes="abc"), surrogate)
    assert after == before
    assert (after.classes, after.shards) == (2, ["train-000000.tar", "train-000001.tar"])
    assert after.digest == before.digest != basis_of(manifest("1"), surrogate).digest
    changed = basis_of(manifest("1", "3", classes="abc"), surrogate)
    assert (changed.classes, len(changed.shards)) == (3, 2)


def test_a_surrogate_of_which_nothing_is_known(tmp_path: Path) -> None:
    assert read_trained_on(tmp_path) is None
    assert len(basis_of(manifest("1", "2"), tmp_path / "model.pt").shards) == 2
    assert not is_kept(tmp_path, tmp_path, PARAMS | {"keep": True})
    (tmp_path / TRAINED_ON).write_text("{")
    assert read_trained_on(tmp_path) is None


def test_keep_does_not_decide_the_network() -> None:
    assert deciding(PARAMS | {"keep": True}) == deciding(PARAMS | {"keep": False}) == deciding(PARAMS) == PARAMS
