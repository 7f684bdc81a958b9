"""The registry's restore requests: one worker gets each, and a late one changes nothing; on SQLite and PostgreSQL."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import inspect, text

from storage.audit import AuditLog
from storage.errors import NotFound, RequestCancelled, UsageError, WorkspaceBusy
from storage.registry import Registry, Request


def subset_of(registry: Registry, request_id: str) -> list[str] | None:
    """It is loaded within a session only."""
    with registry.read() as session:
        return session.get_one(Request, request_id).subset


def test_a_request_goes_from_pending_to_done(registry: Registry, ann: int) -> None:
    request_id = registry.create_request(ann, "published", "photos", "photos@1", ["a", "b"], images=2)
    request = registry.get_request(request_id)
    assert (request.state, request.images, request.user.name) == ("pending", 2, "ann")
    assert subset_of(registry, request_id) == ["a", "b"]
    with pytest.raises(UsageError, match="Claim it first"):
        registry.set_request_state(request_id, "done")
    assert registry.claim_request(request_id).state == "running"
    registry.set_request_state(request_id, "running", restored=1)
    registry.set_request_state(request_id, "done", restored=1, refused=1, message="one refused", result="requests/x")
    request = registry.get_request(request_id)
    assert (request.state, request.restored, request.refused, request.result) == ("done", 1, 1, "requests/x")
    assert request.created <= request.started <= request.finished  # type: ignore[operator]
    for after in ("running", "failed"):
        with pytest.raises(UsageError, match=f"is done: it can not become {after}"):
            registry.set_request_state(request_id, after)  # type: ignore[arg-type]


def test_what_can_not_be_requested(registry: Registry, ann: int) -> None:
    request_id = registry.create_request(ann, "upload", None, "x")
    assert subset_of(registry, request_id) is None
    with pytest.raises(UsageError, match="exists"):
        registry.create_request(ann, "upload", None, "x", request_id=request_id)
    with pytest.raises(UsageError, match="no user"):
        registry.create_request(ann + 1, "upload", None, "x")
    with pytest.raises(UsageError, match="no kind"):
        registry.create_request(ann, "gift", None, "x")  # type: ignore[arg-type]
    for use in (registry.get_request, registry.claim_request, lambda i: registry.set_request_state(i, "done")):
        with pytest.raises(NotFound, match="No request"):
            use("f" * 32)


def test_claims_are_taken_once_and_again_only_by_force(registry: Registry, ann: int) -> None:
    request_id = registry.create_request(ann, "upload", None, "x")
    registry.claim_request(request_id)
    with pytest.raises(WorkspaceBusy, match="--force"):
        registry.claim_request(request_id)
    assert registry.claim_request(request_id, force=True).state == "running"
    registry.set_request_state(request_id, "failed", message="the disk was full")
    with pytest.raises(UsageError, match="failed already"):
        registry.claim_request(request_id)
    again = registry.claim_request(request_id, force=True)
    assert again.message is None and again.finished is None
    registry.set_request_state(request_id, "done")
    for force in (False, True):
        with pytest.raises(UsageError, match=r"done already.*dmcp restore"):
            registry.claim_request(request_id, force=force)


def test_of_many_workers_one_gets_the_request(registry: Registry, ann: int) -> None:
    request_id = registry.create_request(ann, "upload", None, "x")

    def claim(_: int) -> bool:
        try:
            registry.claim_request(request_id)
        except WorkspaceBusy:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(claim, range(24))) == 1


def test_requests_are_listed_newest_first(registry: Registry, ann: int) -> None:
    registry.add_user("bob")
    ids = [registry.create_request(ann, "upload", None, f"{n}") for n in range(3)]
    registry.create_request(registry.get_user("bob").id, "upload", None, "other")
    registry.claim_request(ids[1])
    assert [r.id for r in registry.list_requests("ann")] == ids[::-1]
    assert [r.id for r in registry.list_requests(state="running")] == [ids[1]]
    assert len(registry.list_requests(limit=2)) == 2
    assert [r.id for r in registry.list_requests("ann", limit=2, oldest=True)] == ids[:2]


def test_a_long_subset_is_kept_once_and_not_loaded_with_every_row(registry: Registry, ann: int) -> None:
    keys = [f"{n:08d}" for n in range(1000)]
    request_id = registry.create_request(ann, "published", "photos", "photos@1", [*keys[::-1], *keys, *keys])
    assert subset_of(registry, request_id) == keys[::-1]
    registry.claim_request(request_id)
    rows = [registry.get_request(request_id), *registry.list_requests("ann"), *registry.stale_requests(-60)]
    registry.set_request_state(request_id, "failed")
    registry.retry_request(request_id)
    rows += [*registry.pending_requests(10, 10), registry.claim_request(request_id)]
    assert [inspect(row).unloaded & {"subset"} for row in rows] == [{"subset"}] * 5


def test_two_claimants_one_attempt(registry: Registry, ann: int) -> None:
    for force in (False, True):
        request_id = registry.create_request(ann, "upload", None, "x")
        together = threading.Barrier(2)

        def claim(_: int, request_id: str = request_id, together: threading.Barrier = together) -> int | None:
            together.wait()
            try:
                return registry.claim_request(request_id).attempt
            except WorkspaceBusy:
                return None

        with ThreadPoolExecutor(2) as pool:
            assert sorted(pool.map(claim, range(2)), key=str) == [1, None]
        if force:
            assert registry.claim_request(request_id, force=True).attempt == 2


def test_a_worker_that_lost_its_request_changes_nothing(registry: Registry, ann: int) -> None:
    request_id = registry.create_request(ann, "upload", None, "x")
    late = registry.claim_request(request_id).attempt
    present = registry.claim_request(request_id, force=True).attempt
    assert (late, present) == (1, 2)
    registry.set_request_state(request_id, "running", restored=5, attempt=present)
    for use in (
        lambda: registry.heartbeat(request_id, late),
        lambda: registry.set_request_state(request_id, "running", restored=1, attempt=late),
        lambda: registry.set_request_state(request_id, "done", attempt=late),
        lambda: registry.set_request_state(request_id, "failed", message="late", attempt=late),
    ):
        with pytest.raises(WorkspaceBusy, match="taken by another worker"):
            use()
    request = registry.get_request(request_id)
    assert (request.state, request.restored, request.message) == ("running", 5, None)
    registry.heartbeat(request_id, present)
    registry.set_request_state(request_id, "done", attempt=present)
    with pytest.raises(UsageError, match="is done"):
        registry.heartbeat(request_id, present)


def test_a_cancelled_request_tells_its_worker(registry: Registry, ann: int) -> None:
    running, pending, done = (registry.create_request(ann, "upload", None, "x") for _ in range(3))
    attempt = registry.claim_request(running).attempt
    for request_id in (running, pending):
        registry.cancel_request(request_id, actor="ann")
        registry.cancel_request(request_id, actor="ann")
        assert registry.get_request(request_id).state == "cancelled"
        for force in (False, True):
            with pytest.raises(RequestCancelled):
                registry.claim_request(request_id, force)
    for use in (
        lambda: registry.heartbeat(running, attempt),
        lambda: registry.set_request_state(running, "done", attempt=attempt),
        lambda: registry.set_request_state(running, "failed", attempt=attempt),
    ):
        with pytest.raises(RequestCancelled, match="was cancelled"):
            use()
    registry.claim_request(done)
    registry.set_request_state(done, "done")
    with pytest.raises(UsageError, match="is done already: it can not be cancelled"):
        registry.cancel_request(done)
    with pytest.raises(NotFound):
        registry.cancel_request("f" * 32)


def test_a_silent_worker_is_found(registry: Registry, ann: int) -> None:
    quiet, lively, _ = (registry.create_request(ann, "upload", None, f"{n}") for n in range(3))
    for request_id in (quiet, lively):
        registry.claim_request(request_id)
    assert registry.stale_requests(60) == []
    with registry.write() as session:
        session.execute(text("UPDATE requests SET heartbeat = created"))
    registry.heartbeat(lively, 1)
    long_ago = (registry.get_request(lively).heartbeat or 0) - registry.get_request(quiet).created  # type: ignore[operator]
    assert long_ago > timedelta(0)
    assert [request.id for request in registry.stale_requests(long_ago.total_seconds() / 2)] == [quiet]


def test_requests_are_on_record(registry: Registry, ann: int, database: str) -> None:
    first, second = (registry.create_request(ann, "upload", "photos", "x") for _ in range(2))
    registry.claim_request(first, actor="worker")
    registry.set_request_state(first, "running", restored=1)
    registry.set_request_state(first, "done", restored=2, actor="worker")
    registry.cancel_request(second, actor="ann")
    with AuditLog(database) as log:
        entries = [(entry.actor, entry.action, entry.dataset) for entry in log.entries(request_id=first)]
        others = [entry.action for entry in log.entries(request_id=second)]
    assert entries == [
        ("ann", "request.create", "photos"),
        ("worker", "request.claim", "photos"),
        ("worker", "request.done", "photos"),
    ]
    assert others == ["request.create", "request.cancel"]
