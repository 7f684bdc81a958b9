"""`dmcp sweep`: search the protection's parameters by DVC experiments, and the table it ends in."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows import console

if TYPE_CHECKING:
    from tasks.sweep import Plan, Sweep, Trial

Axis = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=V,V", help="Values to try instead of sweep.yaml's grid; several: all pairs."),
]


def register(root: typer.Typer) -> None:
    """Add the command to the command tree."""
    root.command(rich_help_panel="The whole job")(sweep)


def sweep(
    dataset: Annotated[str, typer.Option("--dataset", "-d", help="A data set of params.yaml.")] = "cifar10",
    grid: Axis = None,
    preset: Annotated[str | None, typer.Option(help="What one trial is; default: sweep.yaml's.")] = None,
    bound: Annotated[float | None, typer.Option(help="Lowest PSNR in dB that may win; default: sweep.yaml's.")] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Trials at a time; they share the cores.")] = 2,
    out: Annotated[Path | None, typer.Option(help="Write the table as JSON there, as markdown beside it.")] = None,
    page: Annotated[Path | None, typer.Option(help="Put the table between this page's marks, too.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the trials' `dvc` commands, no more.")] = False,
) -> None:
    """Search the protection's parameters: lowest peak accuracy at a PSNR of at least a bound.

    Trials are DVC experiments in a private clone of the last commit; what was done before is not done again. See
    docs/search.md.
    """
    from storage.errors import ServiceError
    from tasks.sweep import columns, markdown, rows, says

    plan = _plan(grid, preset, bound)
    if dry_run:
        _show_commands(plan, dataset)
        return
    if page is not None:
        _put("", page, keep=True)
    found = _run(plan, dataset, jobs)
    if out is not None:
        _write(found, out)
    if page is not None:
        _put(markdown(found), page)
    head = columns(found)
    console.table(head, rows(found), f"{dataset}, preset {plan.preset}", right=head[-4:-1])
    failed = [outcome for outcome in found.outcomes if outcome.error]
    for outcome in failed[:3]:
        console.note(f"{outcome.trial.name} failed:\n{outcome.error}")
    written = [(str(file), console.shown(file)) for file in (out, page) if file]
    console.finished(says(found), written, _next(found))
    if failed:
        raise ServiceError(f"{len(failed)} of {len(found.outcomes)} trials failed.", "Run it again to try only those.")


def _plan(grid: list[str] | None, preset: str | None, bound: float | None) -> Plan:
    from storage.errors import UsageError
    from tasks.sweep import load_plan, parse_axis

    changes: dict[str, object] = {}
    if grid:
        axes = [parse_axis(text) for text in grid]
        if len(dict(axes)) < len(axes):
            raise UsageError("--set names a parameter twice.", "Give all of its values at once: KEY=VALUE,VALUE.")
        changes["grid"] = [dict(axes)]
    if preset is not None:
        changes["preset"] = preset
    if bound is not None:
        changes["bound"] = bound
    return load_plan().model_copy(update=changes)


def _run(plan: Plan, dataset: str, jobs: int) -> Sweep:
    import os

    from filelock import FileLock, Timeout

    from flows.services import prefect_server
    from flows.sweep import outcomes, run_trials
    from flows.sweep_workspace import check_project, prepare
    from storage.errors import WorkspaceBusy
    from storage.files import make_private
    from storage.settings import settings
    from tasks.machine import describe_machine, package_versions
    from tasks.sweep import Sweep, winner

    project = Path.cwd()
    head = check_project(project)
    trials = _trials(plan, dataset)
    lock = make_private(settings().home_path("run")) / f"sweep-{dataset}.lock"
    try:
        with FileLock(lock, timeout=0), prefect_server():
            threads = max(1, (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1) // jobs)
            workspace = prepare(project, dataset, plan.preset, plan.stage, threads)
            with console.progress(f"Sweep of {len(trials)} trials") as bars:
                run_trials(workspace, trials, dataset, jobs, bars)
            ended = outcomes(workspace, trials, dataset, plan.preset, plan.objective)
    except Timeout:
        raise WorkspaceBusy(f"Another sweep of {dataset} runs.", "Wait for it.") from None
    best = winner(ended, plan.objective, plan.bound)
    return Sweep(
        dataset=dataset,
        preset=plan.preset,
        objective=plan.objective,
        bound=plan.bound,
        commit=head,
        command=" ".join(["dmcp", *sys.argv[1:]]),
        machine=describe_machine(),
        versions=package_versions(),
        outcomes=ended,
        winner=best.trial.name if best else None,
    )


def _trials(plan: Plan, dataset: str) -> list[Trial]:
    """The trials, each with parameters that are in range, so that none fails for that after an hour."""
    from flows.commands.common import params_for
    from tasks.protect import method_named
    from tasks.sweep import expand, nested

    trials = expand(plan.grid, params_for(dataset, {}).model_dump())
    for trial in trials:
        method_named(params_for(dataset, nested(trial.values)).protect.model_dump())
    return trials


def _show_commands(plan: Plan, dataset: str) -> None:
    """What runs in the clone, to be read or pasted."""
    import shlex

    import yaml

    from flows.sweep import queue_command
    from tasks.params import PARAMS_FILE

    raw = yaml.safe_load(PARAMS_FILE.read_text(encoding="utf-8"))
    stage = f"{plan.stage}@{dataset}-{plan.preset}"
    for trial in _trials(plan, dataset):
        console.say(shlex.join(["dvc", *queue_command(trial, stage, raw, dataset)]))


def _write(found: Sweep, out: Path) -> None:
    from storage.files import write_atomic
    from tasks.sweep import markdown

    write_atomic(out, (json.dumps(found.model_dump(), indent=2, ensure_ascii=False) + "\n").encode())
    write_atomic(out.with_suffix(".md"), markdown(found).encode())


def _next(found: Sweep) -> list[str]:
    best = next((outcome for outcome in found.outcomes if outcome.trial.name == found.winner), None)
    return ["put the values that won into params.yaml"] if best is not None and best.trial.changed else []


def _put(table: str, page: Path, keep: bool = False) -> None:
    """Put the table into the page; with `keep` only see that it can be, before the work of hours."""
    from storage.errors import UsageError
    from storage.files import write_atomic
    from tasks.sweep import into_page

    if not page.is_file():
        raise UsageError(f"There is no page {page}.", "Name one that holds the marks, as docs/search.md does.")
    text = into_page(page.read_text(encoding="utf-8"), table)
    if not keep:
        write_atomic(page, text.encode())
