"""Fixtures and settings that all tests share."""

import atexit
import os
import random
import shutil
import tempfile
from pathlib import Path

# Whatever a test forgets to place goes to a folder of its own, never to the developer's .dmcp; and the developer's
# settings (but for the mirror of real data) change no test.
for _name in [name for name in os.environ if name.startswith(("DMCP_", "PREFECT_")) and name != "DMCP_MIRROR"]:
    del os.environ[_name]
os.environ["DMCP_HOME"] = tempfile.mkdtemp(prefix="dmcp-tests-")
atexit.register(shutil.rmtree, os.environ["DMCP_HOME"], ignore_errors=True)

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

from tasks.download import download_dataset  # noqa: E402
from tests.scheduling import ByUnit, turn_of  # noqa: E402

settings.register_profile(
    "ci", deadline=None, max_examples=100, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("long", parent=settings.get_profile("ci"), max_examples=10_000, derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """What a test draws without a generator of its own is the same in every run, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ByUnit:
    return ByUnit(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: turn_of(item.nodeid))


@pytest.fixture(scope="session")
def mirror() -> Path:
    """Real data sets: the folder DMCP_MIRROR names, else a folder `shared/data` beside the checkout; else skipped."""
    named = os.environ.get("DMCP_MIRROR")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs real data: set DMCP_MIRROR to a folder that holds CIFAR-10 and TinyImageNet")
    return folder


@pytest.fixture(scope="session")
def small_variant(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real variant, to read from: 24 training images of `sample`, three a class, in three shards."""
    folder = tmp_path_factory.mktemp("small")
    download_dataset(
        "sample", {"train_limit": 24, "test_limit": 8, "shard_size": 8}, folder / "clean", folder / "test", None
    )
    return folder / "clean"
