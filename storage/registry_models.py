"""The registry's tables: users, tokens, sessions, data sets and terms, grants, requests, uploads, and what was charged.

The audit log's table is in `storage/audit_models.py`. A change of any of them takes a migration, see
`storage/migrations/__init__.py`; a test compares both.
"""

from datetime import datetime
from typing import Literal, get_args

from sqlalchemy import JSON, BigInteger, Boolean, ForeignKey, Index, Integer, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from storage.database import UtcDateTime

Role = Literal["user", "owner", "operator"]
Kind = Literal["upload", "published", "variant"]
State = Literal["pending", "running", "done", "failed", "cancelled"]
AccessState = Literal["open", "approved", "denied", "withdrawn"]
ROLES: tuple[Role, ...] = get_args(Role)
KINDS: tuple[Kind, ...] = get_args(Kind)
STATES: tuple[State, ...] = get_args(State)
ACCESS_STATES: tuple[AccessState, ...] = get_args(AccessState)


class Base(DeclarativeBase):
    """Root of the tables."""

    type_annotation_map = {datetime: UtcDateTime}  # noqa: RUF012 - SQLAlchemy's own way


class Schema(Base):
    """One row: the layout that these tables have. The first release looks here, and only here, before it writes."""

    __tablename__ = "registry_schema"

    version: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)


# --- users -----------------------------------------------------------------------------------------------------------


class User(Base):
    """Someone who may hold tokens and grants and make requests, own data sets, or operate the service."""

    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(128), unique=True)
    role: Mapped[str] = mapped_column(String(16), default="user")
    created: Mapped[datetime]
    disabled: Mapped[bool] = mapped_column(Boolean, default=False)

    def __repr__(self) -> str:
        return f"User({self.id}, {self.name!r}, {self.role})"


class Token(Base):
    """One of a user's tokens; of the token itself only a hash and its first characters are kept."""

    __tablename__ = "tokens"

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), index=True)
    prefix: Mapped[str] = mapped_column(String(16), index=True)
    hash: Mapped[str] = mapped_column(String(64))
    label: Mapped[str] = mapped_column(String(128))
    created: Mapped[datetime]
    expires: Mapped[datetime | None]
    revoked: Mapped[datetime | None]
    last_used: Mapped[datetime | None]

    user: Mapped[User] = relationship(lazy="joined", innerjoin=True)

    def in_force(self, moment: datetime) -> bool:
        """Whether this token is worth anything at `moment`."""
        return self.revoked is None and (self.expires is None or moment < self.expires)

    def __repr__(self) -> str:
        return f"Token({self.id}, user {self.user_id}, {self.prefix}...)"


# --- data sets -------------------------------------------------------------------------------------------------------


class Dataset(Base):
    """A data set and who decides about it."""

    __tablename__ = "datasets"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    owner_id: Mapped[int] = mapped_column(ForeignKey("users.id"), index=True)
    title: Mapped[str] = mapped_column(Text, default="")
    description: Mapped[str] = mapped_column(Text, default="")
    created: Mapped[datetime]

    owner: Mapped[User] = relationship(lazy="joined", innerjoin=True)

    def __repr__(self) -> str:
        return f"Dataset({self.name!r}, owner {self.owner_id})"


class Terms(Base):
    """One version of a data set's terms of use; the one with the highest number counts."""

    __tablename__ = "terms"

    id: Mapped[int] = mapped_column(primary_key=True)
    dataset: Mapped[str] = mapped_column(ForeignKey("datasets.name"))
    version: Mapped[int] = mapped_column(Integer)
    text: Mapped[str] = mapped_column(Text)
    created: Mapped[datetime]

    __table_args__ = (UniqueConstraint("dataset", "version", name="terms_version"),)

    def __repr__(self) -> str:
        return f"Terms({self.dataset!r}, version {self.version})"


class Acceptance(Base):
    """A user accepted one version of a data set's terms."""

    __tablename__ = "acceptances"

    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), primary_key=True)
    terms_id: Mapped[int] = mapped_column(ForeignKey("terms.id"), primary_key=True)
    accepted: Mapped[datetime]


# --- access ----------------------------------------------------------------------------------------------------------


class AccessRequest(Base):
    """A user asks a data set's owner for a grant, or for more of one (`renews`)."""

    __tablename__ = "access_requests"

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), index=True)
    dataset: Mapped[str] = mapped_column(ForeignKey("datasets.name"), index=True)
    version: Mapped[str | None] = mapped_column(String(64))
    classes: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    images: Mapped[int | None] = mapped_column(Integer)
    days: Mapped[int | None] = mapped_column(Integer)
    reason: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(String(16), index=True)
    renews: Mapped[int | None] = mapped_column(ForeignKey("grants.id"))
    created: Mapped[datetime]
    decided: Mapped[datetime | None]
    decided_by: Mapped[int | None] = mapped_column(ForeignKey("users.id"))
    note: Mapped[str | None] = mapped_column(Text)
    grant_id: Mapped[int | None] = mapped_column(ForeignKey("grants.id"))

    user: Mapped[User] = relationship(lazy="joined", innerjoin=True, foreign_keys=[user_id])

    def __repr__(self) -> str:
        return f"AccessRequest({self.id}, user {self.user_id}, {self.dataset!r}, {self.state})"


class Grant(Base):
    """One user may have a data set restored, or the part of it that `version`, `classes` and `samples` leave.

    It holds from `starts` until `expires` or `revoked` (None: no end), for `quota` images in all (None: no limit), of
    which `used` are used up.
    """

    __tablename__ = "grants"

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    dataset: Mapped[str] = mapped_column(String(64))
    version: Mapped[str | None] = mapped_column(String(64))
    classes: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    samples: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    quota: Mapped[int | None] = mapped_column(Integer)
    used: Mapped[int] = mapped_column(Integer, default=0)
    starts: Mapped[datetime]
    created: Mapped[datetime]
    expires: Mapped[datetime | None]
    revoked: Mapped[datetime | None]
    granted_by: Mapped[int | None] = mapped_column(ForeignKey("users.id"))
    note: Mapped[str | None] = mapped_column(Text)

    user: Mapped[User] = relationship(lazy="joined", innerjoin=True, foreign_keys=[user_id])

    __table_args__ = (Index("grants_of", "user_id", "dataset"),)

    def in_force(self, moment: datetime) -> bool:
        """Whether this grant holds at `moment`; it does not at the very moment it expires."""
        return self.revoked is None and self.starts <= moment and (self.expires is None or moment < self.expires)

    @property
    def left(self) -> int | None:
        """How many images may still be restored under it; None: any number."""
        return None if self.quota is None else max(0, self.quota - self.used)

    @property
    def scope(self) -> tuple[str | None, tuple[str, ...] | None, tuple[str, ...] | None]:
        """What it covers, in a form to compare: version, classes, sample keys; None is no bound."""
        classes = None if self.classes is None else tuple(sorted(self.classes))
        return self.version, classes, None if self.samples is None else tuple(sorted(self.samples))

    def __repr__(self) -> str:
        return f"Grant({self.id}, user {self.user_id}, {self.dataset!r})"


# --- restore requests ------------------------------------------------------------------------------------------------


class Request(Base):
    """One restore request: who asked for what, how far it is, and where the result lies.

    `attempt` goes up with each worker that takes it, and when it is tried again after it failed: what a worker writes
    under an older attempt is refused. `takeovers` counts the workers that took it since it was made or last tried
    again. A pending one that something was in the way of is not `due` for another worker before that moment.
    `heartbeat` is when the worker last gave a sign of life, `progressed` when it last got on. `grant_id` is the grant
    that it was admitted under. `input_removed` and `removed` are since when its input, and all that lay in the bucket
    of it, may not be had any more; `cleared`: nothing lies there any more. `subset` may be long, and whoever serves a
    request reads it from the input's index: here it is loaded when it is asked for within a session, not with every
    row.
    """

    __tablename__ = "requests"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), index=True)
    kind: Mapped[str] = mapped_column(String(16))
    dataset: Mapped[str | None] = mapped_column(String(64))
    source: Mapped[str] = mapped_column(Text)
    subset: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True), deferred=True)
    state: Mapped[str] = mapped_column(String(16), index=True)
    created: Mapped[datetime]
    started: Mapped[datetime | None]
    finished: Mapped[datetime | None]
    images: Mapped[int] = mapped_column(Integer, default=0)
    restored: Mapped[int] = mapped_column(Integer, default=0)
    refused: Mapped[int] = mapped_column(Integer, default=0)
    message: Mapped[str | None] = mapped_column(Text)
    result: Mapped[str | None] = mapped_column(Text)
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    takeovers: Mapped[int] = mapped_column(Integer, default=0)
    due: Mapped[datetime | None]
    heartbeat: Mapped[datetime | None]
    grant_id: Mapped[int | None] = mapped_column(ForeignKey("grants.id"))
    progressed: Mapped[datetime | None]
    input_removed: Mapped[datetime | None]
    removed: Mapped[datetime | None]
    cleared: Mapped[datetime | None]

    user: Mapped[User] = relationship(lazy="joined", innerjoin=True)

    def __repr__(self) -> str:
        return f"Request({self.id}, {self.kind}, {self.state})"


class Charge(Base):
    """The images of one data set in one shard of a request, counted once, however often the shard is restored."""

    __tablename__ = "charges"

    request_id: Mapped[str] = mapped_column(ForeignKey("requests.id"), primary_key=True)
    shard: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    dataset: Mapped[str] = mapped_column(String(64), primary_key=True)
    grant_id: Mapped[int] = mapped_column(ForeignKey("grants.id"), index=True)
    images: Mapped[int] = mapped_column(Integer)
    time: Mapped[datetime] = mapped_column(index=True)


# --- what comes in, and who is logged in -----------------------------------------------------------------------------


class Upload(Base):
    """An address of the object store that was handed out, for one file of so many bytes; `used` once it was restored.

    The row stays as long as the address is good, or the file waits: that is what a user's are counted by.
    """

    __tablename__ = "uploads"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), index=True)
    bytes: Mapped[int] = mapped_column(BigInteger)
    created: Mapped[datetime]
    expires: Mapped[datetime]
    used: Mapped[datetime | None]

    def __repr__(self) -> str:
        return f"Upload({self.id}, user {self.user_id})"


class Submission(Base):
    """Someone is handing in the request of this id, made of an idempotency key; taken for dead after `until`."""

    __tablename__ = "submissions"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    holder: Mapped[str] = mapped_column(String(32))
    until: Mapped[datetime]


class PageSession(Base):
    """A session of the pages: `id` is the SHA-256 of what stands in the cookie. Logging out removes the row."""

    __tablename__ = "page_sessions"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    token_id: Mapped[int] = mapped_column(ForeignKey("tokens.id"), index=True)
    created: Mapped[datetime]
    expires: Mapped[datetime] = mapped_column(index=True)
