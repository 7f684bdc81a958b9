"""The table of the audit log, and the triggers that keep accidents away from it.

Every column but `seq` is text, the time too: what is hashed is what is stored, byte for byte, on every database.

The triggers (`create_guards`) refuse to change or remove an entry, and to add one out of order. They are a fence, not
a lock: whoever administers the database can drop them. What shows such a change is the chain and its anchors
(`storage/audit_chain.py`, `storage/audit_checkpoints.py`).
"""

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Integer, String, Text, event, inspect, text
from sqlalchemy.orm import Mapped, mapped_column

from storage.registry_models import Base

TABLE = "audit_entries"
GUARDS = ("audit_entries_no_update", "audit_entries_no_delete", "audit_entries_in_order")


class AuditEntry(Base):
    """One step in the life of a request, a grant, a token or a data set; never changed after it was written."""

    __tablename__ = TABLE

    seq: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    time: Mapped[str] = mapped_column(String(27))
    actor: Mapped[str] = mapped_column(String(160))
    action: Mapped[str] = mapped_column(String(32), index=True)
    dataset: Mapped[str | None] = mapped_column(String(64), index=True)
    request_id: Mapped[str | None] = mapped_column(String(64), index=True)
    subject: Mapped[str] = mapped_column(Text)
    details: Mapped[str] = mapped_column(Text)
    previous: Mapped[str] = mapped_column(String(64))
    hash: Mapped[str] = mapped_column(String(64), unique=True)

    @property
    def moment(self) -> datetime:
        """The time as a datetime, UTC."""
        return datetime.fromisoformat(self.time)

    def __repr__(self) -> str:
        return f"AuditEntry({self.seq}, {self.action!r})"


_SQLITE = {
    "audit_entries_no_update": "BEFORE UPDATE ON audit_entries",
    "audit_entries_no_delete": "BEFORE DELETE ON audit_entries",
    "audit_entries_in_order": (
        "BEFORE INSERT ON audit_entries WHEN NEW.seq <> (SELECT coalesce(max(seq), 0) + 1 FROM audit_entries)"
    ),
}
_POSTGRESQL = (
    """
    CREATE OR REPLACE FUNCTION audit_entries_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_OP = 'INSERT' AND NEW.seq = (SELECT coalesce(max(seq), 0) + 1 FROM audit_entries) THEN
            RETURN NEW;
        END IF;
        RAISE EXCEPTION 'audit_entries is append-only' USING ERRCODE = 'integrity_constraint_violation';
    END $$
    """,
    "CREATE OR REPLACE TRIGGER audit_entries_no_update BEFORE UPDATE ON audit_entries "
    "FOR EACH STATEMENT EXECUTE FUNCTION audit_entries_refuse()",
    "CREATE OR REPLACE TRIGGER audit_entries_no_delete BEFORE DELETE OR TRUNCATE ON audit_entries "
    "FOR EACH STATEMENT EXECUTE FUNCTION audit_entries_refuse()",
    "CREATE OR REPLACE TRIGGER audit_entries_in_order BEFORE INSERT ON audit_entries "
    "FOR EACH ROW EXECUTE FUNCTION audit_entries_refuse()",
)


def create_guards(connection: Connection) -> None:
    """Make the triggers, on SQLite and PostgreSQL (14 or later); again: nothing changes.

    `Base.metadata.create_all` does so by itself when it makes the table; a migration calls this after it made it.
    """
    kind = connection.dialect.name
    if kind == "sqlite":
        for name, when in _SQLITE.items():
            connection.exec_driver_sql(
                f"CREATE TRIGGER IF NOT EXISTS {name} {when} "
                "BEGIN SELECT RAISE(ABORT, 'audit_entries is append-only'); END"
            )
    elif kind == "postgresql":
        for statement in _POSTGRESQL:
            connection.exec_driver_sql(statement)


def drop_guards(connection: Connection) -> None:
    """Remove the triggers: for a migration that goes back, and for tests of what happens without them."""
    kind = connection.dialect.name
    if kind == "sqlite":
        for name in GUARDS:
            connection.exec_driver_sql(f"DROP TRIGGER IF EXISTS {name}")
    elif kind == "postgresql":
        for name in GUARDS:
            connection.exec_driver_sql(f"DROP TRIGGER IF EXISTS {name} ON {TABLE}")
        connection.exec_driver_sql("DROP FUNCTION IF EXISTS audit_entries_refuse()")


def missing_guards(connection: Connection) -> list[str]:
    """The triggers that should be there and are not; on databases that get none: empty."""
    kind = connection.dialect.name
    if kind == "sqlite":
        query = text("SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = :table")
    elif kind == "postgresql":
        query = text("SELECT tgname FROM pg_trigger WHERE tgrelid = to_regclass(:table) AND tgenabled <> 'D'")
    else:
        return []
    found = set(connection.scalars(query, {"table": TABLE}))
    return [name for name in GUARDS if name not in found]


def has_table(connection: Connection) -> bool:
    """Whether the log's table is there."""
    return inspect(connection).has_table(TABLE)


@event.listens_for(AuditEntry.__table__, "after_create")
def _guard_new_table(_: Any, connection: Connection, **__: Any) -> None:
    create_guards(connection)
