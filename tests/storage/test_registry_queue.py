"""The queue of requests, fair and watched, and what is over; on SQLite and PostgreSQL."""

import json
from datetime import datetime, timedelta

import pytest
from sqlalchemy import update

from storage.audit import AuditLog
from storage.database import utc_now
from storage.errors import NotFound, Removed, RequestCancelled, TooManyRequests, UsageError, WorkspaceBusy
from storage.registry import Registry, Request, new_request_id


def age(registry: Registry, request_id: str, **columns: datetime) -> None:
    with registry.write() as session:
        session.execute(update(Request).where(Request.id == request_id).values(columns))


def test_users_take_turns_and_none_fills_the_queue(registry: Registry, ann: int) -> None:
    registry.add_user("bob")
    registry.add_user("eve")
    bob, eve = (registry.get_user(name).id for name in ("bob", "eve"))
    many = [registry.create_request(ann, "upload", None, f"{n}") for n in range(8)]
    few = [registry.create_request(bob, "upload", None, f"{n}") for n in range(2)]
    one = registry.create_request(eve, "upload", None, "x")
    found = [request.id for request in registry.pending_requests(3, 100)]
    assert found == [many[0], few[0], one, many[1], few[1], many[2]]
    assert [request.id for request in registry.pending_requests(3, 4)] == found[:4]
    for request_id in many[:2]:  # what is running takes its user's places
        registry.claim_request(request_id)
    assert [r.id for r in registry.pending_requests(3, 100)] == [few[0], one, few[1], many[2]]
    registry.claim_request(many[7])
    assert many[2] not in [r.id for r in registry.pending_requests(3, 100)]


def test_a_worker_that_lives_and_does_not_get_on_is_found(registry: Registry, ann: int) -> None:
    stuck, going, fresh = (registry.create_request(ann, "upload", None, f"{n}") for n in range(3))
    for request_id in (stuck, going, fresh):
        registry.claim_request(request_id)
    long_ago = utc_now() - timedelta(hours=2)
    for request_id in (stuck, going):
        age(registry, request_id, started=long_ago, progressed=long_ago)
        registry.heartbeat(request_id, 1)
    registry.set_request_state(going, "running", restored=1, attempt=1)
    assert registry.stale_requests(60) == []
    assert [request.id for request in registry.stale_requests(60, 3600)] == [stuck]
    registry.claim_request(stuck, force=True)
    assert registry.stale_requests(60, 3600) == [], "the next attempt has all the time anew"


def test_a_failed_request_is_tried_again(registry: Registry, ann: int, database: str) -> None:
    request_id = registry.create_request(ann, "upload", "photos", "x")
    registry.retry_request(request_id)
    late = registry.claim_request(request_id).attempt
    registry.set_request_state(request_id, "failed", message="ServiceError: x", result="requests/x", attempt=late)
    registry.retry_request(request_id, actor="ann")
    request = registry.get_request(request_id)
    assert (request.state, request.message, request.finished, request.result) == ("pending", None, None, None)
    registry.retry_request(request_id)
    attempt = registry.claim_request(request_id).attempt
    assert attempt > late + 1, "its flow runs have other keys than those of the attempt that failed"
    with pytest.raises(WorkspaceBusy):
        registry.set_request_state(request_id, "done", attempt=late)
    registry.set_request_state(request_id, "done", attempt=attempt)
    with pytest.raises(UsageError, match="done already"):
        registry.retry_request(request_id)
    cancelled = registry.create_request(ann, "upload", None, "x")
    registry.cancel_request(cancelled)
    with pytest.raises(RequestCancelled):
        registry.retry_request(cancelled)
    with pytest.raises(NotFound):
        registry.retry_request("f" * 32)
    with AuditLog(database) as log:
        entries = [(e.actor, e.dataset, e.subject) for e in log.entries(action="request.retry")]
    assert entries == [("ann", "photos", "ann")]


def test_what_something_is_in_the_way_of_waits_until_it_is_due(registry: Registry, ann: int, database: str) -> None:
    waits, other = (registry.create_request(ann, "upload", "photos", f"{n}") for n in range(2))
    attempt = registry.claim_request(waits).attempt
    registry.postpone_request(waits, 3600, message="ObjectStoreError: x", attempt=attempt, actor="restore")
    request = registry.get_request(waits)
    assert (request.state, request.message, request.finished) == ("pending", "ObjectStoreError: x", None)
    assert [r.id for r in registry.pending_requests(1, 10)] == [other], "it takes nobody's place"
    assert registry.stale_requests(-60) == []
    age(registry, waits, due=utc_now() - timedelta(seconds=1))
    assert [r.id for r in registry.pending_requests(2, 10)] == [waits, other]
    registry.postpone_request(waits, 3600, message="x", attempt=registry.claim_request(waits).attempt)
    registry.retry_request(waits)
    assert [r.id for r in registry.pending_requests(2, 10)] == [waits, other], "its user does not wait"
    late = registry.claim_request(waits)
    assert (late.message, late.due, late.takeovers) == (None, None, 3)
    with pytest.raises(WorkspaceBusy):
        registry.postpone_request(waits, 1, message="x", attempt=attempt)
    with pytest.raises(UsageError, match="can not become pending"):
        registry.postpone_request(other, 1, message="x", attempt=0)
    registry.cancel_request(waits)
    with pytest.raises(RequestCancelled):
        registry.postpone_request(waits, 1, message="x", attempt=late.attempt)
    with pytest.raises(NotFound):
        registry.postpone_request("f" * 32, 1, message="x", attempt=1)
    with AuditLog(database) as log:
        entries = [(e.actor, json.loads(e.details)) for e in log.entries(action="request.postpone")]
    assert entries[0] == ("restore", {"attempt": 1, "message": "ObjectStoreError: x"}) and len(entries) == 2


def test_takeovers_are_counted_since_its_user_last_had_it_tried_again(registry: Registry, ann: int) -> None:
    request_id = registry.create_request(ann, "upload", None, "x")

    def counts() -> tuple[int, int]:
        request = registry.get_request(request_id)
        return request.attempt, request.takeovers

    for _ in range(2):
        registry.claim_request(request_id, force=True)
    assert counts() == (2, 2)
    for attempt in (3, 4):
        registry.set_request_state(request_id, "failed")
        registry.retry_request(request_id)
        assert counts() == (attempt, 0)
    registry.claim_request(request_id)
    assert counts() == (5, 1)
    registry.set_request_state(request_id, "failed")
    assert registry.claim_request(request_id, force=True).takeovers == 1, "`dmcp restore` of one that failed"


def test_only_what_ended_is_removed_and_what_was_removed_is_never_taken_up(
    registry: Registry, ann: int, database: str
) -> None:
    pending, running, failed, done, local = ids = [
        registry.create_request(ann, "variant" if n == 4 else "upload", None, f"{n}") for n in range(5)
    ]
    for request_id in ids[1:]:
        registry.claim_request(request_id)
    registry.set_request_state(failed, "failed")
    registry.set_request_state(done, "done")
    registry.set_request_state(local, "done")
    later = utc_now() + timedelta(days=1)
    assert registry.results_over(utc_now() - timedelta(days=1)) == []
    assert {request.id for request in registry.results_over(later)} == {failed, done, local}
    assert {request.id for request in registry.results_over(later, in_place="ann")} == {failed, done}
    assert [request.id for request in registry.inputs_over(later)] == [done], "a variant lies where it always did"
    assert [registry.begin_removal(i, later, actor="sweeper") for i in (pending, running, failed, done)] == [
        False,
        False,
        True,
        True,
    ]
    assert not registry.begin_removal(done, later), "it is on record once"
    assert {request.id for request in registry.half_removed()} == {failed, done}
    registry.end_removal(done)
    assert [request.id for request in registry.half_removed()] == [failed], "the next sweeper finishes it"
    with pytest.raises(Removed, match="Make the request again"):
        registry.claim_request(failed, force=True)
    with pytest.raises(Removed, match="Hand the images in again"):
        registry.retry_request(failed)
    with AuditLog(database) as log:
        entries = [(e.actor, e.request_id, json.loads(e.details)) for e in log.entries(action="request.remove")]
    assert entries == [("sweeper", failed, {"what": "all"}), ("sweeper", done, {"what": "all"})]


def test_a_request_that_is_tried_again_meanwhile_is_not_removed(registry: Registry, ann: int) -> None:
    request_id = registry.create_request(ann, "upload", None, "x")
    registry.set_request_state(request_id, "failed")
    later = utc_now() + timedelta(days=1)
    (found,) = registry.results_over(later)
    registry.retry_request(request_id)
    assert not registry.begin_removal(found.id, later)
    assert registry.claim_request(request_id).state == "running"


def test_addresses_for_uploads_are_counted(registry: Registry, ann: int, database: str) -> None:
    end = utc_now() + timedelta(minutes=15)
    bounds = {"most": 2, "most_bytes": 100}
    first, second, third = (new_request_id() for _ in range(3))
    registry.create_upload(ann, first, 60, end, **bounds)  # type: ignore[arg-type]
    with pytest.raises(TooManyRequests, match="60 bytes"):
        registry.create_upload(ann, second, 41, end, **bounds)  # type: ignore[arg-type]
    registry.create_upload(ann, second, 40, end, **bounds)  # type: ignore[arg-type]
    registry.use_upload(first)
    with pytest.raises(TooManyRequests):
        registry.create_upload(ann, third, 1, end, **bounds)  # type: ignore[arg-type]
    registry.add_user("bob")
    bob = registry.get_user("bob").id
    registry.create_upload(bob, third, 1, utc_now() - timedelta(seconds=1), **bounds)  # type: ignore[arg-type]
    with pytest.raises(NotFound):
        registry.get_upload(ann, third)
    assert registry.get_upload(ann, second).bytes == 40
    assert registry.uploads_over(None) == []
    assert [u.id for u in registry.uploads_over(utc_now() + timedelta(days=1))] == [third]
    registry.use_upload(third)
    assert [u.id for u in registry.uploads_over(None)] == [third]
    with AuditLog(database) as log:
        assert [json.loads(e.details)["upload"] for e in log.entries(action="upload.create")] == [first, second, third]


def test_a_session_ends_when_its_holder_says_so_or_its_time_is_over(registry: Registry) -> None:
    registry.add_user("ann")
    (token,) = registry.list_tokens("ann")
    secrets = [registry.begin_session(token.id, seconds) for seconds in (60, 60, 0)]
    kept, ended, over = secrets
    registry.end_session(ended)
    registry.end_session(ended)
    found = [registry.session_token(secret) for secret in (kept, ended, over, "x")]
    assert [one and one.user.name for one in found] == ["ann", None, None, None]
