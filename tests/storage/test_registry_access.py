"""Data sets, their terms, and who asks for access: on real SQLite and real PostgreSQL."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from storage.audit import AuditLog
from storage.errors import BadToken, Forbidden, NotFound, QuotaExceeded, TermsNotAccepted, UsageError
from storage.registry import AccessRequest, Registry

DAY = timedelta(days=1)


def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture
def olga(registry: Registry) -> int:
    """The id of the owner olga, whose data set photos is."""
    registry.add_user("olga", "owner")
    registry.register_dataset("photos", "olga", "Photos")
    return registry.get_user("olga").id


# --- data sets -------------------------------------------------------------------------------------------------------


def test_a_data_set_belongs_to_an_owner(registry: Registry, ann: int, olga: int) -> None:
    registry.add_user("otto", "owner")
    registry.register_dataset("photos", "olga", description="Many.")
    dataset = registry.get_dataset("photos")
    assert (dataset.title, dataset.description, dataset.owner.name) == ("Photos", "Many.", "olga")
    with pytest.raises(Forbidden, match="belongs to olga"):
        registry.register_dataset("photos", "otto")
    with pytest.raises(Forbidden, match=r"takes the role owner; ann has the role user.*set-role ann owner"):
        registry.register_dataset("faces", "ann")
    registry.transfer_dataset("photos", "otto")
    assert [d.name for d in registry.list_datasets("otto")] == ["photos"] and not registry.list_datasets("olga")
    with pytest.raises(Forbidden):
        registry.transfer_dataset("photos", "ann")
    for use in (registry.get_dataset, lambda name: registry.transfer_dataset(name, "otto")):
        with pytest.raises(NotFound, match="no data set"):
            use("nothing")
    with pytest.raises(UsageError, match="can not name a data set"):
        registry.register_dataset("../x", "olga")


def test_who_decides_about_a_data_set(registry: Registry, ann: int, olga: int) -> None:
    registry.add_user("otto", "owner")
    registry.add_user("root", "operator")
    for name in ("olga", "root"):
        assert registry.check_manages(registry.get_user(name), "photos").name == "photos"
    for name in ("ann", "otto"):
        with pytest.raises(Forbidden, match="does not own photos"):
            registry.check_manages(registry.get_user(name), "photos")
    registry.set_role("olga", "user")
    with pytest.raises(Forbidden, match="takes the role owner"):
        registry.check_manages(registry.get_user("olga"), "photos")


def test_many_register_one_data_set_at_once(registry: Registry, olga: int) -> None:
    together = threading.Barrier(6)

    def worker(_: int) -> str:
        together.wait()
        return registry.register_dataset("faces", "olga").name

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(worker, range(6))) == {"faces"}
    assert len(registry.list_datasets()) == 2


# --- terms -----------------------------------------------------------------------------------------------------------


def test_terms_are_numbered_and_the_newest_count(registry: Registry, ann: int, olga: int) -> None:
    assert registry.current_terms("photos") is None and registry.accepted_terms(ann, "photos") is None
    assert [registry.set_terms("photos", words).version for words in ("one", "one", "two", "one")] == [1, 1, 2, 3]
    current = registry.current_terms("photos")
    assert current is not None and (current.version, current.text) == (3, "one")
    assert registry.get_terms("photos", 2).text == "two"
    registry.accept_terms(ann, "photos", 3)
    assert registry.accepted_terms(ann, "photos") == 3 and registry.accepted_terms(olga, "photos") is None
    with pytest.raises(UsageError, match=r"Version 2 .* no longer counts.*version 3"):
        registry.accept_terms(ann, "photos", 2)
    with pytest.raises(NotFound, match="number 4"):
        registry.accept_terms(ann, "photos", 4)
    with pytest.raises(NotFound, match="no data set"):
        registry.set_terms("faces", "x")
    with pytest.raises(UsageError, match="need a text"):
        registry.set_terms("photos", " \n")


def test_many_set_terms_at_once(registry: Registry, olga: int) -> None:
    together = threading.Barrier(6)

    def worker(number: int) -> int:
        together.wait()
        return registry.set_terms("photos", f"text {number}").version

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(worker, range(6))) == [1, 2, 3, 4, 5, 6]


# --- asking and deciding ---------------------------------------------------------------------------------------------


def ask(registry: Registry, user_id: int, **more: object) -> AccessRequest:
    return registry.ask_access(user_id, "photos", "for a paper", **more)  # type: ignore[arg-type]


def test_an_owner_grants_what_is_asked_for(registry: Registry, ann: int, olga: int, database: str) -> None:
    made = ask(registry, ann, images=100, days=30, classes=["cat"], actor="ann")
    assert (made.state, made.user.name, made.classes) == ("open", "ann", ["cat"])
    assert [r.id for r in registry.list_access_requests(owner="olga", state="open")] == [made.id]
    grant = registry.approve_access_request(made.id, note="welcome", actor="olga")
    assert (grant.quota, grant.classes, grant.granted_by, grant.note) == (100, ["cat"], olga, "welcome")
    assert grant.expires is not None and abs(grant.expires - (now() + 30 * DAY)) < timedelta(minutes=1)
    assert registry.authorise(ann, "photos", images=100).id == grant.id
    decided = registry.get_access_request(made.id)
    assert (decided.state, decided.decided_by, decided.grant_id, decided.note) == (
        "approved",
        olga,
        grant.id,
        "welcome",
    )
    for decide in (registry.approve_access_request, registry.deny_access_request):
        with pytest.raises(UsageError, match="is approved already"):
            decide(made.id)
    with pytest.raises(UsageError, match="is approved already"):
        registry.withdraw_access_request(made.id, ann)
    with AuditLog(database) as log:
        actions = [(entry.actor, entry.action) for entry in log.entries(dataset="photos")]
    assert actions[1:] == [("ann", "access.ask"), ("olga", "grant.create"), ("olga", "access.approve")]


def test_an_owner_grants_something_else(registry: Registry, ann: int, olga: int) -> None:
    made = ask(registry, ann, days=30, classes=["cat"])
    end = now() + DAY
    grant = registry.approve_access_request(made.id, expires=end, quota=5, classes=None, version="ab" * 8)
    assert (grant.expires, grant.quota, grant.classes, grant.version) == (end, 5, None, "ab" * 8)
    endless = registry.approve_access_request(ask(registry, ann, days=3, images=1).id, days=None, quota=None)
    assert (endless.expires, endless.quota) == (None, None)
    other = ask(registry, ann)
    with pytest.raises(UsageError, match="both given"):
        registry.approve_access_request(other.id, expires=end, days=3)
    with pytest.raises(UsageError, match="in the past"):
        registry.approve_access_request(other.id, expires=now() - DAY)
    assert registry.get_access_request(other.id).state == "open", "what failed decided nothing"


def test_more_of_what_is_used_up_can_be_had(registry: Registry, ann: int, olga: int) -> None:
    """The grant of the same scope is extended: to so many more than are used up, and never to fewer than before."""
    grant = registry.approve_access_request(ask(registry, ann, images=100).id)
    request_id = registry.create_request(ann, "upload", None, "x")
    registry.charge(request_id, 0, grant.id, 100)
    more = registry.approve_access_request(ask(registry, ann, images=100).id)
    assert (more.id, more.quota, more.left) == (grant.id, 200, 100)
    registry.charge(request_id, 1, grant.id, 10)
    assert registry.approve_access_request(ask(registry, ann, images=50).id).left == 90, "nothing is taken away"
    assert registry.approve_access_request(ask(registry, ann, images=1).id, quota=95).left == 95
    assert registry.grant("ann", "photos", quota=150).quota == 205, "what an owner gives unasked is in all"
    with pytest.raises(UsageError, match="no number of images"):
        registry.approve_access_request(ask(registry, ann, images=2**31 - 1).id)


def test_a_longer_grant_for_fewer_images_is_another_one(registry: Registry, ann: int, olga: int) -> None:
    """And so is a shorter one for more: the later end and the larger quota in one grant is what nobody gave."""
    end = now() + DAY
    large = registry.grant("ann", "photos", end, quota=1_000_000)
    small = registry.approve_access_request(ask(registry, ann, images=10, days=3650).id)
    assert small.id != large.id and small.quota == 10 and small.expires and small.expires > now() + 3649 * DAY
    kept = registry.get_grant(large.id)
    assert (kept.quota, kept.expires) == (1_000_000, end)
    assert registry.authorise(ann, "photos", images=5).id == large.id, "the lasting one is kept for later"
    assert registry.authorise(ann, "photos", images=10, now=end).id == small.id
    for moment, left in ((end, 10), (None, 1_000_000)):
        with pytest.raises(QuotaExceeded, match=f"of which {left:,} are left"):
            registry.authorise(ann, "photos", images=1_000_001, now=moment)
    unasked = registry.grant("ann", "photos", end + DAY, quota=500_000)
    assert unasked.id not in (large.id, small.id) and (unasked.expires, unasked.quota) == (end + DAY, 500_000)
    assert registry.grant("ann", "photos", end, quota=400_000).id in (large.id, unasked.id), "it is covered"
    registry.revoke("ann", "photos")
    assert all(grant.revoked for grant in registry.list_grants("ann", "photos"))


def test_no_end_and_no_quota_are_not_put_together_either(registry: Registry, ann: int, olga: int) -> None:
    endless = registry.approve_access_request(ask(registry, ann, images=5).id)
    unbounded = registry.approve_access_request(ask(registry, ann, days=30).id)
    assert (endless.expires, endless.quota) == (None, 5) and unbounded.quota is None and unbounded.expires is not None
    assert registry.approve_access_request(ask(registry, ann).id).id in (endless.id, unbounded.id)
    assert {grant.id for grant in registry.list_grants()} == {endless.id, unbounded.id}


def test_a_grant_is_extended_beside_one_that_it_can_not_be_put_together_with(
    registry: Registry, ann: int, olga: int
) -> None:
    large = registry.grant("ann", "photos", now() + DAY, quota=1000)
    small = registry.approve_access_request(ask(registry, ann, images=10, days=90).id)
    registry.charge(registry.create_request(ann, "upload", None, "x"), 0, small.id, 8)
    more = registry.approve_access_request(ask(registry, ann, images=20, days=91).id)
    assert (more.id, more.quota, more.left) == (small.id, 28, 20)
    assert registry.get_grant(large.id).quota == 1000


def test_denied_and_withdrawn(registry: Registry, ann: int, olga: int) -> None:
    denied, withdrawn = ask(registry, ann), ask(registry, ann, classes=["cat"])
    registry.deny_access_request(denied.id, "not now", actor="olga")
    with pytest.raises(NotFound):
        registry.withdraw_access_request(withdrawn.id, olga)
    registry.withdraw_access_request(withdrawn.id, ann)
    found = registry.list_access_requests(user="ann")
    assert [(r.id, r.state, r.note) for r in found] == [
        (withdrawn.id, "withdrawn", None),
        (denied.id, "denied", "not now"),
    ]
    assert registry.list_access_requests(owner="ann") == registry.list_access_requests(dataset="faces") == []
    assert registry.list_grants() == []


def test_what_can_not_be_asked_for(registry: Registry, ann: int, olga: int) -> None:
    for words in ("", "  ", "x" * 4001):
        with pytest.raises(UsageError, match="reason"):
            registry.ask_access(ann, "photos", words)
    with pytest.raises(NotFound, match="no data set"):
        registry.ask_access(ann, "faces", "for a paper")
    with pytest.raises(NotFound, match="No user"):
        ask(registry, 99)
    for wrong in ({"images": 0}, {"days": 0}, {"days": 99999}, {"classes": []}, {"version": "latest"}):
        with pytest.raises(UsageError):
            ask(registry, ann, **wrong)
    first = ask(registry, ann, days=3)
    with pytest.raises(UsageError, match=f"asked for already: access request {first.id}"):
        ask(registry, ann, days=4)
    registry.deny_access_request(first.id)
    ask(registry, ann)
    registry.set_disabled("ann", True)
    with pytest.raises(BadToken):
        ask(registry, ann, classes=["cat"])
    with pytest.raises(UsageError, match="ann was shut out"):
        registry.approve_access_request(registry.list_access_requests(state="open")[0].id)
    registry.set_disabled("olga", True)
    with pytest.raises(UsageError, match="olga was shut out"):
        registry.register_dataset("faces", "olga")


def test_a_renewal_extends_its_grant(registry: Registry, ann: int, olga: int) -> None:
    grant = registry.grant("ann", "photos", now() + DAY, quota=10, classes=["cat"])
    registry.charge(registry.create_request(ann, "upload", None, "x"), 0, grant.id, 8)
    made = ask(registry, ann, renews=grant.id, days=90, images=50)
    renewed = registry.approve_access_request(made.id, actor="olga")
    assert (renewed.id, renewed.quota, renewed.used, renewed.classes) == (grant.id, 58, 8, ["cat"])
    assert renewed.expires is not None and renewed.expires > now() + 89 * DAY
    shorter = registry.approve_access_request(ask(registry, ann, renews=grant.id, days=1).id)
    assert shorter.expires == renewed.expires, "a renewal takes nothing away"
    soon = now() + DAY
    owners = registry.approve_access_request(ask(registry, ann, renews=grant.id, days=1).id, expires=soon)
    assert owners.expires == soon, "unless its owner says so"
    registry.add_user("bob")
    with pytest.raises(NotFound):
        ask(registry, registry.get_user("bob").id, renews=grant.id)
    with pytest.raises(UsageError, match="keeps the scope"):
        ask(registry, ann, renews=grant.id, classes=["dog"])
    open_one = ask(registry, ann, renews=grant.id)
    with pytest.raises(UsageError, match="keeps the scope"):
        registry.approve_access_request(open_one.id, classes=None)
    registry.revoke_grant(grant.id)
    with pytest.raises(UsageError, match="was revoked"):
        registry.approve_access_request(open_one.id)
    with pytest.raises(UsageError, match="was revoked"):
        ask(registry, ann, renews=grant.id, days=1)


def test_a_renewal_gives_no_mixture_of_what_was_held_and_what_is_approved(
    registry: Registry, ann: int, olga: int
) -> None:
    end = now() + DAY
    grant = registry.grant("ann", "photos", end, quota=1000, classes=["cat"])
    registry.charge(registry.create_request(ann, "upload", None, "x"), 0, grant.id, 100)
    longer = registry.approve_access_request(ask(registry, ann, renews=grant.id, days=3650, images=10).id)
    assert longer.id != grant.id and (longer.quota, longer.used, longer.classes) == (10, 0, ["cat"])
    assert longer.expires and longer.expires > now() + 3649 * DAY
    named = registry.approve_access_request(ask(registry, ann, renews=grant.id, days=2, images=10).id, days=9)
    assert named.id == longer.id, "an end that the owner names is put together with no larger quota either"
    more = registry.approve_access_request(ask(registry, ann, renews=longer.id, days=1).id, quota=5000)
    assert more.id == grant.id and more.quota == 5100 and more.expires and more.expires < end + DAY
    kept = registry.get_grant(longer.id)
    assert (kept.quota, kept.expires) == (10, longer.expires)
    fewer = registry.approve_access_request(ask(registry, ann, renews=longer.id, days=3651).id, quota=5)
    assert (fewer.id, fewer.quota) == (longer.id, 5), "an owner may say fewer"
    registry.revoke_grant(longer.id)
    assert registry.authorise(ann, "photos").id == grant.id


def test_of_a_grant_that_is_over_only_what_is_approved_is_renewed(registry: Registry, ann: int, olga: int) -> None:
    bounded, unbounded = registry.grant("ann", "photos", quota=1000), registry.grant("ann", "photos", classes=["cat"])
    registry.charge(registry.create_request(ann, "upload", None, "x"), 0, bounded.id, 100)
    with registry.write() as session:
        session.execute(text("UPDATE grants SET expires = created"))
    for grant, quota in ((bounded, 110), (unbounded, 10)):
        made = registry.approve_access_request(ask(registry, ann, renews=grant.id, days=30, images=10).id)
        assert (made.id, made.quota, made.left) == (grant.id, quota, 10)
    assert registry.approve_access_request(ask(registry, ann, renews=bounded.id, days=31).id).quota == 110


def test_an_access_request_is_decided_once(registry: Registry, ann: int, olga: int) -> None:
    made = ask(registry, ann)
    together = threading.Barrier(4)

    def decide(number: int) -> bool:
        together.wait()
        try:
            if number % 2:
                registry.approve_access_request(made.id)
            else:
                registry.deny_access_request(made.id)
        except UsageError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(decide, range(4))) == 1
    approved = registry.get_access_request(made.id).state == "approved"
    assert len(registry.list_grants()) == approved


def test_terms_count_for_what_was_approved(registry: Registry, ann: int, olga: int) -> None:
    registry.set_terms("photos", "Be kind.")
    grant = registry.approve_access_request(ask(registry, ann).id)
    with pytest.raises(TermsNotAccepted):
        registry.authorise(ann, "photos")
    registry.accept_terms(ann, "photos", 1)
    assert registry.authorise(ann, "photos").id == grant.id
    with registry.read() as session:
        assert session.scalar(text("SELECT count(*) FROM acceptances")) == 1
