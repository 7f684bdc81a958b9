"""The registry's book of grants: who may have what restored, in what bounds, and how much of it they used.

A grant covers one data set, or the part of it that its scope leaves, until it expires or is revoked. Grants are rows
that stay, so that it can be seen later who could have what when. What a grant is good for is decided where it is used,
see `storage/registry_usage.py`.
"""

import re
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple, TypeVar

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from storage import audit
from storage.database import as_utc, utc_now
from storage.errors import NotFound, UsageError
from storage.names import VERSION_PATTERN, check_dataset_name
from storage.policies import best, day
from storage.registry_datasets import DatasetBook
from storage.registry_models import Dataset, Grant, User
from storage.registry_users import LOCAL, future, id_of, locked_user

Bound = TypeVar("Bound", int, datetime)


class GrantBook(DatasetBook):
    """Grants, and what is charged to them."""

    def grant(
        self,
        user: str,
        dataset: str,
        expires: datetime | None = None,
        *,
        version: str | None = None,
        classes: Sequence[str] | None = None,
        samples: Sequence[str] | None = None,
        quota: int | None = None,
        starts: datetime | None = None,
        note: str | None = None,
        actor: str = LOCAL,
    ) -> Grant:
        """Let a user have a data set restored, until `expires` (timezone-aware) or without an end.

        Doing so again extends the grant of the same scope that is in force, where this one ends no earlier and is for
        no fewer images (None, no bound, is the most). Where it ends later and is for fewer, or earlier and for more, it
        is a grant of its own beside that one. It never takes anything away: revoke the grant for that.

        Args:
            user: the user's name.
            dataset: the data set's name.
            expires: until when; None: without an end.
            version: one published version only.
            classes: images of these classes only, by their sealed labels.
            samples: the samples of these keys only; they take a version.
            quota: so many images in all.
            starts: from when; None: now.
            note: for people.
            actor: who does this, for the audit log.

        Returns:
            The grant that covers it; its `expires` and `quota` may be more than asked for.

        Raises:
            NotFound: no such user.
            UsageError: the data set's name is none, a time makes no sense, or a bound is empty.
        """
        with self.write() as session:
            holder = locked_user(session, user)
            return write_grant(
                session,
                holder,
                dataset,
                expires,
                version=version,
                classes=classes,
                samples=samples,
                quota=quota,
                starts=starts,
                note=note,
                actor=actor,
            )

    def revoke(self, user: str, dataset: str, *, actor: str = LOCAL) -> None:
        """End the user's grants for a data set now, those that have not begun too.

        Raises:
            NotFound: no such user, or no grant that could be revoked.
        """
        now = utc_now()
        with self.write() as session:
            rows = session.scalars(grants_of(locked_user(session, user).id, dataset)).all()
            ended = [grant for grant in rows if grant.revoked is None and not is_over(grant, now)]
            for grant in ended:
                grant.revoked = now
            if ended:
                details = {"grants": [grant.id for grant in ended]}
                audit.append(
                    session, actor=actor, action="grant.revoke", dataset=dataset, subject=user, details=details
                )
        if not ended:
            raise NotFound(f"{user} holds no grant for {dataset} that could be revoked.", "See `dmcp access list`.")

    def revoke_grant(self, grant_id: int, *, actor: str = LOCAL) -> None:
        """End one grant now; done again, nothing changes.

        Raises:
            NotFound: no such grant.
        """
        with self.write() as session:
            grant = locked_grant(session, grant_id)
            if grant.revoked is None:
                grant.revoked = utc_now()
                _grant_entry(session, actor, "grant.revoke", grant)

    def renew_grant(
        self, grant_id: int, expires: datetime | None, *, quota: int | None = None, actor: str = LOCAL
    ) -> Grant:
        """Give a grant another end, be it over already, and if wanted another quota.

        Args:
            grant_id: which.
            expires: the new end, which may be earlier than the old one; None: without an end.
            quota: the new number of images in all, those used up included; None: as it is.
            actor: who does this, for the audit log.

        Raises:
            NotFound: no such grant.
            UsageError: it was revoked (give a new one), or `expires` is past.
        """
        with self.write() as session:
            return renew(session, locked_grant(session, grant_id), expires, quota, actor)

    def get_grant(self, grant_id: int) -> Grant:
        """The grant with this id. Raises NotFound."""
        with self.read() as session:
            return grant_by_id(session, grant_id)

    def list_grants(
        self, user: str | None = None, dataset: str | None = None, owner: str | None = None
    ) -> Sequence[Grant]:
        """All grants, those that ended too, by user, data set and time.

        Args:
            user: of this user.
            dataset: for this data set.
            owner: for the data sets of this owner.
        """
        query = select(Grant).join(Grant.user).order_by(User.name, Grant.dataset, Grant.created, Grant.id)
        if user is not None:
            query = query.where(User.name == user)
        if dataset is not None:
            query = query.where(Grant.dataset == dataset)
        if owner is not None:
            query = query.where(Grant.dataset.in_(owned_by(owner)))
        return self.all(query)

    def datasets_granted(self, user_id: int, now: datetime | None = None) -> list[str]:
        """The data sets for which the user holds a grant in force at `now` (default: this moment), sorted."""
        moment = utc_now() if now is None else as_utc(now)
        grants = self.all(select(Grant).where(Grant.user_id == user_id))
        return sorted({grant.dataset for grant in grants if grant.in_force(moment)})


# --- shared by the other books ---------------------------------------------------------------------------------------


class Reach(NamedTuple):
    """How far a grant goes: until when, and for how many images in all. None: without an end, any number."""

    end: datetime | None
    quota: int | None

    def covers(self, other: "Reach") -> bool:
        """Whether it goes as far as the other in both."""
        return _as_far(self.end, other.end) and _as_far(self.quota, other.quota)


def farther(one: Bound | None, other: Bound | None) -> Bound | None:
    """The later of two ends, or the larger of two quotas."""
    return one if _as_far(one, other) else other


def _as_far(one: Bound | None, other: Bound | None) -> bool:
    return one is None or (other is not None and one >= other)


def write_grant(
    session: Session,
    holder: User,
    dataset: str,
    expires: datetime | None,
    *,
    version: str | None,
    classes: Sequence[str] | None,
    samples: Sequence[str] | None,
    quota: int | None,
    starts: datetime | None,
    note: str | None,
    actor: str,
    on_top: bool = False,
) -> Grant:
    """Make or extend a grant and put it on record; `holder` is locked.

    `on_top`: where a grant is extended the quota is for so many images more than are used up, not in all.
    """
    now, end = utc_now(), future(expires, "grant")
    begin = now if starts is None else max(now, as_utc(starts))
    wanted = Grant(
        user=holder,
        dataset=check_dataset_name(dataset),
        version=version,
        classes=checked_names(classes, "class"),
        samples=checked_names(samples, "sample"),
        quota=quota,
        used=0,
        starts=begin,
        created=now,
        expires=end,
        granted_by=id_of(session, actor),
        note=note,
    )
    _check_bounds(wanted)
    if on_top:
        lock_grants(session, holder.id, dataset)
    same = [grant for grant in session.scalars(grants_of(holder.id, dataset)) if grant.scope == wanted.scope]
    held = [] if begin > now else [grant for grant in same if grant.in_force(now)]
    return _extended(session, held, Reach(end, quota), on_top, actor) or _added(session, wanted, actor)


def renew(session: Session, grant: Grant, expires: datetime | None, quota: int | None, actor: str) -> Grant:
    """Give a locked grant another end and quota, and put it on record."""
    check_not_revoked(grant)
    end = future(expires, "grant")
    if end is not None and end <= grant.starts:
        raise UsageError(f"Grant {grant.id} begins on {day(grant.starts)}, after that end.", "Give a later date.")
    grant.expires = end
    if quota is not None:
        grant.quota = checked_quota(quota)
    _grant_entry(session, actor, "grant.renew", grant)
    return grant


def check_not_revoked(grant: Grant) -> None:
    """That a grant can be renewed. Raises UsageError."""
    if grant.revoked is not None:
        raise UsageError(f"Grant {grant.id} was revoked on {day(grant.revoked)}.", "Give a new one instead.")


def lock_grants(session: Session, user_id: int, dataset: str) -> None:
    """Make what is charged to a user's grants for a data set wait until this transaction ends.

    By number, as charges lock them: two that lock several never wait for each other crosswise.
    """
    mine = select(Grant.id).where(Grant.user_id == user_id, Grant.dataset == dataset)
    session.execute(mine.order_by(Grant.id).with_for_update(key_share=True))


def locked_grant(session: Session, grant_id: int) -> Grant:
    """The grant with this id; other transactions that change it wait until this one ends. Raises NotFound."""
    session.execute(select(Grant.id).where(Grant.id == grant_id).with_for_update(key_share=True))
    return grant_by_id(session, grant_id)


def grant_by_id(session: Session, grant_id: int) -> Grant:
    """The grant with this id. Raises NotFound."""
    grant = session.get(Grant, grant_id)
    if grant is None:
        raise NotFound(f"There is no grant {grant_id}.", "See `dmcp access list`.")
    return grant


def is_over(grant: Grant, moment: datetime) -> bool:
    """Whether a grant's end is past."""
    return grant.expires is not None and grant.expires <= moment


def owned_by(owner: str) -> Select[tuple[str]]:
    """The names of an owner's data sets."""
    return select(Dataset.name).join(Dataset.owner).where(User.name == owner)


def grants_of(user_id: int, dataset: str) -> Select[tuple[Grant]]:
    """A user's grants for a data set, oldest first."""
    return select(Grant).where(Grant.user_id == user_id, Grant.dataset == dataset).order_by(Grant.created, Grant.id)


def checked_quota(quota: int | None) -> int | None:
    """A number of images that makes sense as a bound. Raises UsageError."""
    if quota is not None and not 0 < quota < 2**31:
        raise UsageError(f"{quota} is no number of images to allow.", "A whole number from 1.")
    return quota


def checked_version(version: str | None) -> str | None:
    """A published version's id: `latest` would be another one tomorrow. Raises UsageError."""
    if version is not None and not re.fullmatch(VERSION_PATTERN, version):
        raise UsageError(f"{version[:64]!a} is no version's id.", "It has 16 digits 0-9a-f; `dmcp publish` printed it.")
    return version


def checked_names(names: Sequence[str] | None, what: str) -> list[str] | None:
    """Class names or sample keys, each once and sorted. Raises UsageError when there are none, or one is empty."""
    if names is None:
        return None
    if isinstance(names, str) or not names or not all(names):
        raise UsageError(f"A bound needs at least one {what}, by name.", "Leave it out to bound nothing.")
    return sorted(set(names))


# --- inside ----------------------------------------------------------------------------------------------------------


def _check_bounds(grant: Grant) -> None:
    checked_quota(grant.quota)
    checked_version(grant.version)
    if grant.samples is not None and grant.version is None:
        raise UsageError("Sample keys mean something within one version only.", "Name the version too.")
    if grant.expires is not None and grant.expires <= grant.starts:
        raise UsageError(
            f"A grant that begins on {day(grant.starts)} can not end on {day(grant.expires)}.", "Give a later end."
        )


def _added(session: Session, grant: Grant, actor: str) -> Grant:
    session.add(grant)
    session.flush()
    _grant_entry(session, actor, "grant.create", grant)
    return grant


def _extended(session: Session, held: list[Grant], wanted: Reach, on_top: bool, actor: str) -> Grant | None:
    """The one of these grants that covers what is wanted, extended if need be; None: none can be.

    Where one ends later and the other is for more images, both at once would be more than anybody gave.
    """

    def goal(grant: Grant) -> Reach:
        used = grant.used if on_top else 0
        return Reach(wanted.end, None if wanted.quota is None else used + wanted.quota)

    enough = best([grant for grant in held if Reach(grant.expires, grant.quota).covers(goal(grant))])
    if enough is not None:
        return enough
    less = best([grant for grant in held if goal(grant).covers(Reach(grant.expires, grant.quota))])
    if less is not None:
        less.expires, less.quota = wanted.end, checked_quota(goal(less).quota)
        _grant_entry(session, actor, "grant.extend", less)
    return less


def _grant_entry(session: Session, actor: str, action: str, grant: Grant) -> None:
    bounds = {"version": grant.version, "classes": grant.classes, "quota": grant.quota}
    details = {
        "grant": grant.id,
        "starts": grant.starts,
        "expires": grant.expires,
        **{name: bound for name, bound in bounds.items() if bound is not None},
    }
    if grant.samples is not None:
        details["samples"] = len(grant.samples)
    session.flush()
    audit.append(session, actor=actor, action=action, dataset=grant.dataset, subject=grant.user.name, details=details)
