"""The graph of stages, which is DVC's: selecting a data set, the stages in order, running one of them.

`selection.yaml` (not in git) names the data set that dvc.yaml's stages are made for, because DVC's templates read files
and no environment variables. dvc.lock keeps the stages of every data set side by side, so going back reruns nothing.
It also names the presets that the protection is evaluated by, none unless asked for: with none there is no stage
`evaluate-protection`, so neither `make run` nor a bare `dvc repro` starts an hour of training.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from flows.stage import FAILURE_NOTE
from storage.errors import DmcpError, ServiceError, UsageError
from storage.files import write_atomic
from tasks.params import load_params, preset_named

SELECTION = Path("selection.yaml")
LOCK = Path("dvc.lock")
_HINT = "Use `dvc push`"  # after every stage; we push at the end
_HEADER = """\
# Which data set the stages of dvc.yaml are made for. Written by `make run DATASET=...` and `dmcp run --dataset ...`;
# the seeds are those of params.yaml. `presets` stands here after `dmcp evaluate-protection`.
"""


def select_dataset(name: str, presets: Sequence[str] = ()) -> None:
    """Make the stages of this data set the ones that DVC sees from now on.

    Args:
        presets: those that its protection is to be evaluated by.

    Raises:
        ParameterError: params.yaml knows no such data set or preset, or one of its parameters can not be used.
    """
    params = load_params(name)
    selection: dict[str, Any] = {"dataset": name, "seeds": params.seeds}
    for preset in presets:
        preset_named(params, preset)
        # A mapping, which DVC merges with the empty one of dvc.yaml; a list would have to stand in every selection.
        selection.setdefault("presets", {})[f"{name}-{preset}"] = {"dataset": name, "preset": preset}
    text = _HEADER + yaml.safe_dump(selection, sort_keys=False)
    if not SELECTION.exists() or SELECTION.read_text(encoding="utf-8") != text:
        write_atomic(SELECTION, text.encode())


def selected_dataset() -> str | None:
    """The data set that DVC's stages are made for; None: none was selected yet."""
    try:
        return str(yaml.safe_load(SELECTION.read_text(encoding="utf-8"))["dataset"])
    except FileNotFoundError:
        return None


def locked_stages(path: Path = LOCK) -> dict[str, Any]:
    """What a lock file of DVC says of each stage that was run, by its address; nothing where there is none."""
    if not path.exists():
        return {}
    found = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("stages")
    return found if isinstance(found, dict) else {}


def check_selection(dataset: str) -> None:
    """See that the stages were made for the seeds that params.yaml has now.

    Raises:
        UsageError: they were not; models of some seeds are missing, or not wanted any more.
    """
    try:
        selected = yaml.safe_load(SELECTION.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    wanted = load_params(dataset).seeds
    if selected["dataset"] == dataset and selected["seeds"] != wanted:
        raise UsageError(
            f"params.yaml asks for the seeds {wanted} of {dataset}, and the stages were made for {selected['seeds']}.",
            f"Make them anew: make run DATASET={dataset}",
        )


def stages(of: str | None = None) -> list[str]:
    """Addresses of the selected data set's stages, each after all that it depends on.

    Args:
        of: only this stage and what it depends on.

    Raises:
        ServiceError: DVC can not read the graph.
    """
    import networkx as nx

    with _repo() as repo:
        graph = repo.index.graph
        if of is not None:
            last = next(stage for stage in graph if stage.addressing == of)
            graph = graph.subgraph({last, *nx.descendants(graph, last)})
        order = nx.lexicographical_topological_sort(graph.reverse(), key=lambda stage: stage.addressing)
        return [stage.addressing for stage in order]


def is_current(stage: str) -> bool:
    """Whether DVC would skip this stage: command, dependencies, parameters and outputs are as dvc.lock says."""
    with _repo() as repo:
        return not repo.status(targets=[stage], with_deps=False)


def run_stage(stage: str, force: bool = False) -> None:
    """Run one stage by DVC, whatever the stages before it say; its output goes where ours goes.

    Args:
        stage: its address.
        force: also when nothing changed that DVC knows of.

    Raises:
        DmcpError: it failed; with the stage's own message and exit code where it left them (`flows/stage.py`).
    """
    with tempfile.TemporaryDirectory(prefix="dmcp-") as folder:
        note = Path(folder, "failure.json")
        options = ["--single-item", "--force"] if force else ["--single-item"]
        command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", *options, stage]
        env = _environment() | {FAILURE_NOTE: str(note)}
        with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as dvc:
            assert dvc.stdout is not None
            for line in dvc.stdout:  # progress goes to stderr, which is the terminal's own
                if line.strip() and not line.startswith(_HINT):
                    print(line, end="", flush=True)
        if dvc.returncode != 0:
            raise _failure(stage, note)


def _failure(stage: str, note: Path) -> DmcpError:
    try:
        said = json.loads(note.read_text())
    except FileNotFoundError:
        return DmcpError(f"The stage {stage} failed; what it said stands above.", "Run the same again: it resumes.")
    error = DmcpError(f"{stage}: {said['what']}", said["cure"])
    error.exit_code = said["exit_code"]
    return error


def push() -> bool:
    """Send what DVC tracks to its default remote (which is private); whether there is one.

    Raises:
        ServiceError: it was refused or out of reach.
    """
    with _repo() as repo:
        if not repo.config["core"].get("remote"):
            return False
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "push"]
    if subprocess.run(command, env=_environment(), check=False).returncode != 0:
        raise ServiceError("dvc push failed; what it said stands above.", "Correct the remote: dvc remote list.")
    return True


def _environment() -> dict[str, str]:
    """The environment of DVC: ours, with this interpreter first, so that `python` in dvc.yaml is this one."""
    folder = str(Path(sys.executable).parent)
    path = os.pathsep.join([folder, os.environ.get("PATH", "")])
    return os.environ | {"PATH": path, "DVC_NO_ANALYTICS": "1", "PYTHONUNBUFFERED": "1"}


def _repo() -> Any:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        return Repo()
    except DvcException as error:
        raise ServiceError(f"DVC can not be used here: {error}.", "Run `make setup` here.") from error
