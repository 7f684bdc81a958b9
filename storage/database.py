"""A relational database behind short, closed sessions: SQLite set up for many processes, or any SQLAlchemy address."""

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL, DateTime, Dialect, Engine, Select, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session
from sqlalchemy.types import TypeDecorator

from storage.errors import EnvironmentFault, SettingsError, UsageError

BUSY_SECONDS = 30

Row = TypeVar("Row")


class UtcDateTime(TypeDecorator[datetime]):
    """A timezone-aware time, UTC in and out. SQLite and MySQL drop the time zone, so it is put back here."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To UTC, before it is written."""
        return None if value is None else as_utc(value)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To UTC, as it was read."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def as_utc(moment: datetime) -> datetime:
    """The same moment in UTC. Raises UsageError when it has no time zone: it could be any of 24 moments."""
    if moment.tzinfo is None:
        raise UsageError(f"The time {moment.isoformat()} has no time zone.", "Add one, such as +00:00.")
    return moment.astimezone(UTC)


def utc_now() -> datetime:
    """This moment, timezone-aware."""
    return datetime.now(UTC)


class Database:
    """The database at one address. Sessions are short, and closed whatever happens."""

    def __init__(self, url: str) -> None:
        """Get ready to connect; a file is made where there is none.

        Raises:
            SettingsError: no database can be meant by `url`, or its driver is not installed.
            EnvironmentFault: the database is out of reach.
        """
        self._engine = _engine(url)
        # A second engine over the same connections, whose transactions take SQLite's write lock when they begin:
        # one that reads first and asks for the lock later is refused at once when another writes in between.
        self._writing = self._engine.execution_options(writes=True)

    @property
    def url(self) -> str:
        """The address, without its password."""
        return self._engine.url.render_as_string(hide_password=True)

    def close(self) -> None:
        """Close all connections; new ones open when the database is used again."""
        self._engine.dispose()

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session to read in; what it loads stays readable afterwards."""
        with self._reported(), Session(self._engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session whose changes are committed together at the end, or not at all after an error.

        Raises:
            sqlalchemy.exc.IntegrityError: as it is, for the caller knows what was not unique.
            EnvironmentFault: the database refused or is out of reach.
        """
        with self._reported(), Session(self._writing, expire_on_commit=False) as session, session.begin():
            yield session

    def all(self, query: Select[tuple[Row]]) -> Sequence[Row]:
        """Everything a query selects, read and detached."""
        with self.read() as session:
            return session.scalars(query).all()

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError:
            raise
        except (SQLAlchemyError, sqlite3.Error) as error:
            reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
            raise EnvironmentFault(
                f"The database {self.url} can not be used: {reason}.",
                "Check DMCP_REGISTRY_URL, the database's state and its disk.",
            ) from error


def _pool(url: URL) -> dict[str, Any]:
    """How connections are kept: as many as the gateway has threads, since opening one costs more than a query."""
    if url.get_backend_name() == "sqlite":
        in_memory = not url.database or url.database == ":memory:"
        return {} if in_memory else {"pool_size": 40, "max_overflow": 20}
    # A server has few for all; it may have restarted since a connection was last used, which a file may not.
    return {"pool_size": 10, "max_overflow": 30, "pool_pre_ping": True}


def _engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
        engine = create_engine(parsed, **_pool(parsed))
    except (ArgumentError, ImportError) as error:
        # Not the address itself: it may hold a password.
        reason = str(error) if isinstance(error, ImportError) else "it names no database"
        raise SettingsError(
            f"DMCP_REGISTRY_URL can not be used: {reason}.",
            "Give a SQLAlchemy address such as postgresql+psycopg://user@host/db and install its driver.",
        ) from None
    if parsed.get_backend_name() == "sqlite":
        file = sqlite_file(url)
        if file is not None:
            _make_private(file)
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def sqlite_file(url: str) -> Path | None:
    """The file that holds the database of this address; None: it is not a SQLite file."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        return None
    if parsed.get_backend_name() != "sqlite" or not parsed.database or parsed.database == ":memory:":
        return None
    return Path(parsed.database)


def _make_private(path: Path) -> None:
    """Make an SQLite file, readable by its owner only from its first moment (its journals inherit that).

    One that is there is not even opened: to close any handle of a file ends all locks that this process has on it, so
    those of SQLite's open connections too, and then another process takes itself for the last one and removes their
    journal.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except OSError as error:
        raise EnvironmentFault(
            f"{path} can not be written: {error.strerror}.", "Check its folder and owner."
        ) from error


def _configure_sqlite(connection: sqlite3.Connection, _: object) -> None:
    connection.isolation_level = None  # the driver would begin transactions later than asked to
    for pragma in (f"busy_timeout={BUSY_SECONDS * 1000}", "journal_mode=WAL", "foreign_keys=ON", "synchronous=FULL"):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_sqlite(connection: Any) -> None:
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
