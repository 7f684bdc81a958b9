"""Variants to train on: real images of `sample`, few enough for seconds."""

from pathlib import Path
from typing import Any

import pytest

from tasks.download import download_dataset

PARAMS: dict[str, Any] = {
    "architecture": "resnet18", "stem": "imagenet", "recipe": "modern", "epochs": 3, "lr": 0.02, "batch_size": 32,
    "image_size": None,
}  # fmt: skip


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the variants `clean` (96 images) and `test` (32); to read from."""
    folder = tmp_path_factory.mktemp("sample")
    limits = {"train_limit": 96, "test_limit": 32, "shard_size": 48}
    download_dataset("sample", limits, folder / "clean", folder / "test", None)
    return folder
