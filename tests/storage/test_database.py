"""A SQLite file that is opened again and again in one process, while others come and go."""

import subprocess
import sys
from pathlib import Path

from sqlalchemy import text

from storage.database import Database

VISIT = """
import sys
from sqlalchemy import text
from storage.database import Database
database = Database(sys.argv[1])
with database.write() as session:
    session.execute(text("INSERT INTO notes VALUES ('visitor')"))
database.close()
"""


def visit(url: str) -> None:
    """Another process writes a row, and closes the file."""
    subprocess.run([sys.executable, "-c", VISIT, url], check=True, timeout=300)


def test_opening_it_again_does_not_take_the_locks_from_connections_that_are_open(tmp_path: Path) -> None:
    """Closing a handle of a file ends all locks of its process; then the visitor would remove the live journal."""
    url = f"sqlite:///{tmp_path / 'notes.db'}"
    first = Database(url)
    with first.write() as session:
        session.execute(text("CREATE TABLE notes (who TEXT)"))
    with first.read() as session:
        session.execute(text("SELECT who FROM notes")).all()
        Database(url).close()
        visit(url)
        assert (tmp_path / "notes.db-wal").exists()
        assert (tmp_path / "notes.db-shm").exists()
    with first.write() as session:
        session.execute(text("INSERT INTO notes VALUES ('first')"))
    visit(url)
    second = Database(url)
    with second.read() as session:
        assert session.scalars(text("SELECT who FROM notes")).all() == ["visitor", "first", "visitor"]
    second.close()
    first.close()
    assert not (tmp_path / "notes.db-wal").exists(), "the last one tidies up"
