"""Where a sweep runs: a private clone of the project, HOME/sweep/DATASET, with a commit of its own on top of HEAD.

`dvc exp run --queue` makes commits, moves HEAD and stashes what is not committed, and needs dvc.lock in git, where the
project's own must not be (docs/decisions/0001). So it gets a clone, whose top commit (the *baseline*) adds what git
ignores and trials need: selection.yaml, dvc.lock as far as it concerns what trials depend on, the key's public id. The
project's files, branches, stashes and refs stay untouched. DVC's cache is the project's: inputs come from it, and
results go to it, so nothing is computed twice, not even under another baseline.

The same HEAD and the same inputs make the same baseline, byte for byte, so that a sweep that is started again finds the
experiments it has done.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flows.console import note
from flows.environment import service_environment
from flows.graph import LOCK, SELECTION, locked_stages, select_dataset
from storage.errors import Conflict, EnvironmentFault, ServiceError, UsageError
from storage.files import make_private, write_atomic
from storage.settings import settings

BRANCH = "sweep"
_OURS = "\n# The sweep's clone keeps these:\n!/selection.yaml\n!/dvc.lock\n"
# What no trial reads: changes in it need not be committed first.
_BESIDE = (":!docs", ":!tests", ":!benchmarks", ":!*.md", ":!sweep.yaml")


@dataclass(frozen=True)
class Workspace:
    """A clone that is ready: its folder, the stage that measures a trial, the baseline, and DVC's environment."""

    root: Path
    stage: str
    baseline: str
    environment: dict[str, str]

    def dvc(self, *arguments: str) -> str:
        """Run `dvc ARGUMENTS` there; what it printed on stdout. Raises ServiceError with its last words."""
        return dvc(self.root, self.environment, *arguments)


def prepare(project: Path, dataset: str, preset: str, stage: str, threads: int) -> Workspace:
    """Bring the clone to the project's HEAD, its inputs up to date, and commit the baseline.

    Args:
        project: the project's folder; the top of a git repository without uncommitted changes.
        dataset: the data set to search on.
        preset: of `stage`.
        stage: the stage that measures a trial, without data set and preset.
        threads: of each trial.

    Raises:
        UsageError: `project` is not the top of a git repository with a commit.
        Conflict: it holds changes that are not committed.
        ServiceError: an input can not be made, or DVC fails.
        ParameterError: params.yaml knows no such data set.
    """
    head = check_project(project)
    cache = _cache_folder(project)
    root = make_private(settings().home_path("sweep")) / dataset
    known = locked_stages(project / LOCK)
    own = _check_out(project, root)
    _configure(root, cache)
    with chdir(root):
        select_dataset(dataset, [preset])
    address = f"{stage}@{dataset}-{preset}"
    inputs = _inputs_of(root, address)
    environment = trial_environment(root, threads)
    carried = [SELECTION, LOCK, Path(".gitignore"), *_carry_key_id(project, root, dataset)]
    # The clone's own lock or the project's: either may be of older code than the other.
    if not any(_up_to_date(root, inputs, lock) for lock in (known | own, own | known)):
        note(f"Making what trials start from: {', '.join(inputs)} ...")
        dvc(root, environment, "repro", *inputs)
    return Workspace(root, address, _commit(root, carried, head), environment)


def check_project(project: Path) -> str:
    """The commit the project is at; see `prepare` for what is raised."""
    try:
        top = git(project, "rev-parse", "--show-toplevel")
    except ServiceError as error:
        cure = "Trials are commits: use a clone, or `git init`, and commit the project."
        raise UsageError(f"{project} is in no git repository that can be used ({error.what})", cure) from error
    if Path(top).resolve() != project.resolve():
        raise UsageError(f"{project} is not the top of its git repository.", f"Run it in {top}.")
    try:
        head = git(project, "rev-parse", "--verify", "HEAD^{commit}")
    except ServiceError as error:
        raise UsageError("The repository has no commit yet.", "Commit the project first.") from error
    changed = git(project, "status", "--porcelain", "--untracked-files=no", "--", ".", *_BESIDE).splitlines()
    if changed:
        names = ", ".join(line.split(maxsplit=1)[-1] for line in changed[:5]) + (", ..." if len(changed) > 5 else "")
        raise Conflict(
            f"Changes are not committed: {names}. Trials are made from the last commit, so they would not show them.",
            "Commit or undo them first. The sweep itself leaves your files and your stashes alone.",
        )
    return head


def trial_environment(root: Path, threads: int) -> dict[str, str]:
    """The environment of DVC and its trials.

    Trials run in temporary folders that lack what git ignores (.env, .dmcp, .venv), so settings travel as variables
    with absolute paths and this interpreter comes first in PATH. Code is imported from the clone, which is at the same
    commit as every trial: there Numba finds what it has compiled.
    """
    environment = service_environment(settings())
    environment.pop("DMCP_DATA", None)  # stages write below data/ of the folder they run in
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
    environment |= {"PYTHONPATH": str(root), "PYTHONSAFEPATH": "1"}
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "DMCP_WORKERS"):
        environment.setdefault(name, str(threads))
    return environment


def git(folder: Path, *arguments: str, dates: str = "") -> str:
    """Run `git ARGUMENTS`; its stdout, stripped. Raises ServiceError with its message, EnvironmentFault without git."""
    # Inside a hook of git these name the repository that the hook is of.
    environment = {name: value for name, value in os.environ.items() if name not in ("GIT_DIR", "GIT_INDEX_FILE")}
    if dates:
        environment |= {"GIT_AUTHOR_DATE": dates, "GIT_COMMITTER_DATE": dates}
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise EnvironmentFault("git is not installed.", "Install it: trials are commits.") from error
    if done.returncode != 0:
        raise ServiceError(f"git {arguments[0]}: {done.stderr.strip() or 'failed'}", "Correct that and run it again.")
    return done.stdout.strip()


def dvc(root: Path, environment: dict[str, str], *arguments: str) -> str:
    """Run `dvc ARGUMENTS`; its stdout. Raises ServiceError with its last words."""
    command = [sys.executable, "-m", "dvc", *arguments]
    # Files, not pipes: the workers that `dvc queue start` leaves behind inherit them, and a pipe would stay open.
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        done = subprocess.run(command, cwd=root, env=environment, stdout=out, stderr=err, check=False)
        out.seek(0)
        err.seek(0)
        said, complained = out.read(), err.read()
    if done.returncode != 0:
        words = (complained.strip() or said.strip()).splitlines()[-6:]
        raise ServiceError(f"dvc {' '.join(arguments[:2])} failed: " + "\n".join(words), f"It ran in {root}.")
    return said


# --- the clone -------------------------------------------------------------------------------------------------------


def _check_out(project: Path, root: Path) -> dict[str, Any]:
    """Make the clone, or bring it to the project's HEAD; the stages in the dvc.lock that it had."""
    if not (root / ".git").is_dir():
        shutil.rmtree(root, ignore_errors=True)
        git(project, "clone", "--quiet", "--no-checkout", "--origin", "project", str(project), str(root))
    for name, value in {
        "user.name": "dmcp",
        "user.email": "dmcp@localhost",
        "commit.gpgsign": "false",
        "core.hooksPath": os.devnull,
        "gc.auto": "0",
        "remote.project.url": str(project),
    }.items():
        git(root, "config", name, value)
    own = locked_stages(root / LOCK)
    git(root, "fetch", "--quiet", "project", "HEAD")
    git(root, "checkout", "--quiet", "--force", "-B", BRANCH, "FETCH_HEAD")
    return own


def _configure(root: Path, cache: Path) -> None:
    """DVC with git, and with the project's cache; trials get a copy of this file."""
    text = f"[core]\n    no_scm = false\n    analytics = false\n[cache]\n    dir = {cache}\n"
    write_atomic(root / ".dvc" / "config.local", text.encode())
    ignore = root / ".gitignore"
    ignored = ignore.read_text(encoding="utf-8") if ignore.exists() else ""
    write_atomic(ignore, (ignored + _OURS).encode())


def _cache_folder(project: Path) -> Path:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(project)) as repo:
            return Path(repo.cache.local_cache_dir).resolve()
    except DvcException as error:
        raise ServiceError(f"DVC can not be used in {project}: {error}.", "Run `make setup` there.") from error


def _inputs_of(root: Path, address: str) -> list[str]:
    """The stages that a stage depends on, each after those it depends on itself."""
    import networkx as nx
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with chdir(root), Repo() as repo:  # DVC names stages as seen from the working directory
            graph = repo.index.graph
            names = {stage.addressing: stage for stage in graph}
            if address not in names:
                known = ", ".join(sorted(names))
                raise ServiceError(
                    f"dvc.yaml makes no stage {address}, but {known}.", "See sweep.yaml and params.yaml."
                )
            below = graph.subgraph(nx.descendants(graph, names[address])).reverse()
            order = nx.lexicographical_topological_sort(below, key=lambda stage: stage.addressing)
            return [stage.addressing for stage in order]
    except DvcException as error:
        raise ServiceError(f"DVC can not read the graph: {error}.", "Correct dvc.yaml, and commit it.") from error


def _up_to_date(root: Path, stages: list[str], lock: dict[str, Any]) -> bool:
    """Write a lock and fetch the stages' outputs from the cache; whether DVC has nothing left to run by it."""
    from dvc.repo import Repo

    _write_lock(root, {name: lock[name] for name in stages if name in lock})
    if not stages:
        return True
    if any(stage not in lock for stage in stages):
        return False
    with chdir(root), Repo() as repo:
        repo.checkout(targets=stages, force=True, allow_missing=True)
    with chdir(root), Repo() as repo:
        return not repo.status(targets=stages, with_deps=False)


def _write_lock(root: Path, stages: dict[str, Any]) -> None:
    text = yaml.safe_dump({"schema": "2.0", "stages": stages}, sort_keys=True)
    write_atomic(root / LOCK, text.encode())


def _carry_key_id(project: Path, root: Path, dataset: str) -> list[Path]:
    """The public id of the key, where the project has one: a file that stages depend on and no stage makes."""
    name = settings().data_path(dataset, "key_id.txt")
    source, target = project / name, Path("data", dataset, "key_id.txt")
    if not source.exists():
        return []
    write_atomic(root / target, source.read_bytes())
    return [target]


def _commit(root: Path, files: list[Path], head: str) -> str:
    """Commit these files as the baseline, dated as HEAD is, so that the same content is the same commit."""
    _write_lock(root, locked_stages(root / LOCK))  # DVC's own order of stages is that of their making
    git(root, "add", "--force", "--", *map(str, files))
    date = git(root, "show", "--no-patch", "--format=%cI", head)
    git(root, "commit", "--quiet", "--no-verify", "--allow-empty", "-m", "Baseline of the sweep", dates=date)
    return git(root, "rev-parse", "HEAD")
