"""The registry on a real SQLite file: tokens, grants over time, requests that one worker gets."""

import multiprocessing
import re
import sqlite3
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from storage.errors import (
    BadToken,
    DmcpError,
    EnvironmentFault,
    GrantExpired,
    GrantRevoked,
    NoGrant,
    NotFound,
    SettingsError,
    UsageError,
    WorkspaceBusy,
)
from storage.registry import Registry, new_request_id, open_registry
from storage.settings import Settings

DAY = timedelta(days=1)


def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with Registry(f"sqlite:///{tmp_path / 'registry.db'}") as registry:
        yield registry


@pytest.fixture
def ann(registry: Registry) -> int:
    registry.add_user("ann")
    return registry.get_user("ann").id


# --- users -----------------------------------------------------------------------------------------------------------


def test_a_token_is_shown_once_and_kept_as_a_hash(registry: Registry, tmp_path: Path) -> None:
    token = registry.add_user("ann@lab.example")
    assert re.fullmatch(r"dmcp_[A-Za-z0-9_-]{43}", token)
    user = registry.authenticate(token)
    assert user.name == "ann@lab.example" and token.startswith(user.token_prefix)
    assert user.created.tzinfo is UTC and abs(now() - user.created) < timedelta(minutes=1)
    registry.close()
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert token.encode() not in stored and token[20:].encode() not in stored


def test_other_tokens_are_refused_without_being_repeated(registry: Registry) -> None:
    token = registry.add_user("ann")
    for wrong in (
        "",
        "dmcp_",
        token[:-1],
        token + "x",
        token[:-1] + ("A" if token[-1] != "A" else "B"),
        "\ud800",
        "é" * 50,
    ):
        with pytest.raises(BadToken) as error:
            registry.authenticate(wrong)
        assert len(wrong) < 10 or wrong not in str(error.value)


def test_rotating_and_disabling_withdraw_a_token(registry: Registry) -> None:
    old = registry.add_user("ann")
    new = registry.rotate_token("ann")
    with pytest.raises(BadToken):
        registry.authenticate(old)
    ann = registry.authenticate(new)
    registry.grant("ann", "photos")
    registry.set_disabled("ann", True)
    with pytest.raises(BadToken, match="withdrawn"):
        registry.authenticate(new)
    with pytest.raises(BadToken, match="withdrawn"):
        registry.check_grant(ann.id, "photos")
    registry.set_disabled("ann", False)
    assert registry.authenticate(new).id == ann.id
    assert registry.check_grant(ann.id, "photos").dataset == "photos"


def test_names(registry: Registry) -> None:
    registry.add_user("bob")
    registry.add_user("ann")
    with pytest.raises(UsageError, match="user exists: ann"):
        registry.add_user("ann")
    for name in ("", "Ann", "a b", "-a", "x" * 129, "a\n", "a'--"):
        with pytest.raises(UsageError, match="can not name a user"):
            registry.add_user(name)
    assert [user.name for user in registry.list_users()] == ["ann", "bob"]
    for use in (registry.rotate_token, registry.get_user, lambda name: registry.grant(name, "photos")):
        with pytest.raises(NotFound, match="dmcp access add-user"):
            use("carl")


# --- grants ----------------------------------------------------------------------------------------------------------


def test_a_grant_holds_for_its_data_set_until_it_ends(registry: Registry, ann: int) -> None:
    end = now() + DAY
    registry.grant("ann", "photos", end)
    assert registry.check_grant(ann, "photos").expires == end
    assert registry.check_grant(ann, "photos", end - timedelta(microseconds=1)).user.name == "ann"
    with pytest.raises(GrantExpired, match=rf"ann for photos expired on {end:%Y-%m-%d}.*dmcp access grant ann photos"):
        registry.check_grant(ann, "photos", end)
    with pytest.raises(NoGrant, match=r"ann holds no grant for faces.*dmcp access grant ann faces"):
        registry.check_grant(ann, "faces")
    with pytest.raises(NotFound):
        registry.check_grant(ann + 1, "photos")


def test_granting_again_extends_and_never_shortens(registry: Registry, ann: int) -> None:
    first = registry.grant("ann", "photos", now() + DAY)
    longer = registry.grant("ann", "photos", now() + 9 * DAY)
    assert longer.id == first.id and longer.expires and longer.expires > now() + 8 * DAY
    assert registry.grant("ann", "photos", now() + DAY).expires == longer.expires
    assert registry.grant("ann", "photos").expires is None
    assert registry.grant("ann", "photos", now() + DAY).expires is None
    assert len(registry.list_grants()) == 1


def test_revoking_ends_at_once_and_a_new_grant_starts_afresh(registry: Registry, ann: int) -> None:
    registry.grant("ann", "photos")
    registry.revoke("ann", "photos")
    with pytest.raises(GrantRevoked, match=rf"ann for photos was revoked on {now():%Y-%m-%d}"):
        registry.check_grant(ann, "photos")
    with pytest.raises(NotFound, match="could be revoked"):
        registry.revoke("ann", "photos")
    registry.grant("ann", "photos", now() + DAY)
    assert registry.check_grant(ann, "photos").expires
    assert [bool(grant.revoked) for grant in registry.list_grants("ann", "photos")] == [True, False]
    with pytest.raises(GrantExpired):
        registry.check_grant(ann, "photos", now() + 2 * DAY)


def test_times_are_utc_whatever_zone_they_came_in(registry: Registry, ann: int) -> None:
    tokyo = (now() + DAY).astimezone(timezone(timedelta(hours=9)))
    assert registry.grant("ann", "photos", tokyo).expires == tokyo
    read = registry.check_grant(ann, "photos", tokyo - timedelta(seconds=1)).expires
    assert read == tokyo and read.tzinfo is UTC
    with pytest.raises(UsageError, match="no time zone"):
        registry.grant("ann", "photos", datetime(2099, 1, 1))
    with pytest.raises(UsageError, match="in the past"):
        registry.grant("ann", "photos", now() - DAY)
    with pytest.raises(UsageError, match="can not name a data set"):
        registry.grant("ann", "../photos")


def test_data_sets_a_user_may_have(registry: Registry, ann: int) -> None:
    for dataset in ("b", "a", "gone"):
        registry.grant("ann", dataset, now() + DAY)
    registry.revoke("ann", "gone")
    assert registry.datasets_granted(ann) == ["a", "b"]
    assert registry.datasets_granted(ann, now() + 2 * DAY) == []
    assert {g.dataset for g in registry.list_grants(dataset="a")} == {"a"}


steps = st.lists(
    st.one_of(
        st.tuples(st.just("grant"), st.one_of(st.none(), st.integers(1, 20))), st.tuples(st.just("revoke"), st.none())
    ),
    max_size=6,
)


@given(steps=steps, day=st.integers(0, 25))
@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_check_follows_the_model(registry: Registry, steps: list[tuple[str, int | None]], day: int) -> None:
    """What holds is the longest grant since the last revocation, and nothing else."""
    name = f"u{new_request_id()[:12]}"
    registry.add_user(name)
    user, start = registry.get_user(name).id, now()
    ends: list[int | None] = []
    ever = False
    for step, length in steps:
        if step == "grant":
            registry.grant(name, "photos", None if length is None else start + length * DAY)
            ends, ever = [*ends, length], True
        elif ends:
            registry.revoke(name, "photos")
            ends = []
    moment = start + day * DAY
    if any(end is None or end > day for end in ends):
        best = registry.check_grant(user, "photos", moment)
        assert best.expires == (None if None in ends else start + max(end for end in ends if end) * DAY)
    else:
        expected = GrantExpired if ends else GrantRevoked if ever else NoGrant
        with pytest.raises(DmcpError) as error:
            registry.check_grant(user, "photos", moment)
        assert type(error.value) is expected


# --- requests --------------------------------------------------------------------------------------------------------


def test_a_request_goes_from_pending_to_done(registry: Registry, ann: int) -> None:
    request_id = registry.create_request(ann, "published", "photos", "photos@1", ["a", "b"], images=2)
    request = registry.get_request(request_id)
    assert (request.state, request.subset, request.images, request.user.name) == ("pending", ["a", "b"], 2, "ann")
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
    assert registry.get_request(request_id).subset is None
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


# --- the database ----------------------------------------------------------------------------------------------------


def test_sqlite_is_private_durable_and_checks_references(tmp_path: Path) -> None:
    registry = open_registry(Settings(home=tmp_path / "home"))
    registry.add_user("ann")
    for path in (tmp_path / "home").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    with registry.read() as session:
        pragmas = {
            n: session.connection().exec_driver_sql(f"PRAGMA {n}").scalar()
            for n in ("journal_mode", "foreign_keys", "busy_timeout")
        }
    assert pragmas == {"journal_mode": "wal", "foreign_keys": 1, "busy_timeout": 30000}
    assert [user.name for user in open_registry(Settings(home=tmp_path / "home")).list_users()] == ["ann"]


def open_and_add(url: str, name: str, together: Barrier) -> None:
    together.wait()
    Registry(url).add_user(name)


def test_processes_create_one_registry_together(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'registry.db'}"
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang or fail
    together = context.Barrier(4)
    workers = [context.Process(target=open_and_add, args=(url, f"u{n}", together)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert [user.name for user in Registry(url).list_users()] == ["u0", "u1", "u2", "u3"]


def test_threads_write_without_losing_anything(registry: Registry, ann: int) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: registry.grant("ann", f"set-{n % 5}", now() + (n + 1) * DAY), range(40)))
    grants = registry.list_grants("ann")
    assert len(grants) == 5, "two grants in force for one data set"
    assert all(grant.expires and grant.expires > now() + 35 * DAY for grant in grants)


def test_addresses_that_can_not_be_used(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="DMCP_REGISTRY_URL"):
        Registry("nonsense")
    with pytest.raises(SettingsError) as error:
        Registry("nosuchdatabase://ann:hunter2@host/db")
    assert "hunter2" not in str(error.value)
    (tmp_path / "file").write_text("not a database, and long enough to be told from an empty one" * 20)
    with pytest.raises(EnvironmentFault, match="not a database"):
        Registry(f"sqlite:///{tmp_path / 'file'}")
    with pytest.raises(EnvironmentFault, match="can not be written"):
        Registry(f"sqlite:///{tmp_path / 'file' / 'registry.db'}")


def test_a_later_layout_is_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'registry.db'}"
    Registry(url).close()
    with sqlite3.connect(tmp_path / "registry.db") as connection:
        connection.execute("UPDATE registry_schema SET version = 2")
    with pytest.raises(EnvironmentFault, match="layout 2"):
        Registry(url)
