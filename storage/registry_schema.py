"""The registry's database: made at the newest schema, or brought there, or refused.

    RegistryDatabase(url)                    # a new one is made; one of an earlier release is refused, with the cure
    RegistryDatabase(url, migrate=True)      # and is upgraded here (DMCP_MIGRATE=1, `dmcp registry upgrade`)

The schema's revision stands in the table `registry_revision`: Alembic's, by a name that MLflow and Prefect do not use.
Opening reads that one row and nothing else when it is the newest: the registry is opened for every shard, and Alembic
is imported only to upgrade. The first release had no such row but a layout number in `registry_schema`; that table
stays, with a number that the first release refuses, so that it does not take an upgraded registry for one of its own.

Everything that makes or changes tables happens in one transaction, one process at a time: of two that meet, the second
finds the work done. After a failure, or a kill, everything is as it was.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from storage import audit_models  # noqa: F401 - the audit log's table belongs to the same schema
from storage.database import Database, sqlite_file
from storage.errors import EnvironmentFault
from storage.registry_models import Base

VERSION_TABLE = "registry_revision"
HEAD = "0004"
FIRST = "0001"
REVISIONS = (FIRST, "0002", "0003", HEAD)
LAYOUT = 2
"""What stands in `registry_schema`, for the first release to read; it knows layout 1 only."""

_POSTGRESQL_LOCK = 0x646D6370736368  # "dmcpsch"


@dataclass(frozen=True)
class SchemaState:
    """Which revision a registry has, and which this release wants. `found` None: there are no tables yet."""

    found: str | None
    url: str
    head: str = HEAD

    @property
    def newest(self) -> bool:
        """Whether nothing needs to be done."""
        return self.found == self.head

    @property
    def upgradable(self) -> bool:
        """Whether an earlier release made it."""
        return not self.newest and self.found in REVISIONS


def schema_state(url: str) -> SchemaState:
    """What is at this address; nothing is made or changed, a SQLite file is not even created.

    Raises:
        SettingsError, EnvironmentFault: no database can be meant by it, or it is out of reach.
    """
    file = sqlite_file(url)
    if file is not None and not file.exists():
        return SchemaState(None, url)
    database = Database(url)
    try:
        with database.read() as session:
            return SchemaState(revision_of(session.connection()), database.url)
    finally:
        database.close()


class RegistryDatabase(Database):
    """The database that registry and audit log share, at this release's schema."""

    def __init__(self, url: str, *, migrate: bool = False) -> None:
        """Connect, and make the tables where there are none.

        Args:
            url: a SQLAlchemy address. SQLite files are made private (mode 0600) and opened in WAL mode.
            migrate: upgrade what an earlier release made, instead of refusing it.

        Raises:
            SettingsError: no database can be meant by `url`, or its driver is not installed.
            EnvironmentFault: the database is out of reach, or an earlier or a later release made its tables.
        """
        super().__init__(url)
        if self._revision() != HEAD:
            with self._reported():
                self._prepare(migrate)

    def schema(self) -> SchemaState:
        """The revision that the tables have."""
        return SchemaState(self._revision(), self.url)

    def _revision(self) -> str | None:
        """What stands in `registry_revision`; None when it is missing, or can not be read for whatever reason."""
        try:
            with self._engine.connect() as connection:
                return connection.scalar(text("SELECT version_num FROM registry_revision"))
        except (SQLAlchemyError, sqlite3.Error):
            return None

    @retry(
        # SQLite refuses at once, not after the wait asked for, while another process sets up the same new file.
        retry=retry_if_exception_type((DBAPIError, sqlite3.OperationalError)),
        wait=wait_random_exponential(0.05, max=1),
        stop=stop_after_attempt(5),
        reraise=True,
    )
    def _prepare(self, migrate: bool) -> None:
        with self._alone() as connection:
            found = revision_of(connection)
            if found is None:
                self._refuse_foreign(connection)
                create(connection)
            elif found not in REVISIONS:
                raise EnvironmentFault(
                    f"The registry {self.url} has schema {found}, which a later release made; this one knows {HEAD}.",
                    "Use that release, or restore the backup that was made before it.",
                )
            elif found != HEAD:
                if not migrate:
                    raise _outdated(self.url, found)
                from storage.migrations import upgrade

                upgrade(connection, found)

    @contextmanager
    def _alone(self) -> Iterator[Connection]:
        """A transaction that nobody else changes tables beside."""
        sqlite = self._engine.dialect.name == "sqlite"
        with self._writing.connect() as connection:
            if sqlite:  # a table is changed by replacing it, whatever refers to it; afterwards all is checked
                connection.connection.execute("PRAGMA foreign_keys=OFF").close()
            try:
                with connection.begin():
                    if self._engine.dialect.name == "postgresql":
                        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _POSTGRESQL_LOCK})
                    yield connection
                    if sqlite and connection.execute(text("PRAGMA foreign_key_check")).first() is not None:
                        raise EnvironmentFault(
                            f"In the registry {self.url}, rows refer to others that are not there.",
                            "Nothing was changed. Restore a backup, or remove those rows.",
                        )
            finally:
                if sqlite:
                    connection.connection.execute("PRAGMA foreign_keys=ON").close()

    def _refuse_foreign(self, connection: Connection) -> None:
        taken = sorted(set(inspect(connection).get_table_names()) & set(Base.metadata.tables))
        if taken:
            raise EnvironmentFault(
                f"The database {self.url} holds tables that are not a registry's: {', '.join(taken)}.",
                "Give the registry a database (or, on PostgreSQL, a schema) of its own.",
            )


def revision_of(connection: Connection) -> str | None:
    """The revision of the tables behind this connection; None: there are none of a registry."""
    tables = set(inspect(connection).get_table_names())
    if "registry_revision" in tables:
        return connection.scalar(text("SELECT version_num FROM registry_revision"))
    if "registry_schema" in tables:  # the first release's, which had no registry_revision
        layout = connection.scalar(text("SELECT version FROM registry_schema"))
        return FIRST if layout in (None, 1) else f"layout {layout}"
    return None


def create(connection: Connection) -> None:
    """All tables, at the newest schema."""
    Base.metadata.create_all(connection)
    connection.execute(text("CREATE TABLE registry_revision (version_num VARCHAR(32) NOT NULL PRIMARY KEY)"))
    connection.execute(text("INSERT INTO registry_revision (version_num) VALUES (:head)"), {"head": HEAD})
    connection.execute(text("INSERT INTO registry_schema (version) VALUES (:layout)"), {"layout": LAYOUT})


def _outdated(url: str, found: str) -> EnvironmentFault:
    return EnvironmentFault(
        f"The registry {url} has schema {found}, which an earlier release made; this one needs {HEAD}.",
        "Back it up, stop whatever uses it, then run: dmcp registry upgrade (or set DMCP_MIGRATE=1).",
    )
