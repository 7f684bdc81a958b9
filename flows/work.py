"""Shards in progress: finished ones survive a killed run.

DVC deletes a stage's outputs before it runs, so shards are built below HOME/work/STAGE/NAME/DIGEST/ and linked into the
output when all are there. DIGEST covers everything that decides their bytes (parameters, key id, surrogate, the code
itself) and each shard's folder is named by the digest of its input, so what is found there is what would be computed.
Restored images lie there, so the folders are their owner's only (0700).
One DIGEST is kept for each stage and name: the last. A folder is locked while a process works in it.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from storage.disk import writing
from storage.errors import WorkspaceBusy
from storage.files import make_private, remove_partials, write_atomic
from storage.settings import settings

_REPORT = "report.json"
_JOB = "job.json"


@dataclass(frozen=True)
class Work:
    """Where the shards of one run of one stage are built."""

    folder: Path

    def slot(self, shard_sha256: str, name: str = "shard.tar") -> "Slot":
        """Where the result of this input shard is built, and what it is called there."""
        return Slot(self.folder / shard_sha256, name)

    def write_job(self, job: Mapping[str, Any]) -> str:
        """Leave what all shards share for the tasks, which are given this folder's path only; returns that path."""
        write_atomic(self.folder / _JOB, json.dumps(job, default=str).encode())
        return str(self.folder)

    def keep_only_this(self, shards: Collection[str] | None = None) -> None:
        """Remove what other parameters or older code left of the same stage and name, unless someone is at it.

        Args:
            shards: digests of the input shards whose results stay; None: all.
        """
        for slot in self.folder.iterdir():
            if shards is not None and slot.is_dir() and slot.name not in shards:
                shutil.rmtree(slot, ignore_errors=True)
        for other in self.folder.parent.iterdir():
            if other != self.folder and other.is_dir():
                with suppress(Timeout), FileLock(_lock(other), timeout=0):
                    shutil.rmtree(other, ignore_errors=True)
                    _lock(other).unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove this one too."""
        shutil.rmtree(self.folder.parent, ignore_errors=True)


@dataclass(frozen=True)
class Slot:
    """One shard in progress: the result, and a report that is written last and so says that the result is whole."""

    folder: Path
    name: str

    @property
    def shard(self) -> Path:
        """The result."""
        return self.folder / self.name

    def finished(self) -> dict[str, Any] | None:
        """The report of a result that is whole, else None. One that says `delivered` needs no result here."""
        try:
            report = json.loads((self.folder / _REPORT).read_text())
        except (FileNotFoundError, ValueError):
            return None
        there = isinstance(report, dict) and (report.get("delivered") or self.shard.exists())
        return report if there else None

    def finish(self, report: Mapping[str, Any]) -> None:
        """Say that the result is whole."""
        write_atomic(self.folder / _REPORT, json.dumps(report).encode())


@contextmanager
def work_for(stage: str, name: str, facts: Mapping[str, Any], patience: float = 0) -> Iterator[Work]:
    """The work folder of a stage; `facts` are all that decides the results but for the input shards.

    Args:
        stage: which stage.
        name: of what: a data set, a request.
        facts: see above.
        patience: seconds to wait for a process that is at it.

    Raises:
        WorkspaceBusy: another process does the very same.
        DiskFault: the disk is full, or HOME can not be written.
    """
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
    folder = make_private(settings().home_path("work"), stage, name, digest[:32])
    try:
        with writing(folder), FileLock(_lock(folder), timeout=patience):
            for slot in filter(Path.is_dir, folder.iterdir()):
                remove_partials(slot)
            yield Work(folder)
    except Timeout:
        raise WorkspaceBusy(f"Another process is at {stage} of {name}.", "Wait until it is done.") from None


def _lock(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def read_job(folder: str) -> Any:
    """What `write_job` left."""
    return json.loads(Path(folder, _JOB).read_bytes())


def place(source: Path, target: Path) -> None:
    """Give a finished file its name in the output: a hard link, or a copy where links are not possible."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
