"""One Prefect server and one small, built world for all tests of the flows; an empty home for each test that asks."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.server import stop
from storage.settings import settings
from tests.flows.world import entered, write_tiny_params


@pytest.fixture(scope="session")
def prefect_api() -> Iterator[str]:
    """A real Prefect server with a database of its own; flows of this process use it. Its address is for others."""
    from prefect.settings import PREFECT_API_URL
    from prefect.testing.utilities import prefect_test_harness

    import flows.engine  # noqa: F401 - Prefect is imported with our environment, here as everywhere

    with prefect_test_harness(server_startup_timeout=120):
        yield PREFECT_API_URL.value()


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, prefect_api: str) -> Path:
    """A folder with everything up to `recovered`, made by the stages' own functions. Not to be changed."""
    from flows.download import download
    from flows.protect import protect
    from flows.restore import restore
    from flows.surrogate import surrogate

    with entered(tmp_path_factory.mktemp("world")) as folder:
        write_tiny_params(folder)
        for stage in (download, surrogate, protect, restore):
            stage("sample")
    return folder


@pytest.fixture
def world(built: Path) -> Iterator[Path]:
    """`built` as the working directory."""
    with entered(built):
        yield built


@pytest.fixture
def object_store(world: Path) -> Iterator[None]:
    """The embedded object store of the world runs."""
    from flows.services import object_store

    with object_store():
        yield


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty home of the test's own, for commands; an object server that they start there is stopped."""
    monkeypatch.setenv("DMCP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DMCP_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("DMCP_TOKEN", raising=False)
    settings.cache_clear()
    yield tmp_path / "home"
    settings.cache_clear()
    stop(tmp_path / "home")
