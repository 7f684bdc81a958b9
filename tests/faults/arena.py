"""A built world for the long runs outside pytest: `tests/flows/world.py` with a Prefect server and an object store."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.download import download
from flows.protect import protect
from flows.services import object_store, prefect_server
from flows.surrogate import surrogate
from tests.flows.world import entered, write_tiny_params


@contextmanager
def arena(folder: Path) -> Iterator[Path]:
    """Everything up to `protected` in a folder, which is the working directory inside the block."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with entered(folder), prefect_server(), object_store():
        write_tiny_params(folder)
        for stage in (download, surrogate, protect):
            stage("sample")
        yield folder
