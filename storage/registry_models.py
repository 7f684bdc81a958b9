"""The registry's tables: users, grants and restore requests, and the version of this layout."""

from datetime import datetime
from typing import Literal, get_args

from sqlalchemy import JSON, Boolean, ForeignKey, Index, Integer, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from storage.database import UtcDateTime

SCHEMA_VERSION = 1

Kind = Literal["upload", "published", "variant"]
State = Literal["pending", "running", "done", "failed"]
KINDS: tuple[Kind, ...] = get_args(Kind)
STATES: tuple[State, ...] = get_args(State)


class Base(DeclarativeBase):
    """Root of the tables."""

    type_annotation_map = {datetime: UtcDateTime}  # noqa: RUF012 - SQLAlchemy's own way


class Schema(Base):
    """One row: the layout that these tables have, so that a later release knows what to change."""

    __tablename__ = "registry_schema"

    version: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)


class User(Base):
    """Someone who may hold grants and make requests. Of the token only a hash and its first characters are kept."""

    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(128), unique=True)
    created: Mapped[datetime]
    token_hash: Mapped[str] = mapped_column(String(64))
    token_prefix: Mapped[str] = mapped_column(String(16), index=True)
    disabled: Mapped[bool] = mapped_column(Boolean, default=False)

    def __repr__(self) -> str:
        return f"User({self.id}, {self.name!r})"


class Grant(Base):
    """One user may have one data set restored, from `created` until `expires` or `revoked` (None: no end)."""

    __tablename__ = "grants"

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    dataset: Mapped[str] = mapped_column(String(64))
    created: Mapped[datetime]
    expires: Mapped[datetime | None]
    revoked: Mapped[datetime | None]

    user: Mapped[User] = relationship(lazy="joined", innerjoin=True)

    __table_args__ = (Index("grants_of", "user_id", "dataset"),)

    def in_force(self, moment: datetime) -> bool:
        """Whether this grant holds at `moment`; it does not at the very moment it expires."""
        return self.revoked is None and (self.expires is None or moment < self.expires)

    def __repr__(self) -> str:
        return f"Grant({self.id}, user {self.user_id}, {self.dataset!r})"


class Request(Base):
    """One restore request: who asked for what, how far it is, and where the result lies."""

    __tablename__ = "requests"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), index=True)
    kind: Mapped[str] = mapped_column(String(16))
    dataset: Mapped[str | None] = mapped_column(String(64))
    source: Mapped[str] = mapped_column(Text)
    subset: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    state: Mapped[str] = mapped_column(String(16), index=True)
    created: Mapped[datetime]
    started: Mapped[datetime | None]
    finished: Mapped[datetime | None]
    images: Mapped[int] = mapped_column(Integer, default=0)
    restored: Mapped[int] = mapped_column(Integer, default=0)
    refused: Mapped[int] = mapped_column(Integer, default=0)
    message: Mapped[str | None] = mapped_column(Text)
    result: Mapped[str | None] = mapped_column(Text)

    user: Mapped[User] = relationship(lazy="joined", innerjoin=True)

    def __repr__(self) -> str:
        return f"Request({self.id}, {self.kind}, {self.state})"
