from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from storage.guarantee import Guarantee
from storage.registry import Registry
from storage.server import ServerAddress, running_server
from tests.ceph import ceph_server
from tests.postgres import postgres
from tests.services import object_home, store

__all__ = ["ceph_server", "object_home", "postgres", "store"]

WITH_BOTH = ("test_audit_checkpoints", "test_objects", "test_publication", "test_pull")
WITH_CEPH = ("test_race",)
GUARANTEES = {"rclone": Guarantee.LAST_WRITER_WINS, "ceph": Guarantee.ATOMIC}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """With which servers these files' tests run. Those that look into the embedded one's home run with it alone."""
    file = metafunc.module.__name__.rpartition(".")[2]
    if file in WITH_BOTH + WITH_CEPH and "object_server" in metafunc.fixturenames:
        servers = [] if file in WITH_CEPH else ["rclone"]
        servers += [] if "object_home" in metafunc.fixturenames else ["ceph"]
        metafunc.parametrize("object_server", servers, indirect=True, scope="session")


@pytest.fixture(scope="session")
def rclone_server(object_home: Path) -> Iterator[ServerAddress]:
    with running_server(object_home) as address:
        yield address


@pytest.fixture(scope="session")
def object_server(request: pytest.FixtureRequest) -> ServerAddress:
    """A real object store on loopback, for the whole session: the embedded one, or Ceph's gateway."""
    address: ServerAddress = request.getfixturevalue(f"{getattr(request, 'param', 'rclone')}_server")
    return address


@pytest.fixture
def promised(request: pytest.FixtureRequest) -> Guarantee:
    """What the test's object server is known to guarantee."""
    return GUARANTEES[request.node.callspec.params["object_server"]]


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty database, of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'registry.db'}"
    new: Callable[[], str] = request.getfixturevalue("postgres")
    return new()


@pytest.fixture
def registry(database: str) -> Iterator[Registry]:
    with Registry(database) as registry:
        yield registry


@pytest.fixture
def ann(registry: Registry) -> int:
    """The id of the user ann."""
    registry.add_user("ann")
    return registry.get_user("ann").id
