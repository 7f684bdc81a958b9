"""How the registry's tables came to be what they are: one revision a change, applied in order by Alembic.

    versions/v0001_first_release.py     users with one token each, grants, requests
    versions/v0002_service.py           several tokens, roles, data sets, terms, access requests, bounds, charges, audit
    versions/v0003_housekeeping.py      uploads, submissions, sessions; progress and removal of requests
    versions/v0004_attempts.py          how many workers took a request over, and when it is tried again

`storage/registry_schema.py` calls `upgrade` where an earlier release made the registry; a new registry is made at the
newest schema without any of this. Everything runs on the caller's connection, in the caller's transaction: after a
failure the registry is as it was. There is no way back but a backup: of a SQLite file one is made first, beside it.

For another change of the tables (`storage/registry_models.py`): add `versions/vNNNN_TITLE.py`, name it in
`registry_schema.REVISIONS` and `HEAD`, and let `tests/storage/test_migrations.py` compare the result with the models.
Revisions that were released are never edited.
"""

import os
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, inspect
from sqlalchemy.orm import Session

from storage.database import sqlite_file, utc_now
from storage.registry_schema import HEAD, VERSION_TABLE

_ONE_AT_A_TIME = threading.Lock()  # Alembic's `context` is one for the whole process


def upgrade(connection: Connection, found: str, target: str = HEAD) -> Path | None:
    """Bring tables of the revision `found` to `target`, keeping what they hold.

    Args:
        connection: in a transaction that changes of tables can be made in.
        found: the revision that the tables have.
        target: the revision that they are to have.

    Returns:
        The backup that was made before, of a SQLite file.
    """
    from storage import audit

    backup = _back_up(connection, found)
    settings = config(connection)
    with _ONE_AT_A_TIME:
        if not inspect(connection).has_table(VERSION_TABLE):
            command.stamp(settings, found)
        command.upgrade(settings, target)
    if target == HEAD:
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            details = {"before": found, "schema": target}
            audit.append(session, actor="local", action="registry.upgrade", details=details)
            session.commit()
    return backup


def config(connection: Connection) -> Config:
    """What Alembic needs to know, without a file: where the revisions are, and which connection to use."""
    made = Config()
    made.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    made.attributes["connection"] = connection
    return made


def _back_up(connection: Connection, found: str) -> Path | None:
    """Copy an SQLite file, as it was before this transaction: `registry.db` to `registry.db.0001-20250131T120000Z`."""
    file = sqlite_file(str(connection.engine.url))
    if file is None:
        return None
    path = Path(f"{file}.{found}-{utc_now():%Y%m%dT%H%M%SZ}")
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
    with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(path)) as copy:
        source.backup(copy)
    return path
