"""A few turns of `s3_faults`: every fault alone, then all of them together."""

import json
from pathlib import Path

import pytest

from storage.errors import PublicationConflict
from storage.server import ServerAddress
from tests.faults.__main__ import run_s3
from tests.faults.s3_faults import Account, publish_and_pull
from tests.faults.s3_proxy import Fault, faulty
from tests.services import make_variant


@pytest.fixture
def variant(tmp_path: Path) -> Path:
    make_variant(tmp_path / "protected")
    return tmp_path / "protected"


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("fault", Fault, ids=lambda fault: fault.name.lower())
def test_through_one_kind_of_fault(object_server: ServerAddress, variant: Path, scratch: Path, fault: Fault) -> None:
    account = Account()
    publish_and_pull(object_server, variant, scratch, 1, account, (fault,), attempts=1)
    assert account.met.keys() == {fault.name}


@pytest.mark.parametrize("attempts", [1, 3])
def test_through_all_kinds(object_server: ServerAddress, variant: Path, scratch: Path, attempts: int) -> None:
    account = Account()
    publish_and_pull(object_server, variant, scratch, 0, account, attempts=attempts)
    assert account.met.total() > 0


def test_a_long_run_is_told_as_json(tmp_path: Path) -> None:
    found = json.loads(json.dumps(run_s3(1, 0, tmp_path)))
    assert found["runs"] == 1
    assert found["met"]
    assert all(isinstance(count, int) for count in found["met"].values())


def test_the_proxy_honours_conditions(object_server: ServerAddress) -> None:
    """Else the tests above would not try what they say."""
    with faulty(object_server) as honest:
        store = honest.address.store("conditions")
        store.ensure_bucket()
        etag = store.put_bytes("a", b"1", if_none_match=True)
        with pytest.raises(PublicationConflict):
            store.put_bytes("a", b"2", if_none_match=True)
        store.put_bytes("a", b"3", if_match=etag)
        with pytest.raises(PublicationConflict):
            store.put_bytes("a", b"4", if_match=etag)
        assert store.get_bytes("a") == b"3"
