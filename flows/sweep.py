"""The sweep: trials as DVC's queued experiments in a private clone (`flows/sweep_workspace.py`), and what came of them.

Under it is the plain command line, `dvc exp run --queue`, `dvc queue start`, `dvc exp show`; docs/search.md shows it.
A trial whose experiment exists is done. Whatever else a sweep that was cut off has left in the queue is stopped and
queued anew; Ctrl-C stops the trials in flight.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

from flows.console import note
from flows.sweep_workspace import Workspace, git
from storage.errors import DmcpError, ServiceError, UsageError
from tasks.params import PARAMS_FILE
from tasks.sweep import Metrics, Outcome, Trial, checked_metrics

METRICS = "data/{dataset}/metrics/evidence-{preset}.json"
POLL_SECONDS = 2.0
FIRST_LOOKS = 150  # without any worker, before one was seen: on a busy machine they take long to start
LAST_LOOKS = 3  # and after the last one was
STOP_SECONDS = 30.0
Report = Callable[[str, int, int | None], None]


def run_trials(workspace: Workspace, trials: Sequence[Trial], dataset: str, jobs: int, report: Report) -> None:
    """Queue the trials that are not done yet, run them, and wait until all have ended, well or badly.

    Args:
        workspace: the clone; nobody else uses it.
        trials: all trials of the sweep.
        dataset: the data set.
        jobs: trials at a time.
        report: called with a label, the number of trials that have ended, and of all.

    Raises:
        ServiceError: DVC takes no trial, or its workers end with trials left.
    """
    stop(workspace)
    missing = [trial for trial in trials if trial.name not in done(workspace)]
    if not missing:
        note(f"All {len(trials)} trials are done already.")
        return
    note(f"{len(trials) - len(missing)} of {len(trials)} trials are done already; {len(missing)} are queued ...")
    raw = yaml.safe_load((workspace.root / PARAMS_FILE).read_text(encoding="utf-8"))
    for trial in missing:
        workspace.dvc(*queue_command(trial, workspace.stage, raw, dataset))
    workspace.dvc("queue", "start", "--jobs", str(jobs))
    try:
        _wait(workspace, {trial.name for trial in missing}, len(trials), report)
    except KeyboardInterrupt:
        note("Stopping the trials in flight ...")
        stop(workspace)
        raise


def queue_command(trial: Trial, stage: str, raw: Mapping[str, Any], dataset: str) -> list[str]:
    """The arguments of `dvc` that queue a trial.

    Args:
        trial: what to try; only what differs from the defaults is set.
        stage: the stage's whole name.
        raw: params.yaml as it is.
        dataset: where it has a value of its own, that one is set, because it would win over the common one.

    Raises:
        UsageError: a text holds what DVC would read as grammar.
    """
    sets = []
    for name, value in trial.changed.items():
        sets += ["-S", f"{_place(name, raw, dataset)}={_override(name, value)}"]
    return ["exp", "run", "--quiet", "--queue", "--name", trial.name, *sets, stage]


def done(workspace: Workspace) -> set[str]:
    """Names of the experiments that exist on this baseline."""
    prefix = f"refs/exps/{workspace.baseline[:2]}/{workspace.baseline[2:]}/"
    found = git(workspace.root, "for-each-ref", "--format=%(refname)", prefix)
    return {name.removeprefix(prefix) for name in found.splitlines()}


def stop(workspace: Workspace) -> None:
    """End workers and trials that run, and empty the queue; what is done stays."""
    if _workers(workspace.root):
        with suppress(DmcpError):  # it complains when a trial ends by itself meanwhile
            workspace.dvc("queue", "stop", "--kill")
        _end(_workers(workspace.root))
    states = _states(workspace.root)
    running = [name for name, state in states.items() if state == "Running"]
    if running:  # their worker was killed, so nobody else marks them
        with suppress(DmcpError):
            workspace.dvc("queue", "kill", "--force", *running)
    if states.keys() - _with(states, "Success"):
        workspace.dvc("queue", "remove", "--queued", "--failed")
    for folder in (workspace.root / ".dvc" / "tmp" / "exps").glob("tmp*"):
        shutil.rmtree(folder, ignore_errors=True)


def outcomes(workspace: Workspace, trials: Sequence[Trial], dataset: str, preset: str, objective: str) -> list[Outcome]:
    """What came of each trial, by `dvc exp show`.

    Raises:
        InputError: the stage's metrics lack the objective or the PSNR.
    """
    experiments: list[Any] = []
    if done(workspace):
        shown = json.loads(workspace.dvc("exp", "show", "--json", "--hide-workspace", "--hide-queued"))
        here = [entry["experiments"] for entry in shown if entry["rev"] == workspace.baseline]
        experiments = (here and here[0]) or []
    path = METRICS.format(dataset=dataset, preset=preset)
    found = {experiment["name"]: _metrics(experiment, path, objective) for experiment in experiments}
    return [_outcome(workspace, trial, found.get(trial.name)) for trial in trials]


def _outcome(workspace: Workspace, trial: Trial, metrics: Metrics | None) -> Outcome:
    if metrics is not None:
        return Outcome(trial=trial, metrics=metrics)
    try:
        log = workspace.dvc("queue", "logs", trial.name)
    except ServiceError as error:
        log = error.what
    words = [line.strip() for line in log.splitlines() if line.strip()]
    return Outcome(trial=trial, error="\n".join(words[-5:]) or "It left no log.")


def _metrics(experiment: Mapping[str, Any], path: str, objective: str) -> Metrics | None:
    data = experiment["revs"][-1].get("data") if experiment["revs"] else None
    content = ((data or {}).get("metrics") or {}).get(path, {}).get("data")
    return None if experiment["revs"][-1].get("error") or not content else checked_metrics(content, objective)


# --- parameters as DVC writes them -----------------------------------------------------------------------------------


def _place(name: str, raw: Mapping[str, Any], dataset: str) -> str:
    own: Any = raw.get("datasets", {}).get(dataset, {})
    for part in name.split("."):
        if not isinstance(own, Mapping) or part not in own:
            return name
        own = own[part]
    return f"datasets.{dataset}.{name}"


def _override(name: str, value: Any) -> str:
    if isinstance(value, str):
        if not all(letter.isalnum() or letter in "_.-" for letter in value) or value in ("null", "true", "false"):
            raise UsageError(f"{name}: {value!r} can not be set by `dvc exp run -S`.", "Use letters, digits, '_', '-'.")
        return value
    return json.dumps(value)


# --- the queue -------------------------------------------------------------------------------------------------------


def _wait(workspace: Workspace, names: set[str], total: int, report: Report) -> None:
    idle, patience = 0, FIRST_LOOKS
    while True:
        states = _states(workspace.root)
        left = {name for name in names if states.get(name) in ("Queued", "Running")}
        report("trials", total - len(left), total)
        if not left:
            return
        if _workers(workspace.root):
            # One that has just ended may have left its last trial's state for the next look.
            idle, patience = 0, LAST_LOOKS
        else:
            idle += 1
        if idle > patience:
            what = f"DVC's workers ended, and {len(left)} trials are left."
            raise ServiceError(what, f"Run it again: it goes on. Their logs lie in {_celery(workspace.root)}.")
        time.sleep(POLL_SECONDS)


def _states(root: Path) -> dict[str, str]:
    """Each task's state (Queued, Running, Failed, Success) by name; of several of one name the newest."""
    from dvc.repo import Repo

    for attempt in range(5):
        try:
            with Repo(str(root)) as repo:
                tasks = repo.experiments.celery_queue.status()
            tasks.sort(key=lambda task: task["timestamp"])
            return {task["name"]: task["status"] for task in tasks}
        except (OSError, ValueError, KeyError):  # a worker moved or rewrote one of the queue's files meanwhile
            if attempt == 4:
                raise
            time.sleep(0.5)
    raise AssertionError


def _with(states: Mapping[str, str], state: str) -> set[str]:
    return {name for name, found in states.items() if found == state}


def _celery(root: Path) -> Path:
    return root / ".dvc" / "tmp" / "exps" / "celery"


def _workers(root: Path) -> list[psutil.Process]:
    """The living workers of this clone's queue."""
    alive = []
    for note_of in _celery(root).glob("dvc-exp-worker-*.json"):
        with suppress(OSError, ValueError, KeyError, psutil.Error):
            process = psutil.Process(json.loads(note_of.read_text())["pid"])
            if process.status() != psutil.STATUS_ZOMBIE and "queue-worker" in process.cmdline():
                alive.append(process)
    return alive


def _end(workers: Sequence[psutil.Process]) -> None:
    """See workers out, and those that stay with force, together with what they started."""
    _, alive = psutil.wait_procs(workers, timeout=STOP_SECONDS)
    for worker in alive:
        with suppress(psutil.Error):
            family = [*worker.children(recursive=True), worker]
            for process in family:
                with suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(family, timeout=STOP_SECONDS)
