"""The clock jumps an hour ahead or back: what ends early, what ends late, and what never may go wrong.

Everything in the registry and the audit log takes the time from `storage.database.utc_now`; requests to an object store
are signed with boto's clock. Both are set here as one.
"""

import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path

import botocore.auth
import pytest

from storage import audit_checkpoints, database, object_errors
from storage.audit import open_audit_log
from storage.errors import BadToken, GrantExpired, GrantNotStarted, ObjectStoreError, WorkspaceBusy
from storage.objects import ObjectStore
from storage.publication import publish, pull
from storage.registry import Registry
from storage.server import ServerAddress
from storage.settings import Settings
from tests.services import make_variant

HOUR = timedelta(hours=1)
real_now = botocore.auth.get_current_datetime
Jump = Callable[..., None]


@pytest.fixture
def jump(monkeypatch: pytest.MonkeyPatch) -> Jump:
    """Sets the clock of this process so much ahead of what it is; `servers`: also those of the object stores."""

    def set_to(ahead: timedelta, servers: bool = False) -> None:
        class Shifted(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
                return datetime.now(tz) + ahead

        for module in (database, object_errors):
            monkeypatch.setattr(module, "datetime", Shifted)
        signed = timedelta(0) if servers else ahead
        monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda *_, **__: real_now() + signed)

    return set_to


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Registry]:
    with Registry(f"sqlite:///{tmp_path / 'registry.db'}") as registry:
        yield registry


def test_grants_and_tokens_end_by_the_clock_and_are_there_again(book: Registry, jump: Jump) -> None:
    soon = datetime.now(UTC) + HOUR / 2
    token = book.add_user("ann")
    ann = book.get_user("ann").id
    short = book.add_token("ann", "short", soon)
    grant = book.grant("ann", "pets", soon)
    jump(HOUR)
    with pytest.raises(GrantExpired):
        book.authorise(ann, "pets")
    assert book.authenticate(token).name == "ann"
    with pytest.raises(BadToken):
        book.authenticate(short)
    jump(-HOUR)
    with pytest.raises(GrantNotStarted):  # rather late than by mistake; the message names the time
        book.authorise(ann, "pets")
    jump(timedelta(0))
    assert book.authorise(ann, "pets").id == grant.id
    assert book.authenticate(short).name == "ann"


def test_a_revoked_grant_stays_revoked(book: Registry, jump: Jump) -> None:
    book.add_user("ann")
    ann = book.get_user("ann").id
    book.grant("ann", "pets")
    book.revoke("ann", "pets")
    for ahead in (-HOUR, HOUR):
        jump(ahead)
        assert not book.datasets_granted(ann)


def test_a_request_that_is_taken_over_too_early_is_served_once(book: Registry, jump: Jump) -> None:
    book.add_user("ann")
    request_id = book.create_request(book.get_user("ann").id, "upload", None, "x")
    first = book.claim_request(request_id).attempt
    book.heartbeat(request_id, first)
    jump(HOUR)
    assert [request.id for request in book.stale_requests(60)] == [request_id]
    book.heartbeat(request_id, first)
    assert not book.stale_requests(60), "the next sign of life, seconds later, puts it right"
    second = book.claim_request(request_id, force=True).attempt  # by one that looked in between
    with pytest.raises(WorkspaceBusy):
        book.heartbeat(request_id, first)
    jump(-HOUR)
    assert not book.stale_requests(60), "a worker that dies now is found when the clock has caught up"
    book.set_request_state(request_id, "done", attempt=second)
    with pytest.raises(WorkspaceBusy):
        book.set_request_state(request_id, "done", attempt=first)


def test_the_audit_log_keeps_its_order_and_is_anchored(tmp_path: Path, store: ObjectStore, jump: Jump) -> None:
    with open_audit_log(Settings(home=tmp_path / "home")) as log:
        for ahead in (timedelta(0), HOUR, -HOUR):
            jump(ahead)
            log.record("ann", "access.ask", dataset="pets", subject=str(ahead))
        entries = list(log.entries())
        assert sorted(entry.seq for entry in entries) == [1, 2, 3]
        assert [e.subject for e in sorted(entries, key=lambda e: e.seq)] == ["0:00:00", "1:00:00", "-1 day, 23:00:00"]
        assert log.verify().fault is None
        jump(timedelta(0))
        log.checkpoint(store)
        jump(-HOUR, servers=True)
        log.record("ann", "access.ask", dataset="pets")
        assert audit_checkpoints.checkpoint_due(log, store, log.home) is not None, "a clock put back delays none"
        assert log.verify(log.anchors(store)).ok


@pytest.mark.parametrize(("ahead", "said"), [(HOUR, "60 minutes ahead of"), (-HOUR, "60 minutes behind")])
def test_an_object_store_that_refuses_this_clock(
    object_server: ServerAddress, store: ObjectStore, tmp_path: Path, jump: Jump, ahead: timedelta, said: str
) -> None:
    make_variant(tmp_path / "protected")
    publish(tmp_path / "protected", store, "tiny")
    jump(ahead)
    late = object_server.store(store.bucket)
    for act in (
        lambda: publish(tmp_path / "protected", late, "tiny"),
        lambda: pull(late, "tiny", tmp_path / "out"),
        lambda: late.head("x"),
    ):
        with pytest.raises(ObjectStoreError, match=said) as caught:
            act()
        assert "Set this machine's clock right" in caught.value.cure
    assert not (tmp_path / "out").exists()
    jump(timedelta(0))
    pull(object_server.store(store.bucket), "tiny", tmp_path / "out")


def test_addresses_that_are_signed_by_a_wrong_clock(store: ObjectStore, jump: Jump) -> None:
    store.put_bytes("a", b"content")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    jump(-HOUR)
    with pytest.raises(urllib.error.HTTPError):
        opener.open(store.presigned_get("a", 3600))
    jump(HOUR)
    assert opener.open(store.presigned_get("a", 3600)).read() == b"content"
