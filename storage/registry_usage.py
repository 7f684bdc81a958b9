"""The registry's book of use: may this be restored, and what was.

`authorise` asks the policies of `storage/policies.py` about each grant that the user holds. `charge` counts
the images of a shard against the grant's quota before they are released. `usage` adds up what was charged.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from sqlalchemy import ColumnElement, case, delete, func, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from storage.database import as_utc, utc_now
from storage.errors import GrantRevoked, NoGrant, NotFound, QuotaExceeded, RequestCancelled, UsageError
from storage.policies import Asked, Refusal, best, check_enabled, cure, first_refusal, nearest
from storage.registry_datasets import accepted_version, newest_terms
from storage.registry_grants import GrantBook, grant_by_id, grants_of, owned_by
from storage.registry_models import Charge, Grant, Request, User
from storage.registry_users import user_by_id


@dataclass(frozen=True)
class UsageRow:
    """What one user had restored of one data set on one day (UTC)."""

    day: date
    dataset: str
    user: str
    requests: int
    images: int


class UsageBook(GrantBook):
    """Lets images be restored under a grant, and counts them."""

    def authorise(
        self,
        user_id: int,
        dataset: str,
        *,
        version: str | None = None,
        images: int = 0,
        grant: int | None = None,
        now: datetime | None = None,
    ) -> Grant:
        """The grant under which a user may have images of a data set restored.

        A grant's classes and samples are for whoever restores to check, image by image (`policies.check_image`).

        Args:
            user_id: who.
            dataset: of which data set.
            version: the published version that is requested; None: files of the user's own, or a local folder.
            images: how many are about to be restored; 0: whether it is allowed at all.
            grant: the number of the only grant to look at; None: all that the user holds.
            now: at which moment (default: this one).

        Returns:
            Of the grants that do, the one with the fewest bounds and the most left.

        Raises:
            NoGrant, GrantExpired, GrantRevoked, GrantNotStarted: none is in force; the message says why, and the cure.
            TermsNotAccepted, OutOfScope, QuotaExceeded: one is in force and does not cover this.
            BadToken: the user was shut out.
            NotFound: no such user.
        """
        moment = utc_now() if now is None else as_utc(now)
        with self.read() as session:
            user = check_enabled(user_by_id(session, user_id))
            grants = [g for g in session.scalars(grants_of(user_id, dataset)) if grant in (None, g.id)]
            terms = newest_terms(session, dataset)
            accepted = accepted_version(session, user_id, dataset)
        number = None if terms is None else terms.version
        allowed: list[Grant] = []
        refused: list[tuple[Grant, Refusal]] = []
        for held in grants:
            refusal = first_refusal(Asked(user, dataset, version, images, moment, held, number, accepted))
            if refusal is None:
                allowed.append(held)
            else:
                refused.append((held, refusal))
        chosen = best(allowed)
        if chosen is not None:
            return chosen
        if not refused:
            raise NoGrant(f"{user.name} holds no grant for {dataset}.", cure(user, dataset))
        raise nearest(refused, moment)

    def charge(self, request_id: str, shard: int, grant_id: int, images: int) -> None:
        """Count the images of one shard of a request against a grant, before they are released.

        One request, shard and data set is one charge. Restored again under the same grant, it costs nothing, or what
        came back more than before; under another one, the charge moves: the old grant gets its images back, and the
        new one is charged all of them. Of many charges at once, as many succeed as the quota allows.

        Raises:
            RequestCancelled: the request was cancelled, and what it was charged is given back.
            QuotaExceeded: they are more than is left; nothing changes.
            GrantRevoked: the grant was revoked meanwhile.
            NotFound: no such request or grant.
            UsageError: a negative number of images.
        """
        if images < 0:
            raise UsageError(f"{images} images can not be charged.")
        with self.read() as session:
            dataset = grant_by_id(session, grant_id).dataset
        try:
            self._charge(request_id, shard, dataset, grant_id, images)
        except IntegrityError:  # another charged it at the same time; or there is no such request
            try:
                self._charge(request_id, shard, dataset, grant_id, images)
            except IntegrityError:
                raise NotFound(f"There is no request {request_id[:64]!a}.", "Make the request first.") from None

    def _charge(self, request_id: str, shard: int, dataset: str, grant_id: int, images: int) -> None:
        with self.write() as session:
            # Whoever cancels it now waits for this, or is waited for: nothing is charged after it was given back.
            state = session.scalar(select(Request.state).where(Request.id == request_id).with_for_update(read=True))
            if state == "cancelled":
                raise RequestCancelled(f"Request {request_id} was cancelled.", "Make a new one if it is still wanted.")
            charge = session.get(Charge, (request_id, shard, dataset), with_for_update=True)
            if charge is None:
                charge = Charge(request_id=request_id, shard=shard, dataset=dataset, grant_id=grant_id, images=images)
                charge.time = utc_now()
                session.add(charge)
                session.flush()
                _use(session, grant_id, images)
            elif charge.grant_id != grant_id:
                _move(session, charge, grant_id, images)
            elif images > charge.images:
                _use(session, grant_id, images - charge.images)
                charge.images = images

    def charge_of(self, request_id: str, shard: int, dataset: str) -> Charge | None:
        """What was charged for a data set's images in this shard of this request; None: nothing yet."""
        with self.read() as session:
            return session.get(Charge, (request_id, shard, dataset))

    def charged(self, request_id: str, dataset: str | None = None) -> int:
        """How many images were charged for a request so far; of one data set when named."""
        query = select(func.coalesce(func.sum(Charge.images), 0)).where(Charge.request_id == request_id)
        if dataset is not None:
            query = query.where(Charge.dataset == dataset)
        with self.read() as session:
            return int(session.scalar(query) or 0)

    def usage(
        self, owner: str | None = None, dataset: str | None = None, since: datetime | None = None
    ) -> Sequence[UsageRow]:
        """Images and requests that were charged, by day, data set and user.

        A request that ran past midnight counts on both days.

        Args:
            owner: of the data sets of this owner.
            dataset: of this data set.
            since: from this moment on.
        """
        day = self._day(Charge.time)
        query = (
            select(day, Charge.dataset, User.name, func.count(Charge.request_id.distinct()), func.sum(Charge.images))
            .join(Grant, Charge.grant_id == Grant.id)
            .join(User, Grant.user_id == User.id)
            .group_by(day, Charge.dataset, User.name)
            .order_by(day, Charge.dataset, User.name)
        )
        if owner is not None:
            query = query.where(Charge.dataset.in_(owned_by(owner)))
        if dataset is not None:
            query = query.where(Charge.dataset == dataset)
        if since is not None:
            query = query.where(Charge.time >= as_utc(since))
        with self.read() as session:
            found = session.execute(query).all()
        return [UsageRow(_as_date(when), name, user, count, images) for when, name, user, count, images in found]

    def _day(self, moment: Any) -> ColumnElement[Any]:
        if self._engine.dialect.name == "postgresql":
            moment = func.timezone("UTC", moment)  # else the day of the session's time zone
        return func.date(moment)


def give_back(session: Session, request_id: str) -> int:
    """Take back all that a request was charged, which nobody can have any more; how many images.

    The grants are locked by number, as by `_move`.
    """
    mine = Charge.request_id == request_id
    sums = select(Charge.grant_id, func.sum(Charge.images)).where(mine).group_by(Charge.grant_id)
    charged = session.execute(sums.order_by(Charge.grant_id)).all()
    for grant_id, images in charged:
        _return(session, grant_id, images)
    session.execute(delete(Charge).where(mine), execution_options={"synchronize_session": False})
    return sum(int(images) for _, images in charged)


def _move(session: Session, charge: Charge, grant_id: int, images: int) -> None:
    """Charge another grant instead; the grants are locked by number, so that two that cross do not lock each other."""
    both = select(Grant.id).where(Grant.id.in_((charge.grant_id, grant_id))).order_by(Grant.id)
    session.execute(both.with_for_update(key_share=True))
    _return(session, charge.grant_id, charge.images)
    _use(session, grant_id, images)
    charge.grant_id, charge.images = grant_id, images


def _return(session: Session, grant_id: int, images: int) -> None:
    rest = case((Grant.used > images, Grant.used - images), else_=0)
    change = update(Grant).where(Grant.id == grant_id).values(used=rest)
    session.execute(change, execution_options={"synchronize_session": False})


def _use(session: Session, grant_id: int, images: int) -> None:
    """Add to what is used up, in one statement that looks and writes: no two can both take the last image."""
    room = or_(Grant.quota.is_(None), Grant.used + images <= Grant.quota)
    change = update(Grant).where(Grant.id == grant_id, Grant.revoked.is_(None), room)
    result = session.execute(change.values(used=Grant.used + images), execution_options={"synchronize_session": False})
    if getattr(result, "rowcount", 0):
        return
    grant = grant_by_id(session, grant_id)
    if grant.revoked is not None:
        raise GrantRevoked(f"Grant {grant_id} of {grant.user.name} for {grant.dataset} was revoked.", "Ask its owner.")
    raise QuotaExceeded(
        f"The grant of {grant.user.name} for {grant.dataset} allows {grant.quota:,} images, of which {grant.left:,} "
        f"are left; {images:,} are asked for.",
        "Request fewer images, or ask the owner for more.",
    )


def _as_date(value: date | str) -> date:
    return date.fromisoformat(value) if isinstance(value, str) else value
