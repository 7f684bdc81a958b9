"""`dmcp evaluate-protection`: how strong the protection of a data set is."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from flows import console

if TYPE_CHECKING:
    from pathlib import Path


def register(root: typer.Typer) -> None:
    """Add the command to the command tree."""
    root.command("evaluate-protection", rich_help_panel="Models")(evaluate_protection)


def evaluate_protection(
    dataset: Annotated[str, typer.Option("--dataset", "-d", help="A data set of params.yaml.")] = "sample",
    preset: Annotated[
        str, typer.Option("--preset", "-p", help="What is tried: a preset of the section `evidence` of params.yaml.")
    ] = "quick",
    select_only: Annotated[
        bool, typer.Option("--select-only", help="Run nothing; from then on: dvc repro evaluate-protection.")
    ] = False,
) -> None:
    """Measure what networks learn from the protected images, plainly and with every countermeasure of the preset.

    quick takes less than an hour on two cores, full wants a GPU, tiny only shows that it runs. What was trained before,
    by any preset, is not trained again, and a run that was killed goes on where it was. No key of yours is used.
    Images of your own need an entry in params.yaml, which is printed where it is missing (docs/evidence.md).
    """
    from flows.graph import select_dataset
    from storage.settings import settings

    select_dataset(dataset, [preset])
    if select_only:
        console.finished(f"Selected: {dataset}, preset {preset}.", then=["dvc repro evaluate-protection"])
        return
    from flows.evidence import evidence
    from flows.services import prefect_server

    started = time.monotonic()
    with prefect_server():
        ran = evidence(dataset, preset)
    folder = settings().data_path(dataset, "evidence", preset)
    _show_main_rows(folder)
    took = f"{time.monotonic() - started:.0f} s" if ran else "no time: nothing had changed"
    console.finished(
        f"Evaluated {dataset} by preset {preset} in {took}.",
        [("report", (folder / "report.html").resolve().as_uri()), ("results", f"{console.shown(folder)}/results.json")],
        ["dmcp up shows every cell in MLflow", f"dmcp compare {dataset}"],
    )


def _show_main_rows(folder: Path) -> None:
    """What the networks of the main rows came to; everything else stands in the report."""
    import statistics

    from tasks.evidence.outputs import main_rows
    from tasks.evidence.report import read_evidence
    from tasks.verdict import percent

    evidence = read_evidence(folder)
    rows = []
    for name, results in main_rows(evidence).items():
        accuracies = ([getattr(r, field) for r in results] for field in ("test_accuracy", "peak_test_accuracy"))
        means = [percent(statistics.fmean(values)) for values in accuracies]
        rows.append((name, results[0].n_train, *means, len(results)))
    setting = evidence.setting
    columns = ("trained on", "images", "test accuracy", "peak", "seeds")
    title = f"{setting.dataset}, preset {setting.preset}: recipe {setting.recipe}, {setting.epochs} epochs"
    console.table(columns, rows, title, right=columns[1:])
