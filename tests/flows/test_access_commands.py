"""`dmcp access` and `dmcp registry` on a real registry: what they print, what they change, and their exit codes."""

import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from flows import access
from flows.cli import app
from storage.audit import open_audit_log
from storage.errors import BadToken
from storage.registry import Registry, open_registry
from storage.registry_schema import HEAD
from storage.settings import settings

OLD = Path(__file__).parents[1] / "vectors" / "registry" / "first_release.sqlite.sql"
VERSION = "0123456789abcdef"


@pytest.fixture
def book(home: Path) -> Iterator[Registry]:
    """A registry with the owner olga, her data set photos, and the user ann."""
    with open_registry(settings()) as registry:
        registry.add_user("olga", "owner")
        registry.add_user("ann")
        registry.register_dataset("photos", "olga")
        yield registry


def dmcp(*arguments: object, code: int = 0, stdin: str | None = None) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
    assert result.exit_code == code, result.output
    return result


def do(*arguments: object, code: int = 0, stdin: str | None = None) -> str:
    """`dmcp access ...`."""
    return dmcp("access", *arguments, code=code, stdin=stdin).output


# --- users and tokens ------------------------------------------------------------------------------------------------


def test_roles_and_the_door(book: Registry) -> None:
    token = do("add-user", "otto", "--role", "owner", "--days", 9, "--quiet").strip()
    assert book.authenticate(token).role == "owner"
    assert "one of" in do("add-user", "eve", "--role", "king", code=2).lower()
    do("set-role", "otto", "operator")
    assert book.get_user("otto").role == "operator"
    do("disable", "otto")
    with pytest.raises(BadToken):
        book.authenticate(token)
    assert "disabled" in do("list")
    do("enable", "otto")
    assert book.authenticate(token).name == "otto"
    do("disable", "nobody", code=8)


def test_tokens_are_listed_and_never_shown(book: Registry) -> None:
    laptop = do("add-token", "ann", "laptop", "--quiet").strip()
    listed = do("tokens", "ann")
    assert "laptop" in listed and laptop[:13] in listed and laptop not in listed
    do("revoke-token", book.list_tokens("ann")[1].id)
    assert "revoked" in do("tokens", "ann")
    with pytest.raises(BadToken):
        book.authenticate(laptop)
    do("revoke-token", 99, code=8)


# --- data sets and terms ---------------------------------------------------------------------------------------------


def test_data_sets_and_their_terms(book: Registry, tmp_path: Path) -> None:
    do("register", "faces", "ann", code=6)
    do("register", "faces", "olga", "--title", "Faces")
    assert "no terms" in do("terms", "show", "faces")
    do("terms", "accept", "faces", "ann", code=8)
    (tmp_path / "terms.txt").write_text("Be kind.")
    assert "Version 1" in do("terms", "set", "faces", tmp_path / "terms.txt")
    assert "Version 2" in do("terms", "set", "faces", "-", stdin="Be kind, and cite us.")
    assert "cite us" in do("terms", "show", "faces")
    assert "cite us" not in do("terms", "show", "faces", "--number", 1)
    do("terms", "accept", "faces", "ann", "--number", 1, code=2)
    assert "accepted version 2" in do("terms", "accept", "faces", "ann")
    assert book.accepted_terms(book.get_user("ann").id, "faces") == 2
    lines = {line.split()[0]: line.split() for line in do("datasets").splitlines() if line.strip()}
    assert lines["faces"][1:] == ["olga", "Faces", "2"] and lines["photos"][1:] == ["olga", "-", "-"]
    do("set-role", "ann", "owner")
    do("transfer", "faces", "ann")
    assert book.get_dataset("faces").owner.name == "ann"


# --- grants and requests ---------------------------------------------------------------------------------------------


def test_grants_with_bounds(book: Registry, tmp_path: Path) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("b\na\n")
    made = do("grant", "ann", "photos", "--version", VERSION, "--samples", keys, "--class", "cat", "--quota", 5)
    assert f"version {VERSION}; classes cat; 2 samples; 0 of 5 images used" in made
    do("grant", "ann", "photos", "--samples", keys, code=2)
    do("grant", "ann", "photos", "--version", "latest", code=2)
    later = datetime.now(UTC) + timedelta(days=5)
    do("grant", "ann", "photos", "--from", f"{later:%Y-%m-%d}", "--days", 9)
    assert f"begins {later:%Y-%m-%d}" in do("list")
    first, second = book.list_grants()
    assert first.samples == ["a", "b"] and second.starts.date() == later.date()
    assert "until" in do("renew", first.id, "--days", 3, "--quota", 9)
    assert book.get_grant(first.id).quota == 9
    do("revoke", "--grant", first.id)
    do("renew", first.id, code=2)
    assert book.get_grant(first.id).revoked and not book.get_grant(second.id).revoked
    for wrong in ([], ["ann"], ["ann", "photos", "--grant", 1]):
        do("revoke", *wrong, code=2)


def test_asking_approving_denying(book: Registry) -> None:
    do("ask", "ann", "photos", "--reason", "for a paper", "--days", 30, "--quota", 100, "--class", "cat")
    do("ask", "ann", "photos", "--reason", "again", "--class", "cat", code=2)
    do("ask", "ann", "photos", "--reason", "for all")
    listed = do("requests", "--state", "open")
    assert "for a paper" in listed and "for all" in listed
    do("requests", "--state", "closed", code=2)
    assert "grant 1" in do("approve", 1, "--quota", 50, "--note", "welcome")
    do("deny", 2, "--note", "too much")
    do("approve", 2, code=2)
    (grant,) = book.list_grants()
    assert (grant.quota, grant.classes, grant.note) == (50, ["cat"], "welcome") and grant.expires
    assert "denied" in do("requests", "--dataset", "photos") and "denied" not in do("requests", "--dataset", "faces")
    do("ask", "ann", "photos", "--reason", "more", "--renews", 1, "--quota", 9)
    assert "renews grant 1" in do("requests")


def test_usage_by_day(book: Registry) -> None:
    grant = book.grant("ann", "photos")
    book.charge(book.create_request(grant.user_id, "upload", None, "x"), 0, grant.id, 1234)
    shown = do("usage", "--dataset", "photos", "--since", f"{datetime.now(UTC):%Y-%m-%d}")
    assert "1,234" in shown and "ann" in shown
    assert "ann" not in do("usage", "--dataset", "faces")


# --- the built-in users ----------------------------------------------------------------------------------------------


def test_the_pipeline_registers_its_data_set_and_accepts_its_own_terms(home: Path) -> None:
    for _ in range(2):
        access.prepare("pets")
    with open_registry(settings()) as book:
        assert (book.get_dataset("pets").owner.name, book.get_user("owner").role) == ("owner", "owner")
        pipeline = book.get_user(access.PIPELINE_USER)
        book.set_terms("pets", "Be kind.")
        access.ensure_pipeline_access(book, "pets")
        assert book.authorise(pipeline.id, "pets").dataset == "pets"
        assert len(book.list_grants()) == 1
        book.set_role("owner", "operator")
        book.add_user("olga", "owner")
        book.transfer_dataset("pets", "olga")
        access.ensure_pipeline_access(book, "pets")
        assert book.get_dataset("pets").owner.name == "olga", "who it was given to keeps it"
    with open_audit_log(settings()) as log:
        assert [entry.subject for entry in log.entries(action="key.create")] == [access.current_key_id("pets")]


# --- the schema ------------------------------------------------------------------------------------------------------


def test_a_registry_of_the_first_release_is_upgraded_when_asked(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no registry yet" in dmcp("registry", "version").output and not home.exists()
    home.mkdir()
    with sqlite3.connect(home / "registry.db") as connection:
        connection.executescript(OLD.read_text())
    assert "dmcp registry upgrade" in dmcp("registry", "version").output
    assert "dmcp registry upgrade" in dmcp("access", "list", code=4).output
    assert f"from schema 0001 to schema {HEAD}" in dmcp("registry", "upgrade").output
    assert "newest schema already" in dmcp("registry", "upgrade").output
    assert "newest schema" in dmcp("registry", "version").output
    assert {"ann", "bob", "eve"} <= set(do("list").split())
    (backup,) = home.glob("registry.db.0001-*")
    backup.replace(home / "registry.db")
    for path in home.glob("registry.db-*"):
        path.unlink()
    do("list", code=4)
    monkeypatch.setenv("DMCP_MIGRATE", "1")
    settings.cache_clear()
    assert "bob" in do("list")


def test_a_later_releases_registry_is_named(home: Path) -> None:
    assert "Made the registry" in dmcp("registry", "upgrade").output
    with sqlite3.connect(home / "registry.db") as connection:
        connection.execute("UPDATE registry_revision SET version_num = '0099'")
    assert "later release" in dmcp("registry", "version").output
    assert "later release" in dmcp("registry", "upgrade", code=4).output
