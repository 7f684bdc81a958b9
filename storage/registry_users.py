"""The registry's book of users and their tokens.

A token is `dmcp_` and 256 random bits. Nobody can try 2^256 tokens, so a plain SHA-256 is the right hash for them: slow
hashes are for passwords, which people choose. Its first characters are kept in clear, to find the row and to tell a
person which token is meant. A user may have several, each with a label and, if wanted, an end.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta

from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from storage import audit
from storage.database import as_utc, utc_now
from storage.errors import BadToken, EnvironmentFault, NotFound, UsageError
from storage.names import check_user_name
from storage.policies import check_enabled, day
from storage.registry_models import ROLES, Role, Token, User
from storage.registry_schema import RegistryDatabase

TOKEN_PREFIX = "dmcp_"
TOKEN_PATTERN = TOKEN_PREFIX + r"[A-Za-z0-9_-]{43}"
SHOWN_CHARACTERS = len(TOKEN_PREFIX) + 8  # kept in clear: 48 of the 256 bits
USED_EVERY = timedelta(minutes=1)
"""`last_used` is no older than this: one write a minute and token, not one a request."""

LOCAL = "local"
"""Who acts when nobody is named: whoever sits at this machine, on the command line."""


class UserBook(RegistryDatabase):
    """Users and tokens."""

    def add_user(self, name: str, role: Role = "user", *, expires: datetime | None = None, actor: str = LOCAL) -> str:
        """Add a user and return their first token, which can not be shown again.

        Args:
            name: the user's name.
            role: `user`; `owner` may own data sets and decide about them; `operator` may do everything.
            expires: until when the token is worth something; None: without an end.
            actor: who does this, for the audit log.

        Raises:
            UsageError: the name is taken or can not name a user, there is no such role, or `expires` is past.
        """
        check_user_name(name)
        _check_role_name(role)
        end = future(expires, "token")
        try:
            with self.write() as session:
                user = User(name=name, role=role, created=utc_now(), disabled=False)
                session.add(user)
                session.flush()
                text, token = _make_token(session, user, "first", end)
                details = {"role": role, "token": token.id}
                audit.append(session, actor=actor, action="user.create", subject=name, details=details)
        except IntegrityError:
            raise UsageError(f"user exists: {name}.", "Choose another name, or see `dmcp access list`.") from None
        return text

    def set_disabled(self, name: str, disabled: bool, *, actor: str = LOCAL) -> None:
        """Shut a user out (tokens and grants stay on record but are worth nothing), or let them in again.

        Raises:
            NotFound: no such user.
        """
        with self.write() as session:
            user = locked_user(session, name)
            if user.disabled != disabled:
                user.disabled = disabled
                audit.append(session, actor=actor, action="user.disable" if disabled else "user.enable", subject=name)

    def set_role(self, name: str, role: Role, *, actor: str = LOCAL) -> None:
        """Give a user another role.

        Raises:
            NotFound: no such user.
            UsageError: no such role.
        """
        _check_role_name(role)
        with self.write() as session:
            user = locked_user(session, name)
            if user.role != role:
                details = {"before": user.role, "role": role}
                user.role = role
                audit.append(session, actor=actor, action="user.role", subject=name, details=details)

    def get_user(self, name: str) -> User:
        """The user of this name. Raises NotFound."""
        with self.read() as session:
            return user_named(session, name)

    def list_users(self) -> Sequence[User]:
        """All users, by name."""
        return self.all(select(User).order_by(User.name))

    # --- tokens ----------------------------------------------------------------------------------------------------

    def add_token(self, name: str, label: str, expires: datetime | None = None, *, actor: str = LOCAL) -> str:
        """Give a user one more token and return it; the others stay.

        Raises:
            NotFound: no such user.
            UsageError: the label is empty or longer than 128 characters, or `expires` is past.
        """
        if not 0 < len(label) <= 128:
            raise UsageError("A token needs a label of 1 to 128 characters.", "Such as the machine that it is for.")
        end = future(expires, "token")
        with self.write() as session:
            user = locked_user(session, name)
            text, token = _make_token(session, user, label, end)
            _token_created(session, actor, token)
        return text

    def rotate_token(self, name: str, *, expires: datetime | None = None, actor: str = LOCAL) -> str:
        """Give a user a new token and return it; all others are worth nothing from now on.

        Raises:
            NotFound: no such user.
            UsageError: `expires` is past.
        """
        end = future(expires, "token")
        with self.write() as session:
            user = locked_user(session, name)
            now = utc_now()
            others = [token for token in _tokens(session, user) if token.revoked is None]
            for token in others:
                token.revoked = now
            text, made = _make_token(session, user, "rotated", end)
            details = {"token": made.id, "label": made.label, "expires": end, "revoked": [o.id for o in others]}
            audit.append(session, actor=actor, action="token.create", subject=name, details=details)
        return text

    def list_tokens(self, name: str) -> Sequence[Token]:
        """A user's tokens, those that are over too, oldest first. Raises NotFound."""
        with self.read() as session:
            return _tokens(session, user_named(session, name))

    def revoke_token(self, token_id: int, *, user_id: int | None = None, actor: str = LOCAL) -> None:
        """End a token now; done again, nothing changes.

        Args:
            token_id: which.
            user_id: only if it is this user's.
            actor: who does this, for the audit log.

        Raises:
            NotFound: no such token (of this user).
        """
        with self.write() as session:
            token = session.get(Token, token_id, with_for_update={"of": Token})
            if token is None or user_id not in (None, token.user_id):
                raise NotFound(f"There is no token {token_id}.", "See `dmcp access tokens USER`.")
            if token.revoked is None:
                token.revoked = utc_now()
                details = {"token": token.id, "label": token.label}
                audit.append(session, actor=actor, action="token.revoke", subject=token.user.name, details=details)

    def authenticate(self, token: str) -> User:
        """The user whose token this is. Raises BadToken, as `authenticated`."""
        return self.authenticated(token).user

    def authenticated(self, token: str) -> Token:
        """The token's own row, with its user: for sessions, which last no longer than the token that they began with.

        Raises:
            BadToken: nobody's, over, withdrawn, or its user is disabled. The message never shows the token.
        """
        found: list[Token] = []
        if re.fullmatch(TOKEN_PATTERN, token):
            presented = _hash(token)
            candidates = self.all(select(Token).where(Token.prefix == _shown(token)))
            found = [candidate for candidate in candidates if hmac.compare_digest(candidate.hash, presented)]
        if not found:
            raise BadToken(
                "The token is not known.", "Check that all of it was copied, or ask the owner for a new one."
            )
        row, now = found[0], utc_now()
        if row.revoked is not None:
            raise BadToken(f"The token was withdrawn on {day(row.revoked)}.", "Use the new one, or ask for one.")
        if row.expires is not None and now >= row.expires:
            raise BadToken(f"The token expired on {day(row.expires)}.", "Ask the owner for a new one.")
        check_enabled(row.user)
        if row.last_used is None or now - row.last_used > USED_EVERY:
            # A note, no more: when the database takes no writes just now, who only looks is let in all the same.
            with suppress(EnvironmentFault), self.write() as session:
                session.execute(update(Token).where(Token.id == row.id).values(last_used=now))
        return row


# --- shared by the other books ---------------------------------------------------------------------------------------


def user_named(session: Session, name: str) -> User:
    """The user of this name. Raises NotFound."""
    user = session.scalars(select(User).where(User.name == name)).one_or_none()
    if user is None:
        raise NotFound(f"There is no user {name[:128]!a}.", "Run: dmcp access add-user NAME")
    return user


def locked_user(session: Session, name: str) -> User:
    """The same, for a transaction that looks first and writes then: of two such for one user, the second waits.

    (SQLite lets one write transaction in at a time anyway.) Rows that refer to the user can still be added meanwhile.
    """
    user = user_named(session, name)
    lock_user(session, user.id)
    session.refresh(user)
    return user


def lock_user(session: Session, user_id: int) -> None:
    """Make other transactions that change what this user has wait until this one ends."""
    session.execute(select(User.id).where(User.id == user_id).with_for_update(key_share=True))


def user_by_id(session: Session, user_id: int) -> User:
    """The user with this id. Raises NotFound."""
    user = session.get(User, user_id)
    if user is None:
        raise NotFound(f"No user has the id {user_id}.", "See `dmcp access list`.")
    return user


def id_of(session: Session, name: str) -> int | None:
    """The id of a user who acts; None for what is no user, such as `local`."""
    return session.scalar(select(User.id).where(User.name == name))


def future(moment: datetime | None, what: str) -> datetime | None:
    """An end in UTC. Raises UsageError when it is past, or has no time zone."""
    end = None if moment is None else as_utc(moment)
    if end is not None and end <= utc_now():
        raise UsageError(f"A {what} can not end in the past ({day(end)}).", "Give a later date.")
    return end


# --- inside ----------------------------------------------------------------------------------------------------------


def _check_role_name(role: str) -> None:
    if role not in ROLES:
        raise UsageError(f"{role[:64]!a} is no role.", f"One of: {', '.join(ROLES)}.")


def _make_token(session: Session, user: User, label: str, expires: datetime | None) -> tuple[str, Token]:
    text = TOKEN_PREFIX + secrets.token_urlsafe(32)
    token = Token(
        user_id=user.id, prefix=_shown(text), hash=_hash(text), label=label, created=utc_now(), expires=expires
    )
    session.add(token)
    session.flush()
    return text, token


def _token_created(session: Session, actor: str, token: Token) -> None:
    details = {"token": token.id, "label": token.label, "expires": token.expires}
    audit.append(session, actor=actor, action="token.create", subject=token.user.name, details=details)


def _tokens(session: Session, user: User) -> Sequence[Token]:
    return session.scalars(select(Token).where(Token.user_id == user.id).order_by(Token.created, Token.id)).all()


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _shown(token: str) -> str:
    return token[:SHOWN_CHARACTERS]
