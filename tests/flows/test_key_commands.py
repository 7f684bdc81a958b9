"""`dmcp key`: rotation, backup, restore and check as an owner types them; what they put into the audit log."""

import errno
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from pydantic import SecretStr
from typer.testing import CliRunner, Result

from flows import access
from flows.cli import app
from storage.audit import open_audit_log
from storage.audit_keys import audit_home
from storage.errors import EnvironmentFault
from storage.keys import open_vault
from storage.settings import settings
from tests.storage.transit_servers import TransitServer


def dmcp(*arguments: object, code: int = 0) -> Result:
    settings.cache_clear()  # each command is a process of its own
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def secrets() -> dict[str, bytes]:
    settings.cache_clear()
    vault = open_vault(settings())
    return {record.key_id: vault.secret(record.key_id) for record in vault.list()}


def logged() -> list[tuple[str, str, str | None]]:
    with open_audit_log(settings()) as log:
        return [(entry.action, entry.subject, entry.dataset) for entry in log.entries()]


def test_a_vault_s_way_through_all_its_locks(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dmcp("key", "create", "pets")
    dmcp("key", "create", "cars")
    keys = secrets()
    shown = []

    monkeypatch.setenv("DMCP_VAULT_NEW_PASSPHRASE", "tr0ub4dor&3")
    shown.append(dmcp("key", "rotate", "--to", "passphrase:").stdout)
    assert "set DMCP_VAULT_PASSPHRASE to the new one" in shown[-1]
    dmcp("key", "check", code=5)
    monkeypatch.setenv("DMCP_VAULT_PASSPHRASE", "tr0ub4dor&3")
    assert "All keys open: 2 keys of 2 data sets." in dmcp("key", "check").stdout

    with TransitServer() as server:
        server.add_key("dmcp")
        monkeypatch.setenv("VAULT_TOKEN", server.add_token("dmcp"))
        uri = server.uri("dmcp")
        monkeypatch.setenv("DMCP_VAULT_KEK", uri)
        assert secrets() == keys, "the stored kind still opens, so services can be told the new key beforehand"
        shown.append(dmcp("key", "rotate", "--to", uri, "--keep", tmp_path / "old.json").stdout)
        assert f"DMCP_VAULT_KEK='{uri}'" in shown[-1]
        assert secrets() == keys
        new = tmp_path / "safe" / "vault.key"
        shown.append(dmcp("key", "rotate", "--to", f"file:{new}").stdout)
    assert f"DMCP_VAULT_KEK=file:{new}" in shown[-1]
    monkeypatch.setenv("DMCP_VAULT_KEK", f"file:{new}")
    monkeypatch.delenv("DMCP_VAULT_PASSPHRASE")
    assert secrets() == keys
    dmcp("key", "rotate", "--to", f"file:{new}", code=2)
    monkeypatch.setenv("DMCP_VAULT_BACKUP_PASSPHRASE", "tr0ub4dor&3")
    assert "2 keys" in dmcp("key", "check", tmp_path / "old.json", "--passphrase").stdout

    actions = [action for action, _, _ in logged() if action.startswith("key.")]
    assert actions == ["key.create", "key.create", *["key.rotate"] * 3]
    for text in shown:
        assert "tr0ub4dor" not in text
        assert not any(secret.hex() in text for secret in keys.values())


def test_no_key_is_made_that_can_not_be_recorded(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setenv("DMCP_REGISTRY_URL", f"postgresql+psycopg://nobody@127.0.0.1:{port}/none")
    dmcp("key", "create", "pets", code=EnvironmentFault.exit_code)
    with pytest.raises(EnvironmentFault):
        access.ensure_key("pets")
    assert secrets() == {}


def test_a_key_is_on_record_before_it_is_kept(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as full, pytest.raises(EnvironmentFault):
        full.setattr("storage.keys.write_durably", _no_space)
        access.ensure_key("pets")
    assert [entry[0] for entry in logged()] == ["key.create"] and secrets() == {}
    dmcp("key", "create", "pets")
    (made,) = open_vault(settings()).list()
    assert [entry for entry in logged() if entry[0] == "key.create"][1:] == [("key.create", made.key_id, "pets")]


def _no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_of_many_who_make_a_key_at_once_each_entry_names_what_was_kept(home: Path) -> None:
    together = threading.Barrier(4)

    def make(_: int) -> str:
        together.wait()
        return access.make_key(open_vault(settings()), "pets", "local").key_id

    settings()
    with ThreadPoolExecutor(4) as pool:
        made = set(pool.map(make, range(4)))
    kept = [(record.key_id, record.epoch) for record in open_vault(settings()).list()]
    with open_audit_log(settings()) as log:
        entries = log.entries(action="key.create")
    assert [(entry.subject, json.loads(entry.details)["epoch"]) for entry in entries] == kept
    assert {key_id for key_id, _ in kept} == made and len(made) == 4


def test_a_deposit_makes_the_vault_anew_on_another_machine(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dmcp("key", "backup", tmp_path / "none.json", code=2)
    dmcp("key", "create", "pets")
    keys = secrets()
    file = tmp_path / "deposit.json"
    assert "Set DMCP_VAULT_BACKUP_PASSPHRASE" in dmcp("key", "backup", file, "--passphrase", code=4).stderr
    monkeypatch.setenv("DMCP_VAULT_BACKUP_PASSPHRASE", "in a safe")
    assert f"dmcp key restore {file} --passphrase" in dmcp("key", "backup", file, "--passphrase").stdout
    assert "not overwritten" in dmcp("key", "backup", file, code=2).stderr
    assert "unlocked by  its passphrase" in dmcp("key", "check", file, "--passphrase").stdout
    assert logged()[-1][:2] == ("key.backup", "deposit.json")

    monkeypatch.setenv("DMCP_HOME", str(tmp_path / "other"))
    assert "Restored 1 key of 1 data set" in dmcp("key", "restore", file, "--passphrase").stdout
    assert secrets() == keys
    assert "all of it already" in dmcp("key", "restore", file, "--passphrase").stdout
    dmcp("key", "create", "pets")
    assert "--merge" in dmcp("key", "restore", file, "--passphrase", code=2).stderr
    dmcp("key", "restore", file, "--passphrase", "--merge")
    (tmp_path / "other" / "vault.json").write_text("broken")
    assert "--replace" in dmcp("key", "restore", file, "--passphrase", code=2).stderr
    assert "vault.json.replaced-" in dmcp("key", "restore", file, "--passphrase", "--replace").stdout
    assert secrets() == keys
    monkeypatch.setenv("DMCP_VAULT_BACKUP_PASSPHRASE", "wrong")
    assert "passphrase is wrong" in dmcp("key", "check", file, "--passphrase", code=5).stderr


def test_the_audit_log_s_signing_key_goes_along(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def signer() -> str:
        settings.cache_clear()
        signing = audit_home(settings())
        with signing.locked():
            return signing.signer().public.key_id

    monkeypatch.setenv("DMCP_VAULT_PASSPHRASE", "old")
    dmcp("key", "create", "pets")
    key_id = signer()
    monkeypatch.setenv("DMCP_VAULT_NEW_PASSPHRASE", "new")
    (tmp_path / "taken").touch()
    dmcp("key", "rotate", "--to", "passphrase:", "--keep", tmp_path / "taken", code=2)
    assert signer() == key_id, "the rotation failed, and the signing key stayed as it was"

    audit_home(settings()).lock_anew(SecretStr("new"))  # as one killed half-way left it
    dmcp("key", "rotate", "--to", "passphrase:")
    monkeypatch.setenv("DMCP_VAULT_PASSPHRASE", "new")
    assert signer() == key_id
    dmcp("key", "rotate", "--to", "file:")
    monkeypatch.delenv("DMCP_VAULT_PASSPHRASE")
    assert signer() == key_id


def test_a_uri_that_can_not_be_used(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dmcp("key", "create", "pets")
    assert "no known scheme" in dmcp("key", "rotate", "--to", "hunter2", code=4).stderr
    monkeypatch.setenv("DMCP_VAULT_KEK", "aws-kms://alias/x?endpoint=http://example.org")
    assert "https" in dmcp("key", "list", code=4).stderr
