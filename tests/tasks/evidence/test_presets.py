"""From a preset to its cells."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from tasks.evidence.presets import GROUPS, MAIN, EvidenceParams, PresetParams, cells_of, cost, speed_of
from tasks.evidence.records import Cell
from tasks.learning.adaptive import ATTACKS
from tasks.learning.countermeasures import COUNTERMEASURES
from tasks.learning.models import ARCHITECTURES
from tasks.params import load_params

PARAMS = Path(__file__).resolve().parents[3] / "params.yaml"
EVIDENCE = load_params("cifar10", PARAMS).evidence


def preset(**changes: object) -> PresetParams:
    return PresetParams.model_validate(EVIDENCE.presets["tiny"].model_dump() | changes)


def test_main_rows_come_seed_by_seed_and_first() -> None:
    groups = cells_of(preset(seeds=[0, 1], protections=["clean", "exact"]))
    assert tuple(groups) == GROUPS
    found = [(cell.protection, cell.seed) for cell in groups[MAIN]]
    assert found == [("clean", 0), ("exact", 0), ("clean", 1), ("exact", 1)]


def test_no_cell_is_asked_twice() -> None:
    names = {"names": ["none", "cutout", "cutout"], "of": ["exact"]}
    groups = cells_of(preset(countermeasures=names, architectures={"names": ["resnet18"], "of": ["exact", "clean"]}))
    assert [cell.countermeasure for cell in groups["countermeasures"]] == ["cutout"]
    assert groups["architectures"] == []


def test_a_share_stands_beside_the_clean_rest_alone() -> None:
    cells = cells_of(preset(shares={"shares": [0.2, 0.8], "of": ["exact"]}))["shares"]
    assert [(cell.share, cell.rest_only) for cell in cells] == [(0.2, False), (0.2, True), (0.8, False), (0.8, True)]


def test_the_rows_need_their_protections_and_no_others() -> None:
    rows = {"names": ["cutout"], "of": ["clean", "paper-recovered"]}
    empty = {"names": [], "of": []}
    one = preset(
        protections=["clean", "exact-recovered"],
        countermeasures=rows, attacks=empty, architectures=empty, shares={"shares": [], "of": []},
    )  # fmt: skip
    assert one.used() == ["exact", "paper"]


@pytest.mark.parametrize("name", EVIDENCE.presets)
def test_every_preset_names_things_that_exist(name: str) -> None:
    for cells in cells_of(EVIDENCE.presets[name]).values():
        for cell in cells:
            assert cell.countermeasure in COUNTERMEASURES
            assert cell.attack in ATTACKS
            assert cell.architecture in ARCHITECTURES


@pytest.mark.parametrize("name", ["tiny", "quick", "full"])
def test_presets_have_every_kind_of_row(name: str) -> None:
    cells = [cell for group in cells_of(EVIDENCE.presets[name]).values() for cell in group]
    assert {cell.countermeasure for cell in cells} == set(COUNTERMEASURES)
    assert {cell.attack for cell in cells} == set(ATTACKS)
    larger = set() if name == "quick" else {"resnet50", "densenet121"}  # they take a CPU too long
    assert {cell.architecture for cell in cells} == {"resnet18", "mobilenet_v2", "vit_small"} | larger
    assert {cell.rest_only for cell in cells} == {True, False}


def test_full_protects_all_the_shares_and_seeds_that_are_asked_for() -> None:
    full = EVIDENCE.presets["full"]
    assert (full.recipe, full.epochs, full.images, full.seeds) == ("paper", None, None, [0, 1, 2])
    assert full.shares.shares == [0.2, 0.4, 0.6, 0.8]
    assert {"clean", "paper", "exact"} <= set(full.protections)


@pytest.mark.parametrize(
    "change",
    [
        {"protections": {"clean": {}}},
        {"protections": {"x-recovered": {}}},
        {"protections": {"a/b": {}}},
        {"protections": {}},  # the presets name some
        {"presets": {"a-b": EVIDENCE.presets["tiny"].model_dump()}},
        {"presets": {"a": EVIDENCE.presets["tiny"].model_dump() | {"shares": {"shares": [1.0], "of": ["exact"]}}}},
        {"presets": {"a": EVIDENCE.presets["tiny"].model_dump() | {"seeds": []}}},
        {"presets": {"a": EVIDENCE.presets["tiny"].model_dump() | {"side_seeds": [0, 3]}}},
    ],
)
def test_what_can_not_be_is_refused(change: dict) -> None:
    with pytest.raises(ValidationError):
        EvidenceParams.model_validate(EVIDENCE.model_dump() | change)


def test_seeds_of_side_rows_without_a_main_row_are_named() -> None:
    with pytest.raises(ValidationError, match="side_seeds has 3, which is not one of `seeds`"):
        preset(seeds=[0, 1], side_seeds=[1, 3])
    none = {"names": [], "of": []}
    alone = {"countermeasures": none, "attacks": none, "architectures": none, "shares": {"shares": [], "of": []}}
    assert preset(seeds=[0, 1], side_seeds=[3], **alone).side_seeds == [3]


def test_costs_compare_cells() -> None:
    plain = Cell(protection="exact")
    assert cost(plain, 100, 2, "imagenet") == 200
    rest = plain.model_copy(update={"share": 0.8, "rest_only": True})
    assert cost(rest, 100, 2, "imagenet") == pytest.approx(40)
    for dearer in ({"architecture": "densenet121"}, {"countermeasure": "adversarial"}):
        assert cost(plain.model_copy(update=dearer), 100, 2, "imagenet") > 200
    assert speed_of(10, "resnet18", "small") == cost(plain, 10, 1, "small")
