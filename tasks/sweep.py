"""The search for the protection's parameters: what is tried, which trial wins, and the table that shows it.

**Objective**: the lowest mean peak accuracy, on clean test images, of models trained on protected ones, in whatever way
serves their owner best. The peak and not the last epoch, because who trains on stolen images may keep the best epoch.
**Bound**: PSNR to the clean images of at least so many dB; without it the strongest noise would win.

`sweep.yaml` names the grids. A trial is known by a name made of its values, the same in every run, so what is done is
found again.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from storage.errors import InputError, ParameterError, UsageError
from tasks.noise import welch

SWEEP_FILE = Path("sweep.yaml")
Value = int | float | str | bool | None
Metrics = dict[str, float]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Plan(_Record):
    """`sweep.yaml`: the stage that measures a trial, its preset, what is minimised, the bound (dB), and the grids."""

    stage: str
    preset: str
    objective: str
    bound: float
    grid: list[dict[str, list[Value]]] = Field(min_length=1)


class Trial(_Record):
    """One set of parameters: `values` of all parameters that vary in the sweep, `changed` those unlike the defaults."""

    name: str
    values: dict[str, Value]
    changed: dict[str, Value]


class Outcome(_Record):
    """What came of a trial: the stage's metrics, or why there are none."""

    trial: Trial
    metrics: Metrics | None = None
    error: str | None = None


class Sweep(_Record):
    """All of one sweep, as `dmcp sweep --out` writes it. `commit`: of the project; `winner`: name of a trial."""

    format: Literal["dmcp-sweep/1"] = "dmcp-sweep/1"
    dataset: str
    preset: str
    objective: str
    bound: float
    commit: str
    command: str
    machine: dict[str, str]
    versions: dict[str, str]
    outcomes: list[Outcome]
    winner: str | None


# --- what is tried ---------------------------------------------------------------------------------------------------


def load_plan(path: Path = SWEEP_FILE) -> Plan:
    """Read `sweep.yaml`. Raises ParameterError: it is missing, or not what `Plan` says."""
    try:
        return Plan.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise ParameterError(f"{path} does not exist.", "Run the command in the project's folder.") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ParameterError(f"{path} can not be read: {error}.", "Correct it.") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ParameterError(f"{path}: {where}: {first['msg']}.", "See docs/search.md.") from error


def parse_axis(text: str) -> tuple[str, list[Value]]:
    """`"protect.exact.set.amplitude=8,10"` as the parameter's name and its values, each read as YAML.

    Raises:
        UsageError: it is not KEY=VALUE,VALUE.
    """
    name, _, values = text.partition("=")
    try:
        found = yaml.safe_load(f"[{values}]")
    except yaml.YAMLError:
        found = []
    if not name or not found or any(isinstance(value, list | dict) for value in found):
        raise UsageError(f"--set {text} is not KEY=VALUE,VALUE.", "As in: --set protect.exact.set.amplitude=8,10,13")
    return name, found


def expand(grid: Sequence[Mapping[str, Sequence[Value]]], defaults: Mapping[str, Any]) -> list[Trial]:
    """The trials of all blocks, the defaults first, none twice.

    Args:
        grid: blocks; each gives all combinations of its values.
        defaults: nested, as params.yaml has them for the data set.

    Raises:
        ParameterError: a parameter that varies is not in `defaults`.
    """
    usual = {name: look_up(defaults, name) for block in grid for name in block}
    found: dict[str, Trial] = {}
    for block in [{}, *grid]:
        for chosen in itertools.product(*block.values()):
            trial = _trial(usual, usual | dict(zip(block, chosen, strict=True)))
            found.setdefault(trial.name, trial)
    return list(found.values())


def look_up(nested: Mapping[str, Any], name: str) -> Any:
    """The value at `a.b.c`. Raises ParameterError: there is none, or it is a section."""
    value: Any = nested
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise ParameterError(f"There is no parameter {name}.", "See params.yaml.")
        value = value[part]
    if isinstance(value, Mapping):
        raise ParameterError(f"{name} is a section, not a parameter.", f"Name one in it: {', '.join(value)}.")
    return value


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """`{"a.b": 1, "a.c": 2}` as `{"a": {"b": 1, "c": 2}}`."""
    whole: dict[str, Any] = {}
    for name, value in values.items():
        *sections, last = name.split(".")
        place = whole
        for part in sections:
            place = place.setdefault(part, {})
        place[last] = value
    return whole


def _trial(usual: Mapping[str, Value], asked: Mapping[str, Value]) -> Trial:
    # 1 and 1.0 are one parameter, and two digests: the default is always written as params.yaml has it.
    values = {name: usual[name] if value == usual[name] else value for name, value in asked.items()}
    changed = {name: value for name, value in values.items() if value != usual[name]}
    # The digest tells trials apart whose short names are alike, and those made when other defaults were in force.
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:6]
    words = [f"{name.rsplit('.', 1)[-1]}-{value}" for name, value in changed.items()] or ["default"]
    name = re.sub(r"[^a-zA-Z0-9.]+|\.{2,}", "-", "-".join([*words, digest]))  # it becomes a name of git's
    return Trial(name=name.strip("-."), values=values, changed=changed)


# --- which wins ------------------------------------------------------------------------------------------------------


def meets(outcome: Outcome, bound: float) -> bool:
    """Whether a trial was measured and its PSNR is at least `bound` dB."""
    return outcome.metrics is not None and outcome.metrics["psnr"] >= bound


def ranked(outcomes: Iterable[Outcome], objective: str, bound: float) -> list[Outcome]:
    """Those that meet the bound by rising objective, then the other measured ones likewise, then those that failed."""

    def place(outcome: Outcome) -> tuple[int, float, float, str]:
        if outcome.metrics is None:
            return 2, 0.0, 0.0, outcome.trial.name
        behind = 0 if meets(outcome, bound) else 1
        return behind, outcome.metrics[objective], -outcome.metrics["psnr"], outcome.trial.name

    return sorted(outcomes, key=place)


def winner(outcomes: Iterable[Outcome], objective: str, bound: float) -> Outcome | None:
    """The trial of the lowest objective among those that meet the bound (of equals the one of higher PSNR), if any."""
    order = ranked(outcomes, objective, bound)
    return order[0] if order and meets(order[0], bound) else None


def checked_metrics(found: Mapping[str, Any], objective: str) -> Metrics:
    """The numbers among a stage's metrics.

    Raises:
        InputError: the objective or `psnr` is not among them.
    """
    numbers = {
        name: float(value) for name, value in found.items() if isinstance(value, int | float) and value is not True
    }
    for name in (objective, "psnr"):
        if name not in numbers:
            has = ", ".join(found) or "nothing"
            raise InputError(f"The stage's metrics hold no {name!r} but {has}.", "See sweep.yaml.")
    return numbers


# --- what is shown ---------------------------------------------------------------------------------------------------


def read_sweep(path: Path) -> Sweep:
    """What `dmcp sweep --out` wrote. Raises InputError: the file is missing or is no such file."""
    try:
        return Sweep.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise InputError(f"{path} can not be read as a sweep.", "Make it: dmcp sweep --out FILE") from error


def columns(sweep: Sweep) -> list[str]:
    """Headings: the parameters that vary, the objective, PSNR, models a trial, and what is to be said of the trial."""
    return [*_short(sweep), "peak accuracy, %", "PSNR, dB", "n", ""]


def rows(sweep: Sweep) -> list[list[str]]:
    """One row a trial, in the order of `ranked`."""
    return [_row(sweep, outcome) for outcome in ranked(sweep.outcomes, sweep.objective, sweep.bound)]


def markdown(sweep: Sweep) -> str:
    """The table, and below it which trial won and what it was measured with."""
    head = columns(sweep)
    align = ["---" if name in ("", *_short(sweep)) else "---:" for name in head]
    lines = ["| " + " | ".join(row) + " |" for row in [head, align, *rows(sweep)]]
    machine = ", ".join(f"{name} {value}" for name, value in sweep.machine.items())
    torch = sweep.versions.get("torch", "unknown")
    made = f"`{sweep.command}` at commit {sweep.commit[:12]}; {machine}; torch {torch}."
    return "\n".join([*lines, "", says(sweep), "", made, ""])


def says(sweep: Sweep) -> str:
    """Which trial won, or that none did, in a sentence or two."""
    best = winner(sweep.outcomes, sweep.objective, sweep.bound)
    if best is None:
        measured = [outcome.metrics["psnr"] for outcome in sweep.outcomes if outcome.metrics]
        reached = f"; the highest is {max(measured):.1f} dB" if measured else ": none was measured"
        return f"No trial has a PSNR of at least {sweep.bound:g} dB{reached}. Nothing wins."
    metrics = best.metrics or {}
    what = ", ".join(f"{name}={_text(value)}" for name, value in best.trial.changed.items()) or "the defaults"
    first = f"Lowest peak accuracy at {sweep.bound:g} dB or more: {what}, with {_percent(metrics, sweep.objective)} %"
    return f"{first} and {metrics['psnr']:.1f} dB.{_noise_says(sweep, best)}"


def into_page(page: str, table: str, name: str = "sweep") -> str:
    """A page of documentation with the table between its two marks `<!-- NAME:begin -->` and `<!-- NAME:end -->`.

    Raises:
        UsageError: the page does not hold both marks, once each, in this order.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed) or begin in rest or end in after:
        raise UsageError(f"The page does not hold {begin} and {end}, once each.", "Put them where the table belongs.")
    return f"{before}{begin}\n\n{table.strip()}\n\n{end}{after}"


def _row(sweep: Sweep, outcome: Outcome) -> list[str]:
    values = [_text(value) for value in outcome.trial.values.values()]
    if outcome.metrics is None:
        return [*values, "-", "-", "-", "failed" if outcome.error else "not measured"]
    said = [] if outcome.trial.changed else ["defaults"]
    if outcome.trial.name == sweep.winner:
        said.append("**lowest**")
    elif not meets(outcome, sweep.bound):
        said.append(f"below {sweep.bound:g} dB")
    accuracy, psnr = _percent(outcome.metrics, sweep.objective), f"{outcome.metrics['psnr']:.1f}"
    seeds = _seeds(outcome, sweep.objective)
    return [*values, accuracy, psnr, "-" if seeds is None else f"{seeds:.0f}", ", ".join(said)]


def _percent(metrics: Mapping[str, float], objective: str) -> str:
    spread = metrics.get(f"{objective}_std")
    return f"{100 * metrics[objective]:.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}")


def _noise_says(sweep: Sweep, best: Outcome) -> str:
    """Which trials that meet the bound can not be told from the best one: sentences, each after a space."""
    order = [o for o in ranked(sweep.outcomes, sweep.objective, sweep.bound) if meets(o, sweep.bound)]
    close = [o for o in order if o.trial != best.trial and _alike(sweep.objective, o, best)]
    if not close:
        return ""
    lone = [o.trial.name for o in (best, *close) if _squared_error(o, sweep.objective) is None]
    text = f" Not told apart from it by so few seeds: {', '.join(o.trial.name for o in close)}."
    return f"{text} Of one seed, which tells nothing of the spread: {', '.join(lone)}." if lone else text


def _alike(objective: str, one: Outcome, other: Outcome) -> bool:
    """Whether Welch's 95 % interval of the difference holds zero; what has one seed can not be told apart."""
    assert one.metrics is not None and other.metrics is not None
    errors = [_squared_error(outcome, objective) for outcome in (one, other)]
    known = [error for error in errors if error is not None]
    if len(known) < len(errors):
        return True
    seeds = [round(_seeds(outcome, objective) or 0) for outcome in (one, other)]
    return abs(one.metrics[objective] - other.metrics[objective]) <= welch(known, seeds)


def _squared_error(outcome: Outcome, objective: str) -> float | None:
    """Of the objective's mean over the seeds; None for one seed."""
    spread, seeds = (outcome.metrics or {}).get(f"{objective}_std"), _seeds(outcome, objective)
    return spread**2 / seeds if spread is not None and seeds and seeds > 1 else None


def _seeds(outcome: Outcome, objective: str) -> float | None:
    """How many the objective rests on; `n` where it has no count of its own."""
    metrics = outcome.metrics or {}
    return metrics.get(f"{objective}_n", metrics.get("n"))


def _short(sweep: Sweep) -> list[str]:
    """The parameters' names without what leads to them, as far as they stay different."""
    names = list(sweep.outcomes[0].trial.values) if sweep.outcomes else []
    last = [name.rsplit(".", 1)[-1] for name in names]
    return [short if last.count(short) == 1 else name for name, short in zip(names, last, strict=True)]


def _text(value: Value) -> str:
    return "null" if value is None else str(value)
