"""params.yaml: merging, checking, and that it agrees with what the method takes."""

from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import ParameterError, UsageError
from tasks.method.exact import CARRIERS, SIGNS, ExactParameters
from tasks.method.paper import PaperParameters
from tasks.method.perturbation import TARGETS, FspParameters
from tasks.method.sign_perturbation import PATTERNS, SignParameters
from tasks.params import (
    SECTIONS,
    ExactSetParams,
    PerturbationParams,
    SignPerturbationParams,
    TransformParams,
    deep_merge,
    known_datasets,
    load_params,
)

PROJECT = Path(__file__).resolve().parents[2]
PARAMS = PROJECT / "params.yaml"


def changed(tmp_path: Path, change) -> Path:
    raw = yaml.safe_load(PARAMS.read_text())
    change(raw)
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.mark.parametrize("dataset", known_datasets(PARAMS))
def test_every_data_set_of_the_project_is_valid(dataset: str) -> None:
    params = load_params(dataset, PARAMS)
    assert params.dataset == dataset
    PaperParameters(**params.protect.paper.transform.model_dump())
    FspParameters(**params.protect.paper.perturbation.model_dump())
    ExactParameters(**params.protect.exact.set.model_dump())
    SignParameters(**params.protect.exact.perturbation.model_dump())


def test_the_project_names_its_four_data_sets() -> None:
    assert known_datasets(PARAMS) == ["sample", "cifar10", "tinyimagenet", "imagefolder"]


def test_the_section_has_the_fields_of_the_method() -> None:
    assert set(TransformParams.model_fields) == {f.name for f in fields(PaperParameters)}
    assert set(PerturbationParams.model_fields) == {f.name for f in fields(FspParameters)}
    assert set(ExactSetParams.model_fields) == {f.name for f in fields(ExactParameters)}
    assert set(SignPerturbationParams.model_fields) == {f.name for f in fields(SignParameters)}
    for section, field, known in (
        (PerturbationParams, "targets", TARGETS),
        (SignPerturbationParams, "pattern", PATTERNS),
        (ExactSetParams, "signs", SIGNS),
        (ExactSetParams, "carrier", CARRIERS),
    ):
        assert set(section.model_fields[field].annotation.__args__) == set(known)


def test_a_data_set_lays_its_own_values_over_the_common_ones(tmp_path: Path) -> None:
    def change(raw: dict) -> None:
        raw["datasets"]["cifar10"]["protect"] = {"paper": {"perturbation": {"epsilon": 0.03}}, "profile": "paper"}

    path = changed(tmp_path, change)
    mine, common = load_params("cifar10", path).protect, load_params("cifar10", PARAMS).protect
    assert (mine.profile, common.profile) == ("paper", "exact")
    assert mine.paper.perturbation.epsilon == 0.03
    assert mine.paper.perturbation.steps == common.paper.perturbation.steps
    assert mine.paper.transform == common.paper.transform
    assert mine.exact == common.exact


def test_loader_keys_of_download_are_kept() -> None:
    assert load_params("tinyimagenet", PARAMS).download.model_dump()["classes"] == 10


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda raw: raw["train"].update(epoch=3), ["train.epoch", "Remove it"]),
        (lambda raw: raw["train"].pop("stem"), ["train.stem", "Add"]),
        (lambda raw: raw["train"].update(stem="big"), ["train.stem", "'imagenet' or 'small'", "'big'"]),
        (lambda raw: raw["protect"]["paper"]["perturbation"].update(targets="nearest"), ["targets", "'permuted-mean'"]),
        (lambda raw: raw["protect"]["exact"]["set"].update(carrier="sound"), ["protect.exact.set.carrier", "'chunk'"]),
        (lambda raw: raw["protect"].update(profile="magic"), ["protect.profile", "'paper' or 'exact'", "'magic'"]),
        (lambda raw: raw["protect"].update(layer="layer4"), ["protect.layer", "Remove it"]),
        (lambda raw: raw["protect"].pop("exact"), ["protect.exact", "Add"]),
        (lambda raw: raw["datasets"]["sample"].update(seeds=[]), ["seeds"]),
        (lambda raw: raw["datasets"]["sample"].pop("train"), ["datasets.sample", "`train: {}`"]),
        (lambda raw: raw.pop("datasets"), ["no data set 'sample'"]),
        (lambda raw: raw.update(datasets={"sample": 3}), ["datasets.sample"]),
        (lambda raw: raw.update(extra={}), ["extra"]),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change, words: list[str]) -> None:
    with pytest.raises(ParameterError) as failure:
        load_params("sample", changed(tmp_path, change))
    for word in words:
        assert word in str(failure.value)


def test_an_unknown_data_set_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ParameterError, match=r"cifar100.*sample, cifar10"):
        load_params("cifar100", PARAMS)


def test_a_name_that_can_not_be_a_folder_is_refused() -> None:
    with pytest.raises(UsageError):
        load_params("../x", PARAMS)


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    with pytest.raises(ParameterError, match="does not exist"):
        load_params("sample", path)
    path.write_text("train: [")
    with pytest.raises(ParameterError, match="can not be read"):
        load_params("sample", path)


def test_dvc_watches_every_section_of_every_data_set() -> None:
    raw = yaml.safe_load(PARAMS.read_text())
    for entry in raw["datasets"].values():
        assert set(SECTIONS) <= entry.keys()


trees = st.recursive(
    st.integers(), lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3), max_leaves=12
).filter(lambda tree: isinstance(tree, dict))


@given(trees, trees)
def test_merging_keeps_what_is_not_overridden(base: dict, over: dict) -> None:
    before = yaml.safe_dump(base)
    merged = deep_merge(base, over)
    assert yaml.safe_dump(base) == before
    assert deep_merge(merged, over) == merged
    assert deep_merge(base, {}) == base
    assert deep_merge({}, over) == over
    assert set(merged) == set(base) | set(over)


def test_photographs_are_scaled_by_every_preset() -> None:
    presets = load_params("imagefolder", PARAMS).evidence.presets
    assert set(presets) == set(load_params("sample", PARAMS).evidence.presets)
    assert {preset.image_size for preset in presets.values()} == {64}
