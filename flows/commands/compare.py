"""`dmcp compare`: what is known of a data set's models, from MLflow and from the evaluations of its protection."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows import console

if TYPE_CHECKING:
    from tasks.tracking import Tracking


def compare(
    dataset: Annotated[
        str | None, typer.Argument(metavar="[DATASET]", help="Default: all of which anything is known.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only this evaluation: quick, full ... (see params.yaml).")
    ] = None,
) -> None:
    """Compare the models of a data set's variants, and show what evaluations found of its protection.

    Accuracies, and the digests of the data they were trained on, of the models on record in MLflow; then the tables of
    data/DATASET/evidence/PRESET, which are those of its report. Exit code 8 for a name of which nothing is known.
    """
    from storage.settings import settings
    from tasks.tracking import open_tracking

    shown = 0
    if preset is None:
        tracking = open_tracking(settings())
        names = [dataset] if dataset else sorted(e.name for e in tracking.client.search_experiments())
        shown += sum(_models(tracking, name) for name in names)
    for folder in _evaluations(dataset, preset):
        _evidence(folder)
        shown += 1
    if not shown:
        console.finished(
            f"No finished training {f'on {dataset} ' if dataset else ''}is on record.", then=[_first_step(dataset)]
        )
    elif preset is None:
        console.say("Next: dmcp up shows curves, pictures and models in MLflow")


def _first_step(dataset: str | None) -> str:
    """What makes a first model of a data set.

    Raises:
        NotFound: neither params.yaml nor the data folder knows it.
    """
    from flows.environment import PROJECT
    from storage.errors import NotFound
    from storage.settings import settings
    from tasks.params import PARAMS_FILE, known_datasets

    known = known_datasets(PARAMS_FILE if PARAMS_FILE.exists() else PROJECT / PARAMS_FILE)
    if dataset is None or dataset in known:
        return f"dmcp run --dataset {dataset or 'sample'}, or dmcp train VARIANT"
    if not settings().data_path(dataset).is_dir():
        raise NotFound(
            f"Nothing is known of a data set {dataset}.",
            f"params.yaml has {', '.join(known)}. Without a name, dmcp compare shows all that is known.",
        )
    return f"dmcp train clean --dataset {dataset}"


def _models(tracking: Tracking, name: str) -> int:
    """The table of one data set's models; returns its rows."""
    rows = [
        (
            line.variant,
            line.seed,
            f"{line.test_accuracy:.1%}",
            f"{line.peak_test_accuracy:.1%}",
            f"{line.train_accuracy:.1%}",
            f"{line.architecture}, {line.stem}, {line.recipe}, {line.epochs} epochs",
            line.data_digest,
            f"{line.started:%Y-%m-%d %H:%M}",
        )
        for line in tracking.compare(name)
    ]
    if rows:
        columns = ("variant", "seed", "test", "peak", "training", "how", "data set digest (DVC)", "when (UTC)")
        console.table(columns, rows, name, right=("seed", "test", "peak", "training"))
    return len(rows)


def _evaluations(dataset: str | None, preset: str | None) -> list[Path]:
    """Folders with results, by data set and preset.

    Raises:
        NotFound: a preset was named, and there are no results of it.
    """
    from storage.errors import NotFound
    from storage.settings import settings

    found = sorted(
        path.parent for path in settings().data.glob(f"{dataset or '*'}/evidence/{preset or '*'}/results.json")
    )
    if preset is not None and not found:
        raise NotFound(
            f"There is no evaluation {preset}{f' of {dataset}' if dataset else ''}.",
            f"Make it: dmcp evaluate-protection --dataset {dataset or 'sample'} --preset {preset}",
        )
    return found


def _evidence(folder: Path) -> None:
    from tasks.evidence.report import read_evidence
    from tasks.evidence.terminal import evidence_tables, evidence_words

    evidence = read_evidence(folder)
    for table in evidence_tables(evidence):
        console.table(table.columns, table.rows, table.title, right=table.right)
    for sentence in evidence_words(evidence):
        console.say(sentence)
    console.say(f"Report: {console.shown(folder / 'report.html')}")
