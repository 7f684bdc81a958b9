"""A small world for the flows: the project's parameters made tiny, a HOME and a data folder of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from storage.settings import settings
from tasks.params import deep_merge

PROJECT = Path(__file__).resolve().parents[2]
SHARDS, SHARD_SIZE = 3, 32

TINY: dict[str, Any] = {
    "download": {"shard_size": SHARD_SIZE, "train_limit": SHARDS * SHARD_SIZE, "test_limit": 32},
    "surrogate": {"recipe": "paper", "epochs": 1, "batch_size": 32},
    "protect": {"exact": {"perturbation": {"steps": 2, "library": 4, "batch_size": 32}}},
    "train": {"recipe": "paper", "epochs": 1, "batch_size": 32},
    "evaluate": {"quality_images": 16, "grid_images": 2},
}


def write_tiny_params(folder: Path, **sections: Any) -> None:
    """params.yaml as the project has it, with tiny values for `sample`; `sections` are laid on top of those."""
    raw = yaml.safe_load((PROJECT / "params.yaml").read_text())
    raw["datasets"]["sample"] = deep_merge(raw["datasets"]["sample"], deep_merge({"seeds": [0], **TINY}, sections))
    (folder / "params.yaml").write_text(yaml.safe_dump(raw))


@contextmanager
def entered(folder: Path) -> Iterator[Path]:
    """The folder as working directory, with HOME and data below it, for the length of the block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("DMCP_HOME", str(folder / ".dmcp"))
        patch.setenv("DMCP_DATA", "data")
        patch.setenv("DMCP_WORKERS", "2")
        settings.cache_clear()
        try:
            yield folder
        finally:
            settings.cache_clear()
