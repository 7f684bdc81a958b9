"""The rules a grant is judged by: each alone, together, and which of several grants is used or named."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import (
    BadToken,
    Forbidden,
    GrantExpired,
    GrantNotStarted,
    GrantRevoked,
    NotAuthorised,
    OutOfScope,
    QuotaExceeded,
    TermsNotAccepted,
)
from storage.policies import (
    POLICIES,
    Asked,
    WithinQuota,
    best,
    check_image,
    check_manages,
    check_role,
    first_refusal,
    nearest,
)
from storage.registry_models import Dataset, Grant, User

NOW = datetime(2025, 6, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
VERSION, OTHER = "0123456789abcdef", "fedcba9876543210"


def user(role: str = "user", disabled: bool = False, number: int = 1) -> User:
    return User(id=number, name="ann", role=role, disabled=disabled, created=NOW - 9 * DAY)


def granted(number: int = 1, **more: object) -> Grant:
    values = {"used": 0, "starts": NOW - DAY, "created": NOW - DAY, "user_id": 1, "dataset": "photos"} | more
    return Grant(id=number, **values)


def asked(grant: Grant, **more: object) -> Asked:
    values: dict[str, object] = {"user": user(), "version": None, "images": 0, "moment": NOW} | more
    return Asked(dataset="photos", grant=grant, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("grant", "more", "error", "says"),
    [
        ({}, {"user": user(disabled=True)}, BadToken, "withdrawn"),
        ({"revoked": NOW}, {}, GrantRevoked, r"revoked on 2025-06-01.*dmcp access grant ann photos"),
        ({"starts": NOW + DAY}, {}, GrantNotStarted, r"begins on 2025-06-02"),
        ({"expires": NOW}, {}, GrantExpired, r"expired on 2025-06-01"),
        ({}, {"terms": 2}, TermsNotAccepted, r"not accepted version 2 of the terms of use of photos"),
        ({}, {"terms": 2, "accepted": 1}, TermsNotAccepted, r"so far: version 1"),
        ({"version": VERSION}, {}, OutOfScope, rf"covers the published version {VERSION} only"),
        ({"version": VERSION, "samples": ["a"]}, {"version": OTHER}, OutOfScope, rf"names version {OTHER}"),
        ({"quota": 5, "used": 3}, {"images": 3}, QuotaExceeded, r"allows 5 images, of which 2 are left; 3 are asked"),
    ],
)
def test_each_rule_refuses_with_its_reason_and_a_cure(
    grant: dict[str, object], more: dict[str, object], error: type[NotAuthorised], says: str
) -> None:
    refusal = first_refusal(asked(granted(**grant), **more))
    assert refusal is not None and type(refusal.error) is error
    with pytest.raises(error, match=says):
        raise refusal.error
    assert refusal.error.cure.endswith(("photos", ".", "ann")), refusal.error.cure


@pytest.mark.parametrize(
    ("grant", "more"),
    [
        ({}, {"images": 10**9}),
        ({"expires": NOW + timedelta(microseconds=1), "starts": NOW}, {}),
        ({}, {"terms": 2, "accepted": 2}),
        ({"version": VERSION}, {"version": VERSION}),
        ({"classes": ["cat"]}, {}),
        ({"quota": 5, "used": 3}, {"images": 2}),
        ({"quota": 5, "used": 5}, {}),
    ],
)
def test_what_is_allowed(grant: dict[str, object], more: dict[str, object]) -> None:
    assert first_refusal(asked(granted(**grant), **more)) is None


def test_the_first_rule_to_mend_is_named_first() -> None:
    everything = granted(revoked=NOW, expires=NOW, quota=1, version=VERSION)
    refusal = first_refusal(asked(everything, images=9, terms=1))
    assert refusal is not None and isinstance(refusal.error, GrantRevoked)
    assert first_refusal(asked(everything, images=1), (WithinQuota(),)) is None, "rules stand alone"


grants = st.builds(
    granted,
    expires=st.none() | st.integers(-2, 5).map(lambda days: NOW + days * DAY),
    revoked=st.none() | st.just(NOW - DAY),
    starts=st.integers(-3, 2).map(lambda days: NOW + days * DAY),
    quota=st.none() | st.integers(1, 20),
    used=st.integers(0, 20),
    version=st.none() | st.sampled_from([VERSION, OTHER]),
    classes=st.none() | st.just(["cat"]),
)


@given(held=st.lists(grants, min_size=1, max_size=5), images=st.integers(0, 20))
def test_a_grant_is_used_only_if_it_does_and_the_widest_first(held: list[Grant], images: int) -> None:
    for number, grant in enumerate(held):
        grant.id = number + 1
    judged = [(grant, first_refusal(asked(grant, images=images, version=VERSION))) for grant in held]
    allowed = [grant for grant, refusal in judged if refusal is None]
    chosen = best(allowed)
    if chosen is None:
        error = nearest([(grant, refusal) for grant, refusal in judged if refusal is not None], NOW)
        in_force = [grant for grant in held if grant.in_force(NOW)]
        assert isinstance(error, (OutOfScope, QuotaExceeded)) == bool(in_force)
        return
    assert chosen.in_force(NOW) and chosen.version in (None, VERSION)
    assert chosen.left is None or chosen.left >= images
    bounds = [sum(bound is not None for bound in grant.scope) for grant in allowed]
    assert sum(bound is not None for bound in chosen.scope) == min(bounds)


def test_the_refusal_named_is_the_nearest() -> None:
    def told(*held: Grant) -> NotAuthorised:
        cases = [(grant, first_refusal(asked(grant, images=5))) for grant in held]
        return nearest([(grant, refusal) for grant, refusal in cases if refusal is not None], NOW)

    old = granted(1, revoked=NOW - DAY, created=NOW - 9 * DAY)
    expired = granted(2, expires=NOW - DAY, created=NOW - 5 * DAY)
    spent = granted(3, quota=1, created=NOW - 8 * DAY)
    assert isinstance(told(old, expired), GrantExpired)
    assert isinstance(told(granted(9, revoked=NOW), expired), GrantRevoked), "the newest of those that are over"
    assert isinstance(told(old, expired, spent), QuotaExceeded), "one in force comes first"
    assert isinstance(told(spent, granted(4, version=VERSION)), QuotaExceeded), "the one that got farthest"
    assert "of which 4 are left" in told(granted(5, quota=4), granted(6, quota=2)).what, "the one with most left"


def test_image_by_image() -> None:
    check_image(granted(), key="a", class_name=None)
    check_image(granted(classes=["cat"]), key="a", class_name="cat")
    check_image(granted(samples=["a"], version=VERSION), key="a")
    with pytest.raises(OutOfScope, match="does not cover the class 'dog', only 'cat'"):
        check_image(granted(classes=["cat"]), class_name="dog")
    with pytest.raises(OutOfScope, match="no label is sealed in this image"):
        check_image(granted(classes=["cat"]))
    for key in ("b", None):
        with pytest.raises(OutOfScope, match="this sample"):
            check_image(granted(samples=["a"], version=VERSION), key=key)
    many = granted(classes=[f"c{n}" for n in range(9)])
    with pytest.raises(OutOfScope, match="'c4' and 4 more"):
        check_image(many, class_name="x" * 500)


def test_roles_include_those_below() -> None:
    order = ("user", "owner", "operator")
    for has, role in enumerate(order):
        for needed, wanted in enumerate(order):
            if has >= needed:
                check_role(user(role), wanted)  # type: ignore[arg-type]
            else:
                with pytest.raises(Forbidden, match=f"takes the role {wanted}"):
                    check_role(user(role), wanted)  # type: ignore[arg-type]
    with pytest.raises(BadToken):
        check_role(user("operator", disabled=True), "user")


def test_owners_decide_about_their_own() -> None:
    dataset = Dataset(name="photos", owner_id=1)
    assert check_manages(user("owner"), dataset) is check_manages(user("operator", number=2), dataset) is dataset
    for stranger in (user("owner", number=2), user("user")):
        with pytest.raises(Forbidden):
            check_manages(stranger, dataset)
    with pytest.raises(BadToken):
        check_manages(user("operator", disabled=True), dataset)


def test_all_rules_are_asked() -> None:
    assert [type(policy).__name__ for policy in POLICIES] == [
        "EnabledUser",
        "NotRevoked",
        "Started",
        "NotExpired",
        "TermsAccepted",
        "CoveredVersion",
        "WithinQuota",
    ]
