"""The registry's grants: over time, in their bounds, up to their quota; on real SQLite and real PostgreSQL."""

import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import event, text

from storage.audit import AuditLog
from storage.errors import (
    BadToken,
    DmcpError,
    GrantExpired,
    GrantNotStarted,
    GrantRevoked,
    NoGrant,
    NotFound,
    OutOfScope,
    QuotaExceeded,
    RequestCancelled,
    TermsNotAccepted,
    UsageError,
)
from storage.registry import Registry, new_request_id

DAY = timedelta(days=1)
VERSION, OTHER = "0123456789abcdef", "fedcba9876543210"


def now() -> datetime:
    return datetime.now(UTC)


def new_request(registry: Registry, user_id: int) -> str:
    return registry.create_request(user_id, "upload", None, "x")


# --- over time -------------------------------------------------------------------------------------------------------


def test_a_grant_holds_for_its_data_set_until_it_ends(registry: Registry, ann: int) -> None:
    end = now() + DAY
    registry.grant("ann", "photos", end)
    assert registry.authorise(ann, "photos").expires == end
    assert registry.authorise(ann, "photos", now=end - timedelta(microseconds=1)).user.name == "ann"
    with pytest.raises(GrantExpired, match=rf"ann for photos expired on {end:%Y-%m-%d}.*dmcp access grant ann photos"):
        registry.authorise(ann, "photos", now=end)
    with pytest.raises(NoGrant, match=r"ann holds no grant for faces.*dmcp access grant ann faces"):
        registry.authorise(ann, "faces")
    with pytest.raises(NotFound):
        registry.authorise(ann + 1, "photos")


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
        registry.authorise(ann, "photos")
    with pytest.raises(NotFound, match="could be revoked"):
        registry.revoke("ann", "photos")
    registry.grant("ann", "photos", now() + DAY)
    assert registry.authorise(ann, "photos").expires
    assert [bool(grant.revoked) for grant in registry.list_grants("ann", "photos")] == [True, False]
    with pytest.raises(GrantExpired):
        registry.authorise(ann, "photos", now=now() + 2 * DAY)


def test_times_are_utc_whatever_zone_they_came_in(registry: Registry, ann: int) -> None:
    tokyo = (now() + DAY).astimezone(timezone(timedelta(hours=9)))
    assert registry.grant("ann", "photos", tokyo).expires == tokyo
    read = registry.authorise(ann, "photos", now=tokyo - timedelta(seconds=1)).expires
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
@hypothesis_settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
    moment = max(start + day * DAY, now())
    if any(end is None or end > day for end in ends):
        best = registry.authorise(user, "photos", now=moment)
        assert best.expires == (None if None in ends else start + max(end for end in ends if end) * DAY)
    else:
        expected = GrantExpired if ends else GrantRevoked if ever else NoGrant
        with pytest.raises(DmcpError) as error:
            registry.authorise(user, "photos", now=moment)
        assert type(error.value) is expected


def test_a_grant_may_begin_later(registry: Registry, ann: int) -> None:
    begin = now() + DAY
    made = registry.grant("ann", "photos", begin + DAY, starts=begin)
    with pytest.raises(GrantNotStarted, match=f"begins on {begin:%Y-%m-%d}"):
        registry.authorise(ann, "photos")
    assert registry.datasets_granted(ann) == [] and registry.datasets_granted(ann, begin) == ["photos"]
    assert registry.authorise(ann, "photos", now=begin).id == made.id
    with pytest.raises(UsageError, match="can not end"):
        registry.grant("ann", "photos", begin, starts=begin)
    assert registry.grant("ann", "photos").id != made.id, "a grant from now on is another one"
    registry.revoke("ann", "photos")
    assert all(grant.revoked for grant in registry.list_grants()), "what has not begun is revoked too"


def test_a_grant_is_renewed(registry: Registry, ann: int) -> None:
    made = registry.grant("ann", "photos", now() + DAY, quota=5)
    later = now() + 9 * DAY
    assert registry.renew_grant(made.id, later, quota=8).quota == 8
    assert registry.authorise(ann, "photos", now=now() + 8 * DAY).expires == later
    assert registry.renew_grant(made.id, now() + 2 * DAY).quota == 8
    assert registry.renew_grant(made.id, None).expires is None
    with registry.write() as session:
        session.execute(text("UPDATE grants SET expires = created"))
    with pytest.raises(GrantExpired):
        registry.authorise(ann, "photos")
    registry.renew_grant(made.id, later)
    assert registry.authorise(ann, "photos").id == made.id
    registry.revoke_grant(made.id)
    registry.revoke_grant(made.id)
    with pytest.raises(UsageError, match="was revoked"):
        registry.renew_grant(made.id, later)
    for use in (registry.revoke_grant, registry.get_grant, lambda number: registry.renew_grant(number, None)):
        with pytest.raises(NotFound, match="no grant 99"):
            use(99)


# --- bounds ----------------------------------------------------------------------------------------------------------


def test_a_grant_for_a_version_serves_requests_that_name_it(registry: Registry, ann: int) -> None:
    made = registry.grant("ann", "photos", version=VERSION)
    assert registry.authorise(ann, "photos", version=VERSION).id == made.id
    with pytest.raises(OutOfScope, match=f"version {VERSION} only; what is handed in as files can not be told"):
        registry.authorise(ann, "photos")
    with pytest.raises(OutOfScope, match=f"the request names version {OTHER}"):
        registry.authorise(ann, "photos", version=OTHER)
    every = registry.grant("ann", "photos")
    assert registry.authorise(ann, "photos").id == every.id
    assert registry.authorise(ann, "photos", version=VERSION).id == every.id, "the widest is used"


def test_bounds_are_checked_when_they_are_given(registry: Registry, ann: int) -> None:
    made = registry.grant("ann", "photos", version=VERSION, classes=["dog", "cat", "cat"], samples=["b", "a"])
    read = registry.get_grant(made.id)
    assert (read.classes, read.samples, read.version) == (["cat", "dog"], ["a", "b"], VERSION)
    assert registry.grant("ann", "photos", version=VERSION, classes=["cat", "dog"], samples=["a", "b"]).id == made.id
    assert registry.grant("ann", "photos", version=VERSION, classes=["cat"]).id != made.id
    wrong: Sequence[dict[str, object]] = (
        {"samples": ["a"]},
        {"classes": []},
        {"classes": "cat"},
        {"classes": [""]},
        {"version": ""},
        {"version": "latest"},
        {"quota": 0},
        {"quota": -1},
        {"quota": 2**31},
    )
    for bounds in wrong:
        with pytest.raises(UsageError):
            registry.grant("ann", "photos", **bounds)  # type: ignore[arg-type]


def test_terms_must_be_accepted_again_when_they_change(registry: Registry, ann: int) -> None:
    registry.add_user("olga", "owner")
    registry.register_dataset("photos", "olga")
    made = registry.grant("ann", "photos")
    assert registry.authorise(ann, "photos").id == made.id, "no terms, nothing to accept"
    registry.set_terms("photos", "Be kind.")
    with pytest.raises(TermsNotAccepted, match="has not accepted version 1"):
        registry.authorise(ann, "photos")
    registry.accept_terms(ann, "photos", 1)
    registry.accept_terms(ann, "photos", 1)
    assert registry.authorise(ann, "photos").id == made.id
    registry.set_terms("photos", "Be kind, and cite us.")
    with pytest.raises(TermsNotAccepted, match=r"version 2.*so far: version 1"):
        registry.authorise(ann, "photos")


def test_who_was_shut_out_is_told_so(registry: Registry, ann: int) -> None:
    registry.set_disabled("ann", True)
    with pytest.raises(BadToken, match="withdrawn"):
        registry.authorise(ann, "photos")


# --- quota -----------------------------------------------------------------------------------------------------------


def test_a_quota_is_used_up_once_a_shard(registry: Registry, ann: int) -> None:
    grant = registry.grant("ann", "photos", quota=10)
    request = new_request(registry, ann)
    for _ in range(3):
        registry.charge(request, 0, grant.id, 6)
    assert registry.get_grant(grant.id).used == 6 and registry.get_grant(grant.id).left == 4
    with pytest.raises(QuotaExceeded, match="allows 10 images, of which 4 are left; 5 are asked for"):
        registry.charge(request, 1, grant.id, 5)
    with pytest.raises(QuotaExceeded, match="of which 4 are left"):
        registry.authorise(ann, "photos", images=5)
    assert registry.charge_of(request, 1, "photos") is None
    registry.charge(request, 1, grant.id, 4)
    assert registry.authorise(ann, "photos").id == grant.id, "allowed still, for what was charged before"
    assert registry.charged(request) == registry.charged(request, "photos") == 10
    assert registry.charged(request, "faces") == 0
    registry.grant("ann", "photos", quota=12)
    assert registry.authorise(ann, "photos", images=2).id == grant.id
    assert registry.grant("ann", "photos").quota is None


def test_a_shard_may_hold_images_of_two_data_sets(registry: Registry, ann: int) -> None:
    photos, faces = registry.grant("ann", "photos", quota=9), registry.grant("ann", "faces")
    request = new_request(registry, ann)
    registry.charge(request, 0, photos.id, 3)
    registry.charge(request, 0, faces.id, 4)
    assert (registry.charged(request, "photos"), registry.charged(request, "faces")) == (3, 4)
    registry.revoke("ann", "photos")
    again = registry.grant("ann", "photos", quota=1)
    with pytest.raises(QuotaExceeded):
        registry.charge(request, 0, again.id, 3)
    assert [registry.get_grant(grant.id).used for grant in (photos, again)] == [3, 0], "nothing changes then"
    registry.renew_grant(again.id, None, quota=3)
    registry.charge(request, 0, again.id, 3)
    assert [registry.get_grant(grant.id).used for grant in (photos, again)] == [0, 3]


def test_a_charge_moves_to_the_grant_that_covers_the_shard_now(registry: Registry, ann: int) -> None:
    cats, dogs = (registry.grant("ann", "photos", quota=10, classes=[name]) for name in ("cat", "dog"))
    request = registry.create_request(ann, "upload", None, "files")
    for grant, images, used in ((cats, 5, (5, 0)), (dogs, 7, (0, 7)), (dogs, 8, (0, 8)), (cats, 2, (2, 0))):
        registry.charge(request, 0, grant.id, images)
        charge = registry.charge_of(request, 0, "photos")
        assert charge is not None
        assert (charge.grant_id, charge.images) == (grant.id, images)
        assert tuple(registry.get_grant(each.id).used for each in (cats, dogs)) == used
    registry.revoke_grant(dogs.id)
    with pytest.raises(GrantRevoked):
        registry.charge(request, 0, dogs.id, 2)
    assert registry.get_grant(cats.id).used == registry.charged(request) == 2


def test_a_shard_that_is_restored_again_costs_what_came_back_more(registry: Registry, ann: int) -> None:
    grant = registry.grant("ann", "photos", quota=10)
    request = registry.create_request(ann, "upload", None, "files")
    for images, used in ((4, 4), (4, 4), (3, 4), (9, 9)):
        registry.charge(request, 0, grant.id, images)
        assert registry.get_grant(grant.id).used == registry.charged(request) == used
    with pytest.raises(QuotaExceeded):
        registry.charge(request, 0, grant.id, 11)
    assert registry.get_grant(grant.id).used == registry.charged(request) == 9


def test_what_a_request_was_charged_that_is_cancelled_is_given_back(
    registry: Registry, ann: int, database: str
) -> None:
    grants = [registry.grant("ann", dataset, quota=10) for dataset in ("photos", "faces")]
    request, other = (registry.create_request(ann, "upload", None, "x") for _ in range(2))
    for identity in (request, other):
        registry.claim_request(identity)
        for shard in range(2):
            for grant in grants:
                registry.charge(identity, shard, grant.id, 2)
    registry.revoke_grant(grants[1].id)
    registry.cancel_request(request)
    registry.cancel_request(request)
    assert registry.charged(request) == 0 and registry.charged(other) == 8
    assert [registry.get_grant(grant.id).used for grant in grants] == [4, 4]
    with pytest.raises(RequestCancelled):  # a worker that has not noticed yet
        registry.charge(request, 2, grants[0].id, 1)
    registry.set_request_state(other, "done")
    with pytest.raises(UsageError, match="can not be cancelled"):
        registry.cancel_request(other)
    assert [registry.get_grant(grant.id).used for grant in grants] == [4, 4], "what can be had stays charged"
    with AuditLog(database) as log:
        assert [json.loads(entry.details) for entry in log.entries(action="request.cancel")] == [{"returned": 8}]


def test_nothing_is_charged_after_it_was_given_back(registry: Registry, ann: int) -> None:
    grant = registry.grant("ann", "photos", quota=1000)
    for _ in range(5):
        request = registry.create_request(ann, "upload", None, "x")
        registry.claim_request(request)
        together = threading.Barrier(5)

        def work(number: int, request: str = request, together: threading.Barrier = together) -> None:
            together.wait()
            if number == 0:
                registry.cancel_request(request)
                return
            with suppress(RequestCancelled):
                for step in range(5):
                    registry.charge(request, 10 * number + step, grant.id, 1)

        with ThreadPoolExecutor(5) as pool:
            list(pool.map(work, range(5)))
        assert registry.charged(request) == registry.get_grant(grant.id).used == 0


def test_what_can_not_be_charged(registry: Registry, ann: int) -> None:
    grant = registry.grant("ann", "photos", quota=10)
    request = new_request(registry, ann)
    with pytest.raises(NotFound, match="no request"):
        registry.charge("f" * 32, 0, grant.id, 1)
    with pytest.raises(NotFound, match="no grant 99"):
        registry.charge(request, 0, 99, 1)
    with pytest.raises(UsageError, match="can not be charged"):
        registry.charge(request, 0, grant.id, -1)
    registry.revoke_grant(grant.id)
    with pytest.raises(GrantRevoked):
        registry.charge(request, 0, grant.id, 1)
    assert registry.get_grant(grant.id).used == 0 and registry.charged(request) == 0


def test_eight_threads_never_overstep_a_quota(registry: Registry, ann: int) -> None:
    grant = registry.grant("ann", "photos", quota=100)
    request = new_request(registry, ann)
    together = threading.Barrier(8)

    def worker(number: int) -> int:
        together.wait()
        charged = 0
        for step in range(4):
            try:
                registry.charge(request, number * 4 + step, grant.id, 7)
                charged += 7
            except QuotaExceeded:
                pass
        return charged

    with ThreadPoolExecutor(8) as pool:
        charged = sum(pool.map(worker, range(8)))
    assert charged == registry.get_grant(grant.id).used == registry.charged(request) == 98


def test_one_shard_charged_by_many_at_once_is_charged_once(registry: Registry, ann: int) -> None:
    grant = registry.grant("ann", "photos", quota=10)
    request = new_request(registry, ann)
    together = threading.Barrier(8)

    def worker(_: int) -> None:
        together.wait()
        registry.charge(request, 0, grant.id, 10)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(worker, range(8)))
    assert registry.get_grant(grant.id).used == 10


def test_charges_that_cross_between_two_grants_add_up(registry: Registry, ann: int) -> None:
    grants = [registry.grant("ann", "photos", classes=[name]) for name in ("cat", "dog")]
    request = new_request(registry, ann)
    together = threading.Barrier(4)

    def worker(number: int) -> None:
        together.wait()
        for step in range(8):
            registry.charge(request, step % 2, grants[(number + step) % 2].id, number + 1)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(worker, range(4)))
    charges = [registry.charge_of(request, shard, "photos") for shard in (0, 1)]
    for grant in grants:
        expected = sum(charge.images for charge in charges if charge is not None and charge.grant_id == grant.id)
        assert registry.get_grant(grant.id).used == expected


@given(amounts=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=12), quota=st.integers(1, 20))
@hypothesis_settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_charges_follow_the_model(registry: Registry, amounts: list[tuple[int, int]], quota: int) -> None:
    """What is used up is the sum of the largest charge of each shard that fitted."""
    name = f"u{new_request_id()[:12]}"
    registry.add_user(name)
    user = registry.get_user(name).id
    grant, request = registry.grant(name, "photos", quota=quota), new_request(registry, user)
    charged: dict[int, int] = {}
    for shard, images in amounts:
        more = max(0, images - charged.get(shard, 0))
        fits = sum(charged.values()) + more <= quota
        try:
            registry.charge(request, shard, grant.id, images)
        except QuotaExceeded:
            assert not fits
        else:
            assert fits
            charged[shard] = charged.get(shard, 0) + more
    assert registry.get_grant(grant.id).used == sum(charged.values()) <= quota


# --- records ---------------------------------------------------------------------------------------------------------


def test_usage_adds_up_by_day_data_set_and_user(registry: Registry, ann: int) -> None:
    registry.add_user("bob")
    registry.add_user("olga", "owner")
    registry.register_dataset("photos", "olga")
    bob = registry.get_user("bob").id
    photos, faces = registry.grant("ann", "photos"), registry.grant("ann", "faces")
    others = registry.grant("bob", "photos")
    first, second, third = (new_request(registry, user) for user in (ann, ann, bob))
    for request, shard, grant, images in (
        (first, 0, photos, 5),
        (first, 1, photos, 5),
        (first, 1, faces, 1),
        (second, 0, photos, 2),
        (third, 0, others, 4),
    ):
        registry.charge(request, shard, grant.id, images)
    with registry.write() as session:  # late in the evening, by the clocks of some
        session.execute(
            text("UPDATE charges SET time = :t WHERE request_id = :r"),
            {
                "t": "2020-02-29 23:30:00+00:00" if "postgresql" in registry.url else "2020-02-29 23:30:00.000000",
                "r": third,
            },
        )
    today = now().date()
    rows = [(row.day, row.dataset, row.user, row.requests, row.images) for row in registry.usage()]
    assert rows == [
        (date(2020, 2, 29), "photos", "bob", 1, 4),
        (today, "faces", "ann", 1, 1),
        (today, "photos", "ann", 2, 12),
    ]
    assert [row.images for row in registry.usage(owner="olga")] == [4, 12]
    assert [row.images for row in registry.usage(owner="olga", since=now() - DAY)] == [12]
    assert [row.images for row in registry.usage(dataset="faces")] == [1]
    assert [g.user.name for g in registry.list_grants(owner="olga")] == ["ann", "bob"]
    assert registry.list_grants(owner="ann") == []


def test_grants_are_on_record(registry: Registry, ann: int, database: str) -> None:
    registry.add_user("olga", "owner")
    made = registry.grant("ann", "photos", quota=1, note="for the paper", actor="olga")
    assert registry.get_grant(made.id).granted_by == registry.get_user("olga").id and made.note == "for the paper"
    registry.grant("ann", "photos", quota=1, actor="olga")  # nothing changes, and nothing is recorded
    registry.grant("ann", "photos", actor="olga")
    registry.renew_grant(made.id, now() + DAY, actor="olga")
    registry.revoke("ann", "photos", actor="olga")
    with AuditLog(database) as log:
        entries = [entry for entry in log.entries() if entry.dataset == "photos"]
        assert log.verify().ok
    assert [(entry.actor, entry.action, entry.subject) for entry in entries] == [
        ("olga", f"grant.{what}", "ann") for what in ("create", "extend", "renew", "revoke")
    ]


def test_the_log_is_locked_after_the_rows_that_its_entry_is_about(registry: Registry, ann: int) -> None:
    """As `give_back` does: else two could wait for each other."""
    registry.grant("ann", "photos")
    statements: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        statements.append(statement)

    with registry.write() as session:
        engine = session.get_bind()
    event.listen(engine, "before_cursor_execute", note)
    registry.revoke("ann", "photos")
    event.remove(engine, "before_cursor_execute", note)
    lock = "pg_advisory_xact_lock" if "postgresql" in registry.url else "FROM audit_entries"
    first = [next(n for n, one in enumerate(statements) if mark in one) for mark in ("UPDATE grants", lock)]
    assert first == sorted(first)


def test_threads_write_without_losing_anything(registry: Registry, ann: int) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: registry.grant("ann", f"set-{n % 5}", now() + (n + 1) * DAY), range(40)))
    grants = registry.list_grants("ann")
    assert len(grants) == 5, "two grants in force for one data set"
    assert all(grant.expires and grant.expires > now() + 35 * DAY for grant in grants)
