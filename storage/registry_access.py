"""The registry's book of access requests: a user asks a data set's owner for a grant, and the owner decides.

open -> approved (a grant is made, or renewed), denied, or withdrawn by the user. A request that was decided stays.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import Enum
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from storage import audit
from storage.database import utc_now
from storage.errors import NotFound, UsageError
from storage.policies import check_enabled, day
from storage.registry_datasets import dataset_named
from storage.registry_grants import (
    GrantBook,
    Reach,
    check_not_revoked,
    checked_names,
    checked_quota,
    checked_version,
    farther,
    grant_by_id,
    is_over,
    lock_grants,
    owned_by,
    renew,
    write_grant,
)
from storage.registry_models import AccessRequest, AccessState, Grant, User
from storage.registry_users import LOCAL, future, id_of, lock_user, user_by_id

REASON_CHARACTERS = 4000
LONGEST_DAYS = 36500


class Wish(Enum):
    """Says that something is decided as it was asked for; None says that there is no bound."""

    AS_ASKED = "as asked"


AS_ASKED = Wish.AS_ASKED


class AccessBook(GrantBook):
    """Access requests."""

    def ask_access(
        self,
        user_id: int,
        dataset: str,
        reason: str,
        *,
        version: str | None = None,
        classes: Sequence[str] | None = None,
        images: int | None = None,
        days: int | None = None,
        renews: int | None = None,
        actor: str = LOCAL,
    ) -> AccessRequest:
        """Ask a data set's owner for a grant.

        Args:
            user_id: who asks.
            dataset: for which data set.
            reason: what for, for the owner to read.
            version: for one published version only.
            classes: for images of these classes only.
            images: for so many images; None: any number.
            days: for so many days from the decision; None: without an end.
            renews: the id of a grant of this user that is to be renewed: until `days` from the decision, and for
                `images` more than are used up; its scope stays.
            actor: who does this, for the audit log.

        Raises:
            NotFound: no such user, data set or grant.
            UsageError: there is no reason, a bound makes no sense, the same is asked for already, or the grant was
                revoked.
            BadToken: the user was shut out.
        """
        reason = reason.strip()
        if not 0 < len(reason) <= REASON_CHARACTERS:
            raise UsageError(f"A reason of 1 to {REASON_CHARACTERS} characters is needed.", "Say what it is for.")
        _check_days(days)
        with self.write() as session:
            lock_user(session, user_id)
            user = check_enabled(user_by_id(session, user_id))
            dataset_named(session, dataset)
            wanted = AccessRequest(
                user_id=user.id,
                dataset=dataset,
                version=checked_version(version),
                classes=checked_names(classes, "class"),
                images=checked_quota(images),
                days=days,
                reason=reason,
                state="open",
                renews=renews,
                created=utc_now(),
            )
            if renews is not None:
                _check_renewable(session, wanted)
            _check_not_asked(session, wanted)
            session.add(wanted)
            session.flush()
            _entry(session, actor, "access.ask", wanted, {"images": images, "days": days, "renews": renews})
            session.refresh(wanted)
        return wanted

    def withdraw_access_request(self, request_id: int, user_id: int, *, actor: str = LOCAL) -> None:
        """Take back what one asked for.

        Raises:
            NotFound: this user made no such request.
            UsageError: it was decided already.
        """
        with self.write() as session:
            request = _request(session, request_id)
            if request.user_id != user_id:
                raise _no_request(request_id)
            _decide(session, request, "withdrawn")
            _entry(session, actor, "access.withdraw", request)

    def approve_access_request(
        self,
        request_id: int,
        *,
        days: int | Wish | None = AS_ASKED,
        expires: datetime | Wish | None = AS_ASKED,
        quota: int | Wish | None = AS_ASKED,
        version: str | Wish | None = AS_ASKED,
        classes: Sequence[str] | Wish | None = AS_ASKED,
        note: str | None = None,
        actor: str = LOCAL,
    ) -> Grant:
        """Give the grant that is asked for (or renew one), as it is asked for but for what is named here.

        Args:
            request_id: which.
            days: for so many days from now; None: without an end. A renewal that is left as asked for never ends a
                grant earlier than it would have ended.
            expires: until when, instead of `days`.
            quota: for so many images; None: any number. Where the user holds a grant of the same scope already it is
                extended, as by `grant`, to so many more than are used up. For a renewal, in all, those used up
                included; one that is left as asked for never makes them fewer.
            version: for one published version only; None: every version. Not for a renewal.
            classes: for images of these classes only; None: all. Not for a renewal.
            note: for the user to read.
            actor: who decides.

        Returns:
            The grant that covers it. Of a renewal it is another than the one to be renewed, of the same scope, where
            that one ends later and what is approved is for more images, or the other way round: both stand then.

        Raises:
            NotFound: no such request.
            UsageError: it was decided already, a bound makes no sense, or the user was shut out.
        """
        with self.write() as session:
            request = _request(session, request_id)
            user = request.user
            if user.disabled:
                raise UsageError(f"{user.name} was shut out.", f"Let them in first: dmcp access enable {user.name}")
            lock_user(session, user.id)
            end = _end(request, days, expires)
            decided_by = id_of(session, actor)
            _decide(session, request, "approved", decided_by, note)
            if request.renews is None:
                grant = write_grant(
                    session,
                    user,
                    request.dataset,
                    end,
                    version=request.version if isinstance(version, Wish) else version,
                    classes=request.classes if isinstance(classes, Wish) else classes,
                    samples=None,
                    quota=request.images if isinstance(quota, Wish) else quota,
                    starts=None,
                    note=note,
                    actor=actor,
                    on_top=True,
                )
            else:
                if not (isinstance(version, Wish) and isinstance(classes, Wish)):
                    raise UsageError("A renewal keeps the scope of its grant.", "Give a new grant for another scope.")
                end_as_asked = isinstance(days, Wish) and isinstance(expires, Wish)
                grant = _renewed(session, request, request.renews, end, end_as_asked, quota, note, actor)
            request.grant_id = grant.id
            session.flush()
            _entry(session, actor, "access.approve", request, {"grant": grant.id})
        return grant

    def deny_access_request(self, request_id: int, note: str | None = None, *, actor: str = LOCAL) -> None:
        """Refuse what is asked for.

        Raises:
            NotFound: no such request.
            UsageError: it was decided already.
        """
        with self.write() as session:
            request = _request(session, request_id)
            _decide(session, request, "denied", id_of(session, actor), note)
            _entry(session, actor, "access.deny", request)

    def list_access_requests(
        self,
        owner: str | None = None,
        user: str | None = None,
        state: AccessState | None = None,
        dataset: str | None = None,
    ) -> Sequence[AccessRequest]:
        """Access requests, newest first.

        Args:
            owner: for the data sets of this owner.
            user: of this user.
            state: in this state.
            dataset: for this data set.
        """
        query = select(AccessRequest).order_by(AccessRequest.id.desc())
        if owner is not None:
            query = query.where(AccessRequest.dataset.in_(owned_by(owner)))
        if user is not None:
            query = query.join(AccessRequest.user).where(User.name == user)
        if state is not None:
            query = query.where(AccessRequest.state == state)
        if dataset is not None:
            query = query.where(AccessRequest.dataset == dataset)
        return self.all(query)

    def get_access_request(self, request_id: int) -> AccessRequest:
        """The access request with this id. Raises NotFound."""
        with self.read() as session:
            return _request(session, request_id)


def _check_days(days: int | None) -> None:
    if days is not None and not 0 < days <= LONGEST_DAYS:
        raise UsageError(f"{days} is no number of days.", f"A whole number from 1 to {LONGEST_DAYS}.")


def _check_renewable(session: Session, wanted: AccessRequest) -> None:
    grant = session.get(Grant, wanted.renews)
    if grant is None or grant.user_id != wanted.user_id or grant.dataset != wanted.dataset:
        raise NotFound(f"There is no grant {wanted.renews} for {wanted.dataset}.", "See your grants.")
    if grant.revoked is not None:
        raise UsageError(f"Grant {grant.id} was revoked on {day(grant.revoked)}.", "Ask for a new one.")
    if wanted.version is not None or wanted.classes is not None:
        raise UsageError("A renewal keeps the scope of its grant.", "Ask for a new grant for another scope.")


def _check_not_asked(session: Session, wanted: AccessRequest) -> None:
    mine = select(AccessRequest).where(
        AccessRequest.user_id == wanted.user_id,
        AccessRequest.dataset == wanted.dataset,
        AccessRequest.state == "open",
    )
    for other in session.scalars(mine):
        if (other.version, other.classes, other.renews) == (wanted.version, wanted.classes, wanted.renews):
            raise UsageError(
                f"The same is asked for already: access request {other.id}.", "Wait for it, or withdraw it first."
            )


def _request(session: Session, request_id: int) -> AccessRequest:
    request = session.get(AccessRequest, request_id)
    if request is None:
        raise _no_request(request_id)
    return request


def _no_request(request_id: int) -> NotFound:
    return NotFound(f"There is no access request {request_id}.", "See `dmcp access requests`.")


def _decide(
    session: Session,
    request: AccessRequest,
    state: AccessState,
    decided_by: int | None = None,
    note: str | None = None,
) -> None:
    """Out of the open state, in one statement that looks and writes: of two who decide at once, one does."""
    change = update(AccessRequest).where(AccessRequest.id == request.id, AccessRequest.state == "open")
    values = {"state": state, "decided": utc_now(), "decided_by": decided_by, "note": note}
    result: Any = session.execute(change.values(values), execution_options={"synchronize_session": False})
    session.refresh(request)
    if not result.rowcount:
        raise UsageError(f"Access request {request.id} is {request.state} already.", "It can not be decided again.")


def _end(request: AccessRequest, days: int | Wish | None, expires: datetime | Wish | None) -> datetime | None:
    """When the grant is to end."""
    if not isinstance(expires, Wish):
        if not isinstance(days, Wish):
            raise UsageError("Days and an end are both given.", "Give one of them.")
        return future(expires, "grant")
    wanted = request.days if isinstance(days, Wish) else days
    _check_days(wanted)
    return None if wanted is None else utc_now() + timedelta(days=wanted)


def _renewed(
    session: Session,
    request: AccessRequest,
    grant_id: int,
    end: datetime | None,
    end_as_asked: bool,
    quota: int | Wish | None,
    note: str | None,
    actor: str,
) -> Grant:
    """Renew a grant; or give what is approved beside it, where both in one would be more than anybody gave."""
    lock_grants(session, request.user_id, request.dataset)
    grant = grant_by_id(session, grant_id)
    check_not_revoked(grant)
    held, approved = Reach(grant.expires, grant.quota), Reach(end, _renewed_quota(request, grant, quota))
    goal = approved
    if not is_over(grant, utc_now()):  # of one that is over there is nothing left to take away
        goal = Reach(
            farther(end, held.end) if end_as_asked else end,
            farther(approved.quota, held.quota) if isinstance(quota, Wish) else approved.quota,
        )
    if approved.covers(goal) or held.covers(goal):
        return renew(session, grant, goal.end, goal.quota, actor)
    return write_grant(
        session,
        request.user,
        request.dataset,
        end,
        version=grant.version,
        classes=grant.classes,
        samples=grant.samples,
        quota=None if approved.quota is None else approved.quota - grant.used,
        starts=grant.starts,
        note=note,
        actor=actor,
        on_top=True,
    )


def _renewed_quota(request: AccessRequest, grant: Grant, quota: int | Wish | None) -> int | None:
    """For how many images in all a grant is to be; where nothing is said, as it is."""
    if not isinstance(quota, Wish):
        return grant.quota if quota is None else quota
    return grant.quota if request.images is None else grant.used + request.images


def _entry(
    session: Session, actor: str, action: str, request: AccessRequest, details: dict[str, Any] | None = None
) -> None:
    more = {name: value for name, value in (details or {}).items() if value is not None}
    audit.append(
        session,
        actor=actor,
        action=action,
        dataset=request.dataset,
        subject=f"{request.user.name if request.user else request.user_id}",
        details={"access_request": request.id, **more},
    )
