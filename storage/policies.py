"""What a grant must be to serve a request: one small rule each, and each refusal names its rule and the cure.

    refusal = first_refusal(Asked(user, "cifar10", version=None, images=100, moment=now, grant=grant, ...))
    check_image(grant, key="000017", class_name="cat")        # the scope, image by image
    check_role(user, "operator"); check_manages(user, dataset)

Nothing here reads a database: the registry puts together what was asked (`Asked`) and the policies judge it. A rule is
a class with `check`, so that one can be added without touching the others; `POLICIES` is the order they are asked in,
so that the first refusal is the one to mend first.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

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
from storage.registry_models import Dataset, Grant, Role, User


@dataclass(frozen=True)
class Asked:
    """What is to be judged: may this user have these images restored under this grant at this moment?

    Attributes:
        user: who.
        dataset: of which data set.
        version: the published version that the request names; None: an upload, or a local folder.
        images: how many images are about to be restored; 0: only whether it is allowed at all.
        moment: when.
        grant: under which grant.
        terms: the number of the terms of use that count now; None: the data set has none.
        accepted: the number of the latest terms that the user accepted; None: none.
    """

    user: User
    dataset: str
    version: str | None
    images: int
    moment: datetime
    grant: Grant
    terms: int | None = None
    accepted: int | None = None


class Policy(Protocol):
    """One rule."""

    def check(self, asked: Asked) -> None:
        """Nothing when the rule is kept. Raises NotAuthorised, with the rule and the cure, when it is not."""


@dataclass(frozen=True)
class EnabledUser:
    """Who was shut out has nothing restored, whatever grants they hold."""

    def check(self, asked: Asked) -> None:
        """Raises BadToken."""
        check_enabled(asked.user)


@dataclass(frozen=True)
class NotRevoked:
    """A revoked grant is worth nothing from that moment on."""

    def check(self, asked: Asked) -> None:
        """Raises GrantRevoked."""
        revoked = asked.grant.revoked
        if revoked is not None:
            raise GrantRevoked(f"{_the_grant(asked)} was revoked on {day(revoked)}.", cure(asked.user, asked.dataset))


@dataclass(frozen=True)
class Started:
    """A grant may begin later than it was given."""

    def check(self, asked: Asked) -> None:
        """Raises GrantNotStarted."""
        if asked.moment < asked.grant.starts:
            raise GrantNotStarted(
                f"{_the_grant(asked)} begins on {day(asked.grant.starts)}.",
                "Try again then.",
            )


@dataclass(frozen=True)
class NotExpired:
    """A grant is over at the very moment that it ends."""

    def check(self, asked: Asked) -> None:
        """Raises GrantExpired."""
        ended = asked.grant.expires
        if ended is not None and asked.moment >= ended:
            raise GrantExpired(f"{_the_grant(asked)} expired on {day(ended)}.", cure(asked.user, asked.dataset))


@dataclass(frozen=True)
class TermsAccepted:
    """Where a data set has terms of use, the newest must be accepted."""

    def check(self, asked: Asked) -> None:
        """Raises TermsNotAccepted."""
        if asked.terms is None or asked.accepted == asked.terms:
            return
        so_far = "" if asked.accepted is None else f" (so far: version {asked.accepted})"
        raise TermsNotAccepted(
            f"{asked.user.name} has not accepted version {asked.terms} of the terms of use of {asked.dataset}{so_far}.",
            "Read and accept them: on the data set's page, or `dmcp remote terms "
            f"{asked.dataset}`; the operator: dmcp access terms accept {asked.dataset} {asked.user.name}",
        )


@dataclass(frozen=True)
class CoveredVersion:
    """A grant for one published version, or for some of its samples, serves requests that name this version only.

    What a user uploads may be images of any version, so it can not be told that they are of this one.
    """

    def check(self, asked: Asked) -> None:
        """Raises OutOfScope."""
        only = asked.grant.version
        if only is None or asked.version == only:
            return
        if asked.version is None:
            what = "what is handed in as files can not be told to be of it"
        else:
            what = f"the request names version {asked.version}"
        raise OutOfScope(
            f"{_the_grant(asked)} covers the published version {only} only; {what}.",
            f"Request it by its name, {asked.dataset}@{only}, or ask for a grant without that bound.",
        )


@dataclass(frozen=True)
class WithinQuota:
    """A grant may be for so many images in all."""

    def check(self, asked: Asked) -> None:
        """Raises QuotaExceeded."""
        left = asked.grant.left
        if left is not None and asked.images > left:
            raise QuotaExceeded(
                f"{_the_grant(asked)} allows {asked.grant.quota:,} images, of which {left:,} are left; "
                f"{asked.images:,} are asked for.",
                "Request fewer images, or ask the owner for more.",
            )


POLICIES: tuple[Policy, ...] = (
    EnabledUser(),
    NotRevoked(),
    Started(),
    NotExpired(),
    TermsAccepted(),
    CoveredVersion(),
    WithinQuota(),
)


@dataclass(frozen=True)
class Refusal:
    """Why a grant does not do: the error, and the place of its rule in the order."""

    error: NotAuthorised
    rule: int


def first_refusal(asked: Asked, policies: tuple[Policy, ...] = POLICIES) -> Refusal | None:
    """The first rule that is not kept; None: all are."""
    for rule, policy in enumerate(policies):
        try:
            policy.check(asked)
        except NotAuthorised as error:
            return Refusal(error, rule)
    return None


def best(allowed: list[Grant]) -> Grant | None:
    """Of grants that all do, the one to use: the widest, then the one with most images left, then the last to end.

    So a bounded grant is not used up by what an unbounded one covers.
    """

    def worth(grant: Grant) -> tuple[int, bool, int, bool, float, int]:
        bounds = sum(bound is not None for bound in grant.scope)
        end = 0.0 if grant.expires is None else grant.expires.timestamp()
        return -bounds, grant.left is None, grant.left or 0, grant.expires is None, end, -grant.id

    return max(allowed, key=worth, default=None)


def nearest(refused: list[tuple[Grant, Refusal]], moment: datetime) -> NotAuthorised:
    """Of several refusals the one to tell: of a grant in force before others, of the rule asked last, of the newest.

    Of grants whose quotas do not do, the one with most images left: so many can be had.
    """

    def nearness(case: tuple[Grant, Refusal]) -> tuple[bool, int, int, datetime, int]:
        grant, refusal = case
        in_force = grant.in_force(moment)
        left = (grant.left or 0) if isinstance(refusal.error, QuotaExceeded) else 0
        return in_force, refusal.rule if in_force else 0, left, grant.created, grant.id

    return max(refused, key=nearness)[1].error


# --- image by image --------------------------------------------------------------------------------------------------


def check_image(grant: Grant, *, key: str | None = None, class_name: str | None = None) -> None:
    """Whether the grant's scope covers one image.

    Args:
        grant: what was authorised.
        key: the sample's key, for a grant of certain samples.
        class_name: the class by the image's sealed label; None: no label is sealed in it.

    Raises:
        OutOfScope: it does not; or it can not be told, for want of a sealed label.
    """
    if grant.samples is not None and key not in grant.samples:
        raise OutOfScope("The grant does not cover this sample.", "Ask the owner for it.")
    if grant.classes is None:
        return
    if class_name is None:
        raise OutOfScope(
            f"The grant covers some classes only ({_listed(grant.classes)}), and no label is sealed in this image.",
            "Ask the owner for a grant without that bound, or for images of profile exact with labels.",
        )
    if class_name not in grant.classes:
        raise OutOfScope(
            f"The grant does not cover the class {class_name[:64]!a}, only {_listed(grant.classes)}.",
            "Ask the owner for it.",
        )


# --- who may decide --------------------------------------------------------------------------------------------------

_RANK: dict[str, int] = {"user": 0, "owner": 1, "operator": 2}


def check_enabled(user: User) -> User:
    """The user. Raises BadToken when they were shut out."""
    if user.disabled:
        raise BadToken(f"The access of {user.name} was withdrawn.", "Ask the operator of the service.")
    return user


def check_role(user: User, role: Role) -> User:
    """The user, when they have this role or one above it (user, owner, operator).

    Raises:
        Forbidden: they have not.
        BadToken: they were shut out.
    """
    check_enabled(user)
    if _RANK.get(user.role, -1) < _RANK[role]:
        raise Forbidden(
            f"This takes the role {role}; {user.name} has the role {user.role}.",
            f"The operator can give it: dmcp access set-role {user.name} {role}",
        )
    return user


def check_manages(user: User, dataset: Dataset) -> Dataset:
    """The data set, when the user decides about it: its owner, or an operator.

    Raises:
        Forbidden: someone else's.
        BadToken: they were shut out.
    """
    check_enabled(user)
    if user.role != "operator":
        if dataset.owner_id != user.id:
            raise Forbidden(f"{user.name} does not own {dataset.name}.", "Ask its owner, or the operator.")
        check_role(user, "owner")
    return dataset


# --- words -----------------------------------------------------------------------------------------------------------


def cure(user: User, dataset: str) -> str:
    """How one comes by a grant."""
    return f"Its owner can give one: dmcp access grant {user.name} {dataset}"


def day(moment: datetime) -> str:
    """A time, for people."""
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def _the_grant(asked: Asked) -> str:
    return f"The grant of {asked.user.name} for {asked.dataset}"


def _listed(names: list[str]) -> str:
    shown = ", ".join(ascii(name[:64]) for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
