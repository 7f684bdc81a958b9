"""The registry: who may have what restored, and what they asked for.

    registry = open_registry(settings())                     # SQLite below HOME, or any SQLAlchemy address
    token = registry.add_user("ann@lab.example")             # shown once; only its SHA-256 is kept
    registry.grant("ann@lab.example", "cifar10", expires)    # again: extends
    user = registry.authenticate(token)                      # BadToken
    registry.check_grant(user.id, "cifar10")                 # NoGrant, GrantExpired, GrantRevoked
    request_id = registry.create_request(user.id, "upload", None, "my-images")
    registry.claim_request(request_id)                       # pending -> running, for one worker only
    registry.set_request_state(request_id, "done", restored=200, refused=3, result="requests/...")

A grant covers one data set until it expires or is revoked. Grants are rows that stay, so that it can be seen later who
could have what when. A request goes pending -> running -> done or failed; `claim_request` is the only way to running.

A token is `dmcp_` and 256 random bits. Nobody can try 2^256 tokens, so a plain SHA-256 is the right hash for them: slow
hashes are for passwords, which people choose. Its first characters are kept in clear, to find the row and to tell a
person which token is meant.

Times are timezone-aware and UTC, in and out, on databases that store no time zone too. What the methods return (`User`,
`Grant`, `Request`) is detached: plain to read, in any thread, with the user's name as `.user.name`.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Select, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from storage.database import as_utc, utc_now
from storage.errors import (
    BadToken,
    EnvironmentFault,
    GrantExpired,
    GrantRevoked,
    NoGrant,
    NotAuthorised,
    NotFound,
    UsageError,
)
from storage.names import check_dataset_name, check_user_name
from storage.registry_models import SCHEMA_VERSION, Base, Grant, Request, Schema, User
from storage.registry_requests import RequestBook, new_request_id
from storage.settings import Settings

__all__ = ["Grant", "Registry", "Request", "User", "new_request_id", "open_registry"]

TOKEN_PREFIX = "dmcp_"
TOKEN_PATTERN = TOKEN_PREFIX + r"[A-Za-z0-9_-]{43}"
SHOWN_CHARACTERS = len(TOKEN_PREFIX) + 8  # kept in clear: 48 of the 256 bits


class Registry(RequestBook):
    """Users, grants and requests in one database. Safe to use from several threads and processes."""

    def __init__(self, url: str) -> None:
        """Connect, and create the tables where there are none.

        Args:
            url: a SQLAlchemy address. SQLite files are made private (mode 0600) and opened in WAL mode.

        Raises:
            SettingsError: no database can be meant by `url`, or its driver is not installed.
            EnvironmentFault: the database is out of reach, or a later release made its tables.
        """
        super().__init__(url, Base.metadata)
        self._check_schema()

    def __enter__(self) -> "Registry":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- users -----------------------------------------------------------------------------------------------------

    def add_user(self, name: str) -> str:
        """Add a user and return the token, which can not be shown again.

        Raises:
            UsageError: the name is taken, or can not name a user.
        """
        check_user_name(name)
        token = _new_token()
        user = User(name=name, created=utc_now(), token_hash=_hash(token), token_prefix=_shown(token), disabled=False)
        try:
            with self.write() as session:
                session.add(user)
        except IntegrityError:
            raise UsageError(f"user exists: {name}.", "Choose another name, or see `dmcp access list`.") from None
        return token

    def rotate_token(self, name: str) -> str:
        """Replace the user's token and return the new one; the old one is worth nothing from now on.

        Raises:
            NotFound: no such user.
        """
        token = _new_token()
        with self.write() as session:
            user = _user(session, name)
            user.token_hash, user.token_prefix = _hash(token), _shown(token)
        return token

    def set_disabled(self, name: str, disabled: bool) -> None:
        """Shut a user out (token and grants stay on record but are worth nothing), or let them in again.

        Raises:
            NotFound: no such user.
        """
        with self.write() as session:
            _user(session, name).disabled = disabled

    def authenticate(self, token: str) -> User:
        """The user whose token this is.

        Raises:
            BadToken: nobody's, withdrawn, or its user is disabled. The message never shows the token.
        """
        found: list[User] = []
        if re.fullmatch(TOKEN_PATTERN, token):
            presented = _hash(token)
            candidates = self.all(select(User).where(User.token_prefix == _shown(token)))
            found = [user for user in candidates if hmac.compare_digest(user.token_hash, presented)]
        if not found:
            raise BadToken(
                "The token is not known.", "Check that all of it was copied, or ask the owner for a new one."
            )
        return _enabled(found[0])

    def get_user(self, name: str) -> User:
        """The user of this name. Raises NotFound."""
        with self.read() as session:
            return _user(session, name)

    def list_users(self) -> Sequence[User]:
        """All users, by name."""
        return self.all(select(User).order_by(User.name))

    # --- grants ----------------------------------------------------------------------------------------------------

    def grant(self, user: str, dataset: str, expires: datetime | None = None) -> Grant:
        """Let a user have a data set restored, until `expires` (timezone-aware) or without an end.

        Doing so again extends the grant in force to the later end; it never shortens one (revoke it for that).

        Returns:
            The grant in force; its `expires` may be later than asked for.

        Raises:
            NotFound: no such user.
            UsageError: the data set's name is none, or `expires` is past or has no time zone.
        """
        check_dataset_name(dataset)
        now, end = utc_now(), None if expires is None else as_utc(expires)
        if end is not None and end <= now:
            raise UsageError(f"A grant can not end in the past ({_day(end)}).", "Give a later date.")
        with self.write() as session:
            owner = _user(session, user)
            best = _best(session.scalars(_grants(owner.id, dataset)).all(), now)
            if best is None:
                best = Grant(user=owner, dataset=dataset, created=now, expires=end)
                session.add(best)
            elif best.expires is not None and (end is None or end > best.expires):
                best.expires = end
        return best

    def revoke(self, user: str, dataset: str) -> None:
        """End the user's grants for a data set now.

        Raises:
            NotFound: no such user, or no grant that is in force.
        """
        now = utc_now()
        with self.write() as session:
            ended = [g for g in session.scalars(_grants(_user(session, user).id, dataset)) if g.in_force(now)]
            for grant in ended:
                grant.revoked = now
        if not ended:
            raise NotFound(f"{user} holds no grant for {dataset} that could be revoked.", "See `dmcp access list`.")

    def check_grant(self, user_id: int, dataset: str, now: datetime | None = None) -> Grant:
        """The user's best grant for a data set: of those in force at `now` (default: this moment), the last to end.

        Raises:
            NoGrant, GrantExpired, GrantRevoked: none is in force; the message names user, data set, date and cure.
            BadToken: the user is disabled.
            NotFound: no such user.
        """
        with self.read() as session:
            user = session.get(User, user_id)
            grants = session.scalars(_grants(user_id, dataset)).all()
        if user is None:
            raise NotFound(f"No user has the id {user_id}.", "See `dmcp access list`.")
        best = _best(grants, utc_now() if now is None else as_utc(now))
        if best is None:
            raise _refusal(user, dataset, grants)
        _enabled(user)
        return best

    def datasets_granted(self, user_id: int, now: datetime | None = None) -> list[str]:
        """The data sets that the user may have restored at `now` (default: this moment), sorted."""
        moment = utc_now() if now is None else as_utc(now)
        grants = self.all(select(Grant).where(Grant.user_id == user_id))
        return sorted({grant.dataset for grant in grants if grant.in_force(moment)})

    def list_grants(self, user: str | None = None, dataset: str | None = None) -> Sequence[Grant]:
        """All grants, those that ended too, by user, data set and time; of one user or data set when named."""
        query = select(Grant).join(Grant.user).order_by(User.name, Grant.dataset, Grant.created, Grant.id)
        if user is not None:
            query = query.where(User.name == user)
        if dataset is not None:
            query = query.where(Grant.dataset == dataset)
        return self.all(query)

    def _check_schema(self) -> None:
        with self.write() as session:
            found = session.scalar(select(Schema.version))
            if found is None:
                session.merge(Schema(version=SCHEMA_VERSION))
        if found is not None and found != SCHEMA_VERSION:
            raise EnvironmentFault(
                f"The registry {self.url} has layout {found}; this release knows layout {SCHEMA_VERSION}.",
                "Use the release that made it.",
            )


def open_registry(settings: Settings) -> Registry:
    """The registry of these settings: DMCP_REGISTRY_URL, or the SQLite file HOME/registry.db."""
    return Registry(settings.registry_url or f"sqlite:///{settings.home_path('registry.db')}")


def _new_token() -> str:
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _shown(token: str) -> str:
    return token[:SHOWN_CHARACTERS]


def _user(session: Session, name: str) -> User:
    user = session.scalars(select(User).where(User.name == name)).one_or_none()
    if user is None:
        raise NotFound(f"There is no user {name[:128]!a}.", "Run: dmcp access add-user NAME")
    return user


def _enabled(user: User) -> User:
    if user.disabled:
        raise BadToken(f"The access of {user.name} was withdrawn.", "Ask the owner of the data set.")
    return user


def _grants(user_id: int, dataset: str) -> Select[tuple[Grant]]:
    return select(Grant).where(Grant.user_id == user_id, Grant.dataset == dataset).order_by(Grant.created, Grant.id)


def _best(grants: Sequence[Grant], moment: datetime) -> Grant | None:
    """Of the grants in force the one that ends last."""
    holding = [grant for grant in grants if grant.in_force(moment)]
    return max(holding, key=lambda grant: (grant.expires is None, grant.expires or grant.created), default=None)


def _refusal(user: User, dataset: str, grants: Sequence[Grant]) -> NotAuthorised:
    """Why none of these grants (oldest first) holds: what became of the latest."""
    cure = f"Its owner can give one: dmcp access grant {user.name} {dataset}"
    latest = grants[-1] if grants else None
    if latest is None:
        return NoGrant(f"{user.name} holds no grant for {dataset}.", cure)
    if latest.revoked is not None:
        return GrantRevoked(f"The grant of {user.name} for {dataset} was revoked on {_day(latest.revoked)}.", cure)
    ended = latest.expires or latest.created
    return GrantExpired(f"The grant of {user.name} for {dataset} expired on {_day(ended)}.", cure)


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
