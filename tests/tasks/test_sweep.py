"""What a sweep tries, which trial wins, and the table."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import InputError, ParameterError, UsageError
from tasks.params import load_params
from tasks.sweep import (
    Outcome,
    Sweep,
    Trial,
    checked_metrics,
    columns,
    expand,
    into_page,
    load_plan,
    markdown,
    meets,
    nested,
    parse_axis,
    ranked,
    read_sweep,
    rows,
    says,
    winner,
)

PROJECT = Path(__file__).resolve().parents[2]
DEFAULTS = {"protect": {"exact": {"amplitude": 13, "steps": 3, "pattern": "bands"}, "paper": {"steps": 10}}}
VALUES = st.one_of(st.integers(-5, 20), st.floats(0, 1), st.sampled_from(["bands", "none", "a..b", ".lock"]), st.none())
AXES = st.dictionaries(
    st.sampled_from(["protect.exact.amplitude", "protect.exact.steps", "protect.exact.pattern", "protect.paper.steps"]),
    st.lists(VALUES, min_size=1, max_size=3),
    min_size=1,
)
ACCURACIES, DECIBELS = st.floats(0, 1), st.floats(10, 50)


def trial(name: str, **values: Any) -> Trial:
    return Trial(name=name, values=values, changed={key: value for key, value in values.items() if value != 0})


def measured(name: str, objective: float, psnr: float, **more: float) -> Outcome:
    return Outcome(trial=trial(name, a=len(name)), metrics={"objective": objective, "psnr": psnr, **more})


OUTCOMES = st.lists(
    st.one_of(
        st.builds(measured, st.text("xyz", min_size=1), ACCURACIES, DECIBELS),
        st.builds(lambda name: Outcome(trial=trial(name), error="it broke"), st.text("xyz", min_size=1)),
    )
)


def sweep_of(*outcomes: Outcome, bound: float = 25.0) -> Sweep:
    best = winner(outcomes, "objective", bound)
    return Sweep(
        dataset="cifar10",
        preset="search",
        objective="objective",
        bound=bound,
        commit="0123456789abcdef",
        command="dmcp sweep",
        machine={"Processor": "abacus"},
        versions={"torch": "2.0"},
        outcomes=list(outcomes),
        winner=best.trial.name if best else None,
    )


# --- what is tried ---------------------------------------------------------------------------------------------------


def test_a_block_gives_all_combinations_and_the_defaults_come_first_and_once() -> None:
    found = expand(
        [{"protect.exact.amplitude": [10, 13], "protect.exact.steps": [1, 3]}, {"protect.exact.pattern": ["none"]}],
        DEFAULTS,
    )
    assert [made.changed for made in found] == [
        {},
        {"protect.exact.amplitude": 10, "protect.exact.steps": 1},
        {"protect.exact.amplitude": 10},
        {"protect.exact.steps": 1},
        {"protect.exact.pattern": "none"},
    ]
    assert found[1].values == {
        "protect.exact.amplitude": 10,
        "protect.exact.steps": 1,
        "protect.exact.pattern": "bands",
    }
    assert found[1].name.startswith("amplitude-10-steps-1-")
    assert found[0].name.startswith("default-")


@given(st.lists(AXES, max_size=4))
def test_no_trial_twice_and_names_that_git_takes(grid: list[dict[str, list[Any]]]) -> None:
    found = expand(grid, DEFAULTS)
    assert len({json.dumps(made.values, sort_keys=True) for made in found}) == len(found)
    assert len({made.name for made in found}) == len(found)
    for made in found:
        assert made.name.strip("-.") == made.name
        assert ".." not in made.name
        assert not made.name.endswith(".lock")
        assert all(letter.isascii() and (letter.isalnum() or letter in "-.") for letter in made.name)
        assert made.values.keys() == {name for block in grid for name in block}


def test_a_value_that_equals_the_default_is_the_default() -> None:
    """1 and 1.0 are written otherwise, and nothing is trained twice for that."""
    found = expand([{"a.smoothing": [0.5, 1, 2], "a.flips": [False, 0]}], {"a": {"smoothing": 1.0, "flips": False}})
    assert [made.changed for made in found] == [{}, {"a.smoothing": 0.5}, {"a.smoothing": 2}]
    assert [made.values["a.smoothing"] for made in found] == [1.0, 0.5, 2]
    assert isinstance(found[0].values["a.smoothing"], float)


def test_other_defaults_make_other_names() -> None:
    """An experiment of the same short name that was made under other defaults must not count as done."""
    grid = [{"protect.exact.amplitude": [10], "protect.exact.steps": [3]}]
    other = {"protect": {"exact": {"amplitude": 13, "steps": 5}}}
    assert {made.name for made in expand([{"protect.exact.amplitude": [10]}, *grid], DEFAULTS)}.isdisjoint(
        {made.name for made in expand([{"protect.exact.amplitude": [10], "protect.exact.steps": [5]}], other)}
    )


@pytest.mark.parametrize("name", ["protect.exact.amplitud", "protect.exact.amplitude.more", "other"])
def test_an_unknown_parameter_is_refused(name: str) -> None:
    with pytest.raises(ParameterError, match=name):
        expand([{name: [1]}], DEFAULTS)


def test_a_section_is_no_parameter() -> None:
    with pytest.raises(ParameterError, match="amplitude, steps, pattern"):
        expand([{"protect.exact": [1]}], DEFAULTS)


def test_axes_are_read_as_yaml() -> None:
    assert parse_axis("a.b=8,10.5,none,null") == ("a.b", [8, 10.5, "none", None])
    for text in ("a.b", "a.b=", "=1", "a=[1,2]", "a={x: 1}", "a=]"):
        with pytest.raises(UsageError, match="KEY=VALUE"):
            parse_axis(text)


def test_nested_values_are_what_was_given() -> None:
    assert nested({"a.b": 1, "a.c.d": 2, "e": 3}) == {"a": {"b": 1, "c": {"d": 2}}, "e": 3}


def test_the_projects_own_plan_fits_its_parameters() -> None:
    plan = load_plan(PROJECT / "sweep.yaml")
    trials = expand(plan.grid, load_params("cifar10", PROJECT / "params.yaml").model_dump())
    assert 5 <= len(trials) <= 24
    assert plan.preset in load_params("cifar10", PROJECT / "params.yaml").evidence.presets


@pytest.mark.parametrize("text", ["grid: []", "stage: x", "- 1", "{", "stage: a\npreset: b\nobjective: c\nbound: d\n"])
def test_a_plan_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "sweep.yaml").write_text(text)
    with pytest.raises(ParameterError, match=r"sweep\.yaml"):
        load_plan(tmp_path / "sweep.yaml")
    with pytest.raises(ParameterError, match="does not exist"):
        load_plan(tmp_path / "nothing.yaml")


# --- which wins ------------------------------------------------------------------------------------------------------


@given(OUTCOMES, DECIBELS)
def test_the_winner_meets_the_bound_and_nothing_that_does_is_lower(outcomes: list[Outcome], bound: float) -> None:
    best = winner(outcomes, "objective", bound)
    able = [outcome for outcome in outcomes if meets(outcome, bound)]
    if not able:
        assert best is None
        return
    assert best is not None and best.metrics is not None
    assert best.metrics["psnr"] >= bound
    assert best.metrics["objective"] == min(outcome.metrics["objective"] for outcome in able if outcome.metrics)


@given(OUTCOMES, DECIBELS)
def test_the_order_loses_nothing_and_does_not_depend_on_the_input(outcomes: list[Outcome], bound: float) -> None:
    order = ranked(outcomes, "objective", bound)
    assert sorted(map(repr, order)) == sorted(map(repr, outcomes))
    assert winner(reversed(outcomes), "objective", bound) == winner(outcomes, "objective", bound)


def test_of_equals_the_higher_psnr_wins() -> None:
    found = winner([measured("a", 0.2, 26), measured("b", 0.2, 27)], "objective", 25)
    assert found is not None and found.trial.name == "b"


def test_when_none_meets_the_bound_nothing_wins_and_the_message_says_so() -> None:
    sweep = sweep_of(measured("a", 0.1, 20.0), measured("b", 0.2, 24.96))
    assert sweep.winner is None
    assert says(sweep) == "No trial has a PSNR of at least 25 dB; the highest is 25.0 dB. Nothing wins."
    assert "none was measured" in says(sweep_of(Outcome(trial=trial("a"), error="it broke")))


def test_metrics_are_numbers_and_name_the_objective() -> None:
    assert checked_metrics({"objective": 0.5, "psnr": 26, "cells": {"a": 1}, "ok": True}, "objective") == {
        "objective": 0.5,
        "psnr": 26.0,
    }
    with pytest.raises(InputError, match="no 'objective' but psnr"):
        checked_metrics({"psnr": 26}, "objective")


# --- what is shown ---------------------------------------------------------------------------------------------------


def test_the_table_shows_every_trial_in_order() -> None:
    sweep = sweep_of(
        Outcome(trial=trial("broken", **{"p.a": 4}), error="it broke"),
        Outcome(trial=trial("loud", **{"p.a": 3}), metrics={"objective": 0.1, "psnr": 20.0}),
        Outcome(trial=trial("default", **{"p.a": 0}), metrics={"objective": 0.3, "psnr": 30.0}),
        Outcome(
            trial=trial("best", **{"p.a": 2}),
            metrics={"objective": 0.25, "psnr": 25.04, "objective_std": 0.011, "n": 2},
        ),
    )
    assert columns(sweep) == ["a", "peak accuracy, %", "PSNR, dB", "n", ""]
    assert rows(sweep) == [
        ["2", "25.0 ± 1.1", "25.0", "2", "**lowest**"],
        ["0", "30.0", "30.0", "-", "defaults"],
        ["3", "10.0", "20.0", "-", "below 25 dB"],
        ["4", "-", "-", "-", "failed"],
    ]
    text = markdown(sweep)
    assert "| a | peak accuracy, % | PSNR, dB | n |  |\n| --- | ---: | ---: | ---: | --- |\n| 2 |" in text
    assert "p.a=2, with 25.0 ± 1.1 % and 25.0 dB." in text
    assert "`dmcp sweep` at commit 0123456789ab; Processor abacus; torch 2.0." in text


def test_trials_within_noise_of_the_winner_are_named() -> None:
    """Two seeds each with equal deviations: 4.3 standard errors of the difference, by Welch."""
    spread = {"objective_std": 0.02, "n": 2.0}
    near, far = measured("near", 0.29, 26, **spread), measured("far", 0.30, 26, **spread)
    text = says(sweep_of(measured("best", 0.21, 26, **spread), near, far))
    assert text.endswith("Not told apart from it by so few seeds: near.")


def test_a_trial_of_one_seed_can_not_be_told_apart() -> None:
    spread = {"objective_std": 0.001, "n": 2.0}
    best, far = measured("best", 0.21, 26, **spread), measured("far", 0.30, 26, **spread)
    text = says(sweep_of(best, far, measured("lone", 0.4, 26, n=1.0)))
    assert text.endswith("few seeds: lone. Of one seed, which tells nothing of the spread: lone.")
    text = says(sweep_of(measured("winner", 0.2, 26), far))
    assert text.endswith("few seeds: far. Of one seed, which tells nothing of the spread: winner.")


def test_an_objective_may_rest_on_fewer_seeds_than_the_main_rows() -> None:
    fewer = measured("best", 0.21, 26, objective_std=0.02, n=5.0, objective_n=2.0)
    near = measured("near", 0.29, 26, objective_std=0.02, n=5.0, objective_n=2.0)
    sweep = sweep_of(fewer, near)
    assert says(sweep).endswith("by so few seeds: near.")
    assert [row[-2] for row in rows(sweep)] == ["2", "2"]


def test_parameters_of_one_short_name_keep_their_long_ones() -> None:
    sweep = sweep_of(Outcome(trial=trial("x", **{"p.a": 1, "q.a": 2, "q.b": 3})))
    assert columns(sweep)[:3] == ["p.a", "q.a", "b"]


def test_a_sweep_is_read_back(tmp_path: Path) -> None:
    sweep = sweep_of(measured("a", 0.2, 26))
    (tmp_path / "sweep.json").write_text(json.dumps(sweep.model_dump()))
    assert read_sweep(tmp_path / "sweep.json") == sweep
    (tmp_path / "other.json").write_text("{}")
    for name in ("other.json", "nothing.json"):
        with pytest.raises(InputError, match="can not be read as a sweep"):
            read_sweep(tmp_path / name)


def test_a_page_gets_the_table_between_its_marks_and_again() -> None:
    page = "# A\n<!-- sweep:begin -->\nold\n<!-- sweep:end -->\nrest\n"
    once = into_page(page, "| t |\n")
    assert once == "# A\n<!-- sweep:begin -->\n\n| t |\n\n<!-- sweep:end -->\nrest\n"
    assert into_page(once, "| t |\n") == once
    for wrong in ("# A", "<!-- sweep:begin -->", "<!-- sweep:end --><!-- sweep:begin -->", page + page):
        with pytest.raises(UsageError, match="once each"):
            into_page(wrong, "| t |")


def test_the_documented_table_is_the_measured_one() -> None:
    """docs/search.md shows what docs/results/sweep.json holds: nobody types numbers."""
    page, results = PROJECT / "docs" / "search.md", PROJECT / "docs" / "results" / "sweep.json"
    text = page.read_text()
    assert into_page(text, markdown(read_sweep(results)) if results.exists() else "Not measured yet.") == text
