"""`dmcp run`: the whole job on one data set, and the table it ends in."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows import console

if TYPE_CHECKING:
    from tasks.metrics import Evaluation, Stat


def register(root: typer.Typer) -> None:
    """Add the command to the command tree."""
    root.command(rich_help_panel="The whole job")(run)


def run(
    dataset: Annotated[str, typer.Option("--dataset", "-d", help="A data set of params.yaml.")] = "sample",
) -> None:
    """Download, protect, publish, restore, train on all three variants, compare, report.

    Only what changed since the last run is done again; a run that was killed goes on where it was.
    """
    from flows.pipeline import pipeline
    from flows.services import prefect_server
    from storage.settings import settings
    from tasks.metrics import read_evaluation
    from tasks.params import load_params

    load_params(dataset)  # a name that is not known is said before anything is started
    started = time.monotonic()
    console.note(f"Starting what {dataset} needs ...")
    with prefect_server():
        done = pipeline(dataset)
    folder = settings().data_path(dataset)
    ran = f"{len(done['ran'])} stages ran" if done["ran"] else "nothing had changed"
    took, version = _minutes(time.monotonic() - started), f"{dataset}@{done['version']}"
    show_table(read_evaluation(folder))
    console.finished(
        f"Finished {dataset} in {took}: {ran}; published as {version}.",
        [
            ("report", _browser(folder / "report.html")),
            ("variants", f"{console.shown(folder)}/clean, protected, recovered"),
        ],
        ["dmcp up shows all runs in MLflow and Prefect", f"dmcp compare {dataset}", f"dmcp pull {dataset} OUT"],
    )


def show_table(evaluation: Evaluation) -> None:
    """Accuracies by variant, and below them what they say."""
    from tasks.verdict import percent, verdict

    rows = []
    for name, accuracy in evaluation.accuracy.items():
        train, last, peak = (_spread(stat) for stat in (accuracy.train, accuracy.last, accuracy.peak))
        rows.append((name, accuracy.n_train, train, last, peak, len(accuracy.seeds)))
    setting, chance = evaluation.setting, percent(1 / evaluation.classes)
    console.table(
        ("trained on", "images", "training accuracy", "test accuracy", "peak", "seeds"),
        rows,
        f"{evaluation.dataset}: {setting.architecture}, stem {setting.stem}, recipe {setting.recipe}, "
        f"{setting.epochs} epochs; tested on {setting.n_test:,} clean images (chance {chance})",
        right=("images", "training accuracy", "test accuracy", "peak", "seeds"),
    )
    for sentence in verdict(evaluation):
        console.say(sentence)
    console.say("")


def _spread(stat: Stat) -> str:
    from tasks.verdict import percent

    return percent(stat.mean) + (f" ± {100 * stat.std:.1f}" if stat.std is not None else "")


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"


def _browser(path: Path) -> str:
    """An address that terminals make clickable and browsers open."""
    return path.resolve().as_uri()
