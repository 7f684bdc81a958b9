"""Selecting a data set."""

from pathlib import Path

import pytest
import yaml

from flows.graph import SELECTION, check_selection, select_dataset
from storage.errors import ParameterError, UsageError
from tasks.params import load_params
from tests.flows.world import PROJECT, write_tiny_params


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_tiny_params(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_selection_holds_the_name_and_the_seeds() -> None:
    select_dataset("cifar10")
    select_dataset("sample")
    assert yaml.safe_load(SELECTION.read_text()) == {"dataset": "sample", "seeds": [0]}


def test_selecting_the_same_again_touches_nothing() -> None:
    select_dataset("sample")
    before = SELECTION.stat().st_mtime_ns
    select_dataset("sample")
    assert SELECTION.stat().st_mtime_ns == before


def test_an_unknown_data_set_leaves_the_selection() -> None:
    select_dataset("sample")
    with pytest.raises(ParameterError, match="knows no data set"):
        select_dataset("nothing")
    assert yaml.safe_load(SELECTION.read_text())["dataset"] == "sample"


def test_what_is_said_of_an_unknown_data_set_makes_it_known(project: Path) -> None:
    with pytest.raises(ParameterError, match="knows no data set 'mine'") as raised:
        select_dataset("mine", ["tiny"])
    lines = raised.value.cure.split("\n\n")[1]
    params = project / "params.yaml"
    params.write_text((PROJECT / "params.yaml").read_text() + "\n" + lines)  # `datasets:` comes last in it
    select_dataset("mine", ["tiny"])
    assert yaml.safe_load(SELECTION.read_text())["presets"]["mine-tiny"] == {"dataset": "mine", "preset": "tiny"}
    assert load_params("mine").download.source == "imagefolder"
    assert load_params("mine").model_dump(exclude={"dataset", "download"}) == load_params("imagefolder").model_dump(
        exclude={"dataset", "download"}
    )


def test_seeds_that_changed_since_are_noticed(project: Path) -> None:
    check_selection("sample")  # nothing was selected
    select_dataset("sample")
    check_selection("sample")
    raw = yaml.safe_load((project / "params.yaml").read_text())
    raw["datasets"]["sample"]["seeds"] = [0, 1]
    (project / "params.yaml").write_text(yaml.safe_dump(raw))
    check_selection("cifar10")
    with pytest.raises(UsageError, match=r"\[0, 1\].*\[0\].*make run DATASET=sample"):
        check_selection("sample")
    select_dataset("sample")
    check_selection("sample")
