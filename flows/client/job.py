"""What is remembered of a restoration beside OUT, in OUT.dmcp-part, so that the same call again goes on with it.

    job.json            what was asked of whom, and how far it got
    upload.tar          what is sent, until it was
    results/            the result shards that are here (each is verified again before it is used)

The idempotency key is on the disk before anything is sent: whatever breaks off, at any point, the next run asks the
gateway for the restoration that the key started, and sends nothing again when there is one.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from storage.errors import UsageError, WorkspaceBusy
from storage.files import write_atomic

ENDING = ".dmcp-part"
STATE_NAME = "job.json"
RESULTS_NAME = "results"


class Left(BaseModel):
    """A file that stayed here, and why."""

    name: str
    error: str
    reason: str


class State(BaseModel):
    """`job.json`."""

    model_config = ConfigDict(extra="forbid")

    format: Literal["dmcp-remote/1"] = "dmcp-remote/1"
    gateway: str
    source: str = Field(description="what is restored: a path, DATASET@VERSION, or the id of a restoration")
    wanted: str = Field("", description="digest of what else was asked for: a subset, a data set")
    fingerprint: str | None = Field(None, description="of the source's files, where it is a path")
    sha256: str | None = Field(None, description="of what is sent")
    key: str = Field(default_factory=lambda: token_hex(24), description="idempotency key of the call that starts it")
    upload: str | None = Field(None, description="what lies in the object store already, complete")
    left: list[Left] = []
    restoration: str | None = None


class Job:
    """A folder beside OUT that one process at a time works in."""

    def __init__(self, folder: Path, state: State) -> None:
        self.folder = folder
        self.state = state

    @property
    def results(self) -> Path:
        """Where result shards lie."""
        return self.folder / RESULTS_NAME

    def save(self) -> None:
        """Put the state on the disk."""
        write_atomic(self.folder / STATE_NAME, self.state.model_dump_json(indent=1).encode(), 0o600)

    def begin_anew(self) -> None:
        """Forget the restoration that was started: the next one has a key of its own. What was packed stays."""
        kept = self.state.model_dump(exclude={"key", "upload", "restoration"})
        self.state = State.model_validate(kept)
        self.save()

    def remove(self) -> None:
        """Everything is where it belongs."""
        shutil.rmtree(self.folder, ignore_errors=True)


def job_folder(out: Path) -> Path:
    """Where is remembered what will be written to OUT."""
    out = Path(os.path.abspath(out))  # noqa: PTH100 - resolve() would follow a link
    return out.with_name(out.name + ENDING)


@contextmanager
def opened(out: Path, asked: State) -> Iterator[Job]:
    """The job of OUT: the one that was begun, if it is the same, else a new one.

    Raises:
        UsageError: another one was begun there.
        WorkspaceBusy: another process works on it.
    """
    folder = job_folder(out)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WorkspaceBusy(f"Another process restores to {out}.", "Wait until it is done.") from None
        except OSError:  # some network file systems lock no folders
            pass
        before = _read(folder)
        if before is not None and _identity(before) != _identity(asked):
            raise UsageError(
                f"{folder} holds the beginning of another restoration: {before.source} from {before.gateway}.",
                "Go on with that one, or remove the folder, or name another OUT.",
            )
        job = Job(folder, before or asked)
        if before is None:
            job.save()
        job.results.mkdir(exist_ok=True, mode=0o700)
        yield job
    finally:
        os.close(lock)


def _identity(state: State) -> tuple[str, str, str]:
    return state.gateway, state.source, state.wanted


def _read(folder: Path) -> State | None:
    try:
        return State.model_validate_json((folder / STATE_NAME).read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError:
        raise UsageError(
            f"{folder / STATE_NAME} can not be read.", "Remove the folder: the restoration begins anew."
        ) from None
