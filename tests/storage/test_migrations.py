"""A registry of the first release, as that release made it, opened by this one; on SQLite and PostgreSQL."""

import sqlite3
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, event, inspect, text

from storage.audit import open_audit_log
from storage.audit_models import missing_guards
from storage.errors import BadToken, EnvironmentFault, GrantExpired
from storage.migrations import config, upgrade
from storage.registry import Registry, Request, open_registry
from storage.registry_models import Base
from storage.registry_schema import HEAD, LAYOUT, REVISIONS, VERSION_TABLE, RegistryDatabase
from storage.settings import Settings

VECTORS = Path(__file__).parents[1] / "vectors" / "registry"
TOKENS = {name: "dmcp_" + letter * 43 for name, letter in (("ann", "A"), ("bob", "B"), ("eve", "C"))}


def load(database: str) -> None:
    """What the first release left: its tables, as it made them, and some of everything in them."""
    engine = create_engine(database)
    raw: Any = engine.raw_connection()
    script = (VECTORS / f"first_release.{engine.dialect.name}.sql").read_text()
    if engine.dialect.name == "sqlite":
        raw.executescript(script)
    else:
        raw.execute(script)
    raw.commit()
    raw.close()
    engine.dispose()


@pytest.fixture
def old(database: str) -> str:
    load(database)
    return database


@pytest.fixture
def upgraded(old: str) -> Iterator[Registry]:
    with Registry(old, migrate=True) as registry:
        yield registry


def contents(url: str) -> dict[str, list[Any]]:
    """All tables with all rows."""
    engine = create_engine(url)
    with engine.connect() as connection:
        names = sorted(inspect(connection).get_table_names())
        found = {name: [tuple(row) for row in connection.execute(text(f"SELECT * FROM {name}"))] for name in names}
    engine.dispose()
    return {name: sorted(rows, key=repr) for name, rows in found.items()}


def differences(database: RegistryDatabase) -> list[Any]:
    with database.read() as session:
        options = {"version_table": VERSION_TABLE, "compare_type": True, "compare_server_default": True}
        context = MigrationContext.configure(session.connection(), opts=options)
        return [change for change in compare_metadata(context, Base.metadata) if "nextval" not in repr(change)]


def test_an_old_registry_is_refused_and_left_alone(old: str) -> None:
    before = contents(old)
    with pytest.raises(
        EnvironmentFault, match=rf"schema 0001.*earlier release.*{HEAD}.*dmcp registry upgrade.*MIGRATE"
    ):
        Registry(old)
    assert contents(old) == before


def test_an_upgrade_keeps_everything(upgraded: Registry) -> None:
    assert upgraded.schema().newest
    ann, bob = (upgraded.authenticate(TOKENS[name]) for name in ("ann", "bob"))
    assert (ann.name, ann.role, bob.name, ann.disabled) == ("ann", "user", "bob", False)
    with pytest.raises(BadToken, match="withdrawn"):
        upgraded.authenticate(TOKENS["eve"])
    (token,) = upgraded.list_tokens("ann")
    assert (token.label, token.created, token.revoked) == ("first", ann.created, None)
    grants = upgraded.list_grants()
    assert [(g.id, g.user.name, g.dataset, g.used, g.quota) for g in grants] == [
        (2, "ann", "faces", 0, None),
        (1, "ann", "photos", 0, None),
        (3, "bob", "photos", 0, None),
        (4, "bob", "photos", 0, None),
    ]
    assert all(g.starts == g.created and g.scope == (None, None, None) for g in grants)
    assert upgraded.authorise(ann.id, "photos", images=10).id == 1
    assert upgraded.authorise(bob.id, "photos").id == 4 and upgraded.get_grant(3).revoked is not None
    later = upgraded.get_grant(2).expires
    with pytest.raises(GrantExpired):
        upgraded.authorise(ann.id, "faces", now=later)
    done, pending, running = (upgraded.get_request("0" * 31 + digit) for digit in "123")
    assert (done.state, done.restored, done.message) == ("done", 1, "one refused")
    assert (pending.state, pending.source, pending.attempt) == ("pending", "it's mine; really", 0)
    with upgraded.read() as session:
        assert [session.get_one(Request, one.id).subset for one in (done, pending)] == [["a", "b"], None]
    assert running.state == "running" and [r.id for r in upgraded.stale_requests(60)] == [running.id]


def test_an_upgraded_registry_is_used_like_any_other(upgraded: Registry) -> None:
    token = upgraded.add_user("carl", "owner")  # ids go on after those that there were
    assert upgraded.authenticate(token).id == 4
    assert upgraded.grant("carl", "photos").id == 5
    upgraded.register_dataset("photos", "carl", "Photos")
    upgraded.claim_request("0" * 31 + "2")
    upgraded.charge("0" * 31 + "2", 0, 5, 7)
    assert [(row.user, row.images) for row in upgraded.usage()] == [("carl", 7)]
    with upgraded.read() as session:
        assert missing_guards(session.connection()) == []
        assert session.scalar(text("SELECT version FROM registry_schema")) == LAYOUT


def test_the_release_before_this_one_is_upgraded_too(database: str) -> None:
    """Revision 0002, with a request that runs: it counts as having got on when it was taken."""
    from alembic import command

    moment = "'2020-01-01 00:00:00'"
    engine = create_engine(database)
    with engine.begin() as connection:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("PRAGMA foreign_keys=OFF")
        command.upgrade(config(connection), "0002")
        connection.execute(
            text(f"INSERT INTO users (id, name, role, created, disabled) VALUES (1, 'ann', 'user', {moment}, false)")
        )
        connection.execute(
            text(
                "INSERT INTO requests (id, user_id, kind, source, state, created, started, heartbeat, images, restored,"
                f" refused, attempt) VALUES ('{'a' * 32}', 1, 'upload', 'x', 'running', {moment}, {moment}, {moment},"
                " 1, 0, 0, 1)"
            )
        )
    engine.dispose()
    with pytest.raises(EnvironmentFault, match="schema 0002"):
        Registry(database)
    with Registry(database, migrate=True) as registry:
        assert differences(registry) == []
        registry.heartbeat("a" * 32, 1)
        assert registry.stale_requests(60) == []
        assert [request.id for request in registry.stale_requests(60, 3600)] == ["a" * 32]


def test_requests_of_revision_3_are_kept(database: str) -> None:
    from alembic import command

    moment = "'2020-01-01 00:00:00'"
    engine = create_engine(database)
    with engine.begin() as connection:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("PRAGMA foreign_keys=OFF")
        command.upgrade(config(connection), "0003")
        connection.execute(
            text(f"INSERT INTO users (id, name, role, created, disabled) VALUES (1, 'ann', 'user', {moment}, false)")
        )
        connection.execute(
            text(
                "INSERT INTO requests (id, user_id, kind, source, state, created, images, restored, refused, attempt)"
                f" VALUES ('{'a' * 32}', 1, 'upload', 'x', 'failed', {moment}, 1, 0, 0, 7)"
            )
        )
    engine.dispose()
    with Registry(database, migrate=True) as registry:
        assert differences(registry) == []
        registry.retry_request("a" * 32)
        request = registry.claim_request("a" * 32)
        assert (request.attempt, request.takeovers) == (9, 1)


def test_the_upgrade_is_the_first_entry_of_the_audit_log(old: str, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", registry_url=old, migrate=True)
    open_registry(settings).close()
    with open_audit_log(settings) as log:
        (entry,) = log.entries()
    assert (entry.seq, entry.action, entry.details) == (1, "registry.upgrade", f'{{"before":"0001","schema":"{HEAD}"}}')


def test_upgraded_and_new_tables_are_those_of_the_models(upgraded: Registry, tmp_path: Path) -> None:
    assert differences(upgraded) == []


def test_new_tables_are_those_of_the_models(registry: Registry) -> None:
    assert differences(registry) == []
    assert registry.schema().newest


def test_the_whole_history_leads_to_the_models(database: str) -> None:
    engine = create_engine(database)
    with engine.begin() as connection:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("PRAGMA foreign_keys=OFF")
        first = config(connection)
        from alembic import command

        command.upgrade(first, "0001")
        assert set(inspect(connection).get_table_names()) == {
            "grants",
            "registry_schema",
            "requests",
            "users",
            VERSION_TABLE,
        }
        upgrade(connection, "0001")
        assert tuple(s.revision for s in ScriptDirectory.from_config(first).walk_revisions())[::-1] == REVISIONS
    engine.dispose()
    with Registry(database) as registry:
        assert differences(registry) == []


def test_revision_1_is_what_the_first_release_made(old: str, database: str, tmp_path: Path, request: Any) -> None:
    def shape(url: str) -> dict[str, Any]:
        engine = create_engine(url)
        found = inspect(engine)
        tables = {}
        for table in sorted(set(found.get_table_names()) - {VERSION_TABLE}):
            columns = [(c["name"], repr(c["type"]), c["nullable"]) for c in found.get_columns(table)]
            keys = sorted((k["constrained_columns"], k["referred_table"]) for k in found.get_foreign_keys(table))
            indexes = sorted((i["name"], i["column_names"], i["unique"]) for i in found.get_indexes(table))
            unique = sorted(u["column_names"] for u in found.get_unique_constraints(table))
            tables[table] = (columns, keys, indexes, unique, found.get_pk_constraint(table)["constrained_columns"])
        engine.dispose()
        return tables

    from alembic import command

    new = f"sqlite:///{tmp_path / 'new.db'}" if old.startswith("sqlite") else request.getfixturevalue("postgres")()
    engine = create_engine(new)
    with engine.begin() as connection:
        command.upgrade(config(connection), "0001")
    engine.dispose()
    assert shape(new) == shape(old)


def test_of_many_that_upgrade_at_once_one_does(old: str) -> None:
    together = threading.Barrier(4)

    def open_it(_: int) -> int:
        together.wait()
        with Registry(old, migrate=True) as registry:
            return len(registry.list_users())

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(open_it, range(4))) == [3] * 4
    with Registry(old) as registry, registry.read() as session:
        assert session.scalar(text("SELECT count(*) FROM audit_entries")) == 1


def test_a_failed_upgrade_changes_nothing(old: str) -> None:
    """Whatever stops it: here, at the last step, a table that is in the way."""
    engine = create_engine(old)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE audit_entries (mine INTEGER)"))
    before = contents(old)
    with pytest.raises(EnvironmentFault, match="audit_entries"):
        Registry(old, migrate=True)
    assert contents(old) == before
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE audit_entries"))
    engine.dispose()
    with Registry(old, migrate=True) as registry:
        assert registry.authenticate(TOKENS["ann"]).name == "ann"


def test_a_sqlite_file_is_backed_up_first(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'registry.db'}"
    load(url)
    before = contents(url)
    Registry(url, migrate=True).close()
    (backup,) = tmp_path.glob("registry.db.0001-*")
    assert contents(f"sqlite:///{backup}") == before
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600


def test_rows_that_refer_to_nothing_stop_an_upgrade(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'registry.db'}"
    load(url)
    with sqlite3.connect(tmp_path / "registry.db") as connection:
        connection.execute("UPDATE grants SET user_id = 99 WHERE id = 1")
    before = contents(url)
    with pytest.raises(EnvironmentFault, match="refer to others that are not there"):
        Registry(url, migrate=True)
    assert contents(url) == before


def test_a_later_schema_and_other_programs_tables_are_refused(database: str) -> None:
    Registry(database).close()
    engine = create_engine(database)
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '0099'"))
    for migrate in (False, True):
        with pytest.raises(EnvironmentFault, match="schema 0099, which a later release made"):
            Registry(database, migrate=migrate)
    with engine.begin() as connection:
        for table in (VERSION_TABLE, "registry_schema"):
            connection.execute(text(f"DROP TABLE {table}"))
    engine.dispose()
    with pytest.raises(EnvironmentFault, match=r"not a registry's: .*users"):
        Registry(database, migrate=True)


def test_the_first_release_refuses_an_upgraded_registry(upgraded: Registry) -> None:
    """It reads this number and knows 1 only."""
    with upgraded.read() as session:
        assert session.scalar(text("SELECT version FROM registry_schema")) == 2


def test_opening_reads_one_row(registry: Registry, database: str) -> None:
    statements: list[str] = []

    class Watched(RegistryDatabase):
        def _revision(self) -> str | None:
            event.listen(self._engine, "before_cursor_execute", lambda *a: statements.append(a[2]))
            return super()._revision()

    Watched(database).close()
    assert [s for s in statements if s != "BEGIN"] == [f"SELECT version_num FROM {VERSION_TABLE}"]
