"""The registry's users and tokens, and its database: on real SQLite and real PostgreSQL."""

import multiprocessing
import re
import stat
from datetime import UTC, datetime, timedelta
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from storage.audit import AuditLog
from storage.errors import BadToken, EnvironmentFault, NotFound, SettingsError, UsageError
from storage.registry import Registry, open_registry
from storage.settings import Settings

DAY = timedelta(days=1)


def now() -> datetime:
    return datetime.now(UTC)


def everything(database: str, folder: Path) -> bytes:
    """All that a database holds, as bytes."""
    if database.startswith("sqlite"):
        return b"".join(path.read_bytes() for path in folder.iterdir())
    engine = create_engine(database)
    with engine.connect() as connection:
        tables = connection.scalars(text("SELECT tablename FROM pg_tables WHERE schemaname = current_schema()")).all()
        found = repr([[tuple(row) for row in connection.execute(text(f"SELECT * FROM {name}"))] for name in tables])
    engine.dispose()
    return found.encode()


# --- users and tokens ------------------------------------------------------------------------------------------------


def test_a_token_is_shown_once_and_kept_as_a_hash(registry: Registry, tmp_path: Path, database: str) -> None:
    token = registry.add_user("ann@lab.example")
    assert re.fullmatch(r"dmcp_[A-Za-z0-9_-]{43}", token)
    user = registry.authenticate(token)
    (row,) = registry.list_tokens("ann@lab.example")
    assert user.name == "ann@lab.example" and token.startswith(row.prefix) and len(row.prefix) < 16
    assert user.created.tzinfo is UTC and abs(now() - user.created) < timedelta(minutes=1)
    registry.close()
    stored = everything(database, tmp_path)
    assert token.encode() not in stored and token[20:].encode() not in stored


def test_other_tokens_are_refused_without_being_repeated(registry: Registry) -> None:
    token = registry.add_user("ann")
    for wrong in (
        "",
        "dmcp_",
        token[:-1],
        token + "x",
        token[:-1] + ("A" if token[-1] != "A" else "B"),
        "\ud800",
        "é" * 50,
    ):
        with pytest.raises(BadToken) as error:
            registry.authenticate(wrong)
        assert len(wrong) < 10 or wrong not in str(error.value)


def test_rotating_and_disabling_withdraw_a_token(registry: Registry) -> None:
    old = registry.add_user("ann")
    new = registry.rotate_token("ann")
    with pytest.raises(BadToken):
        registry.authenticate(old)
    ann = registry.authenticate(new)
    registry.grant("ann", "photos")
    registry.set_disabled("ann", True)
    with pytest.raises(BadToken, match="withdrawn"):
        registry.authenticate(new)
    with pytest.raises(BadToken, match="withdrawn"):
        registry.authorise(ann.id, "photos")
    registry.set_disabled("ann", False)
    assert registry.authenticate(new).id == ann.id
    assert registry.authorise(ann.id, "photos").dataset == "photos"


def test_names(registry: Registry) -> None:
    registry.add_user("bob")
    registry.add_user("ann")
    with pytest.raises(UsageError, match="user exists: ann"):
        registry.add_user("ann")
    for name in ("", "Ann", "a b", "-a", "x" * 129, "a\n", "a'--"):
        with pytest.raises(UsageError, match="can not name a user"):
            registry.add_user(name)
    assert [user.name for user in registry.list_users()] == ["ann", "bob"]
    for use in (registry.rotate_token, registry.get_user, lambda name: registry.grant(name, "photos")):
        with pytest.raises(NotFound, match="dmcp access add-user"):
            use("carl")


def test_a_user_may_have_several_tokens(registry: Registry, ann: int) -> None:
    first, second = registry.add_token("ann", "laptop"), registry.add_token("ann", "cluster", now() + DAY)
    assert registry.authenticate(first).id == registry.authenticate(second).id == ann
    assert [token.label for token in registry.list_tokens("ann")] == ["first", "laptop", "cluster"]
    laptop = registry.list_tokens("ann")[1]
    registry.revoke_token(laptop.id)
    registry.revoke_token(laptop.id)  # again: nothing changes
    with pytest.raises(BadToken, match="withdrawn on"):
        registry.authenticate(first)
    assert registry.authenticate(second).id == ann
    third = registry.rotate_token("ann")
    for old in (first, second):
        with pytest.raises(BadToken):
            registry.authenticate(old)
    assert registry.authenticate(third).id == ann
    assert [token.revoked is None for token in registry.list_tokens("ann")] == [False] * 3 + [True]
    for label in ("", "x" * 129):
        with pytest.raises(UsageError, match="label"):
            registry.add_token("ann", label)


def test_a_token_may_end(registry: Registry) -> None:
    token = registry.add_user("ann", expires=now() + DAY)
    assert registry.authenticate(token).name == "ann"
    with registry.write() as session:
        session.execute(text("UPDATE tokens SET expires = created"))
    with pytest.raises(BadToken, match="expired on"):
        registry.authenticate(token)
    with pytest.raises(UsageError, match="in the past"):
        registry.add_token("ann", "late", now() - DAY)


def test_a_token_can_be_revoked_as_its_users_only(registry: Registry, ann: int) -> None:
    registry.add_user("bob")
    (mine,) = registry.list_tokens("ann")
    with pytest.raises(NotFound):
        registry.revoke_token(mine.id, user_id=ann + 1)
    with pytest.raises(NotFound):
        registry.revoke_token(mine.id + 99)
    registry.revoke_token(mine.id, user_id=ann)
    assert registry.list_tokens("ann")[0].revoked is not None


def test_last_use_is_written_once_a_minute(registry: Registry) -> None:
    token = registry.add_user("ann")
    assert registry.list_tokens("ann")[0].last_used is None
    registry.authenticate(token)
    used = registry.list_tokens("ann")[0].last_used
    registry.authenticate(token)
    assert used is not None and registry.list_tokens("ann")[0].last_used == used


def test_roles(registry: Registry) -> None:
    registry.add_user("ann", "operator")
    registry.set_role("ann", "owner")
    assert registry.get_user("ann").role == "owner"
    for use in (registry.add_user, registry.set_role):
        with pytest.raises(UsageError, match="is no role"):
            use("ann", "king")  # type: ignore[arg-type]


def test_every_change_is_on_record_in_its_own_transaction(registry: Registry, database: str) -> None:
    registry.add_user("ann", actor="root")
    registry.set_disabled("ann", True, actor="root")
    registry.set_disabled("ann", True, actor="root")  # nothing changes, and nothing is recorded
    registry.set_disabled("ann", False, actor="root")
    registry.set_role("ann", "owner", actor="root")
    registry.add_token("ann", "laptop", actor="ann")
    registry.revoke_token(registry.list_tokens("ann")[1].id, actor="ann")
    registry.rotate_token("ann", actor="root")
    with pytest.raises(UsageError):
        registry.add_user("ann", actor="root")  # refused: no entry
    with AuditLog(database) as log:
        entries = log.entries()
    assert [(entry.actor, entry.action, entry.subject) for entry in entries] == [
        ("root", "user.create", "ann"),
        ("root", "user.disable", "ann"),
        ("root", "user.enable", "ann"),
        ("root", "user.role", "ann"),
        ("ann", "token.create", "ann"),
        ("ann", "token.revoke", "ann"),
        ("root", "token.create", "ann"),
    ]


# --- the database ----------------------------------------------------------------------------------------------------


def test_sqlite_is_private_durable_and_checks_references(tmp_path: Path) -> None:
    registry = open_registry(Settings(home=tmp_path / "home"))
    registry.add_user("ann")
    for path in (tmp_path / "home").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    with registry.read() as session:
        pragmas = {
            n: session.connection().exec_driver_sql(f"PRAGMA {n}").scalar()
            for n in ("journal_mode", "foreign_keys", "busy_timeout")
        }
    assert pragmas == {"journal_mode": "wal", "foreign_keys": 1, "busy_timeout": 30000}
    assert [user.name for user in open_registry(Settings(home=tmp_path / "home")).list_users()] == ["ann"]


def open_and_add(url: str, name: str, together: Barrier) -> None:
    together.wait()
    Registry(url).add_user(name)


def test_processes_create_one_registry_together(database: str) -> None:
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang or fail
    together = context.Barrier(3)
    workers = [context.Process(target=open_and_add, args=(database, f"u{n}", together)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 3
    assert [user.name for user in Registry(database).list_users()] == ["u0", "u1", "u2"]


def test_addresses_that_can_not_be_used(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="DMCP_REGISTRY_URL"):
        Registry("nonsense")
    with pytest.raises(SettingsError) as error:
        Registry("nosuchdatabase://ann:hunter2@host/db")
    assert "hunter2" not in str(error.value)
    (tmp_path / "file").write_text("not a database, and long enough to be told from an empty one" * 20)
    with pytest.raises(EnvironmentFault, match="not a database"):
        Registry(f"sqlite:///{tmp_path / 'file'}")
    with pytest.raises(EnvironmentFault, match="can not be written"):
        Registry(f"sqlite:///{tmp_path / 'file' / 'registry.db'}")
