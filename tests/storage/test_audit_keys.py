"""The keys that sign the audit log, and exports that verify like it."""

import csv
import io
import json
import os
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from storage.audit import AuditLog
from storage.audit_chain import (
    Anchors,
    check_chain,
)
from storage.audit_export import export, export_file, read_export
from storage.audit_keys import AuditHome, read_public_keys
from storage.errors import EnvironmentFault, KeyVaultError, UsageError, VaultLocked
from storage.objects import ObjectStore
from tests.storage.audit_place import files_links, fill, home, log, unguarded
from tests.vectors.make_audit import FOLDER

__all__ = ["home", "log"]


# --- keys ------------------------------------------------------------------------------------------------------------


def test_the_private_key_is_private_and_never_shown(log: AuditLog, store: ObjectStore) -> None:
    fill(log, 1)
    log.checkpoint(store)
    assert stat.S_IMODE(log.home.private.stat().st_mode) == 0o600
    assert b"BEGIN PRIVATE KEY" in log.home.private.read_bytes()
    assert b"PRIVATE" not in log.home.public.read_bytes()
    assert repr(log.home.signer()) == f"Signer({next(iter(log.home.pinned()))})"
    log.home.private.chmod(0o640)
    with pytest.raises(VaultLocked, match="0600"):
        log.home.signer()


def test_a_passphrase_locks_the_key(tmp_path: Path) -> None:
    home = AuditHome(tmp_path, SecretStr("grüße"))
    made = home.signer().public.key_id
    assert b"ENCRYPTED" in home.private.read_bytes() and "grüße" not in repr(home)
    assert AuditHome(tmp_path, SecretStr("gru\u0308ße")).signer().public.key_id == made  # typed elsewhere
    for other in (AuditHome(tmp_path), AuditHome(tmp_path, SecretStr("other"))):
        with pytest.raises(VaultLocked):
            other.signer()
        with pytest.raises(VaultLocked):
            other.lock_anew(None)
    assert home.lock_anew(SecretStr("other")) and other.signer().public.key_id == made
    assert other.lock_anew(None) and AuditHome(tmp_path).signer().public.key_id == made
    assert list(home.pinned()) == [made] and not AuditHome(tmp_path / "empty").lock_anew(None)


def test_a_replaced_key_is_pinned_beside_the_old_one(log: AuditLog, store: ObjectStore) -> None:
    fill(log, 1)
    log.checkpoint(store)
    log.home.private.unlink()
    fill(log, 1)
    log.checkpoint(store)
    assert len(log.home.pinned()) == 2
    verdict = log.verify(log.anchors(store))
    assert verdict.ok and verdict.checkpoints == 2


def test_files_that_are_no_keys_are_refused(tmp_path: Path) -> None:
    home = AuditHome(tmp_path)
    for data in (b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", os.urandom(99)):
        home.private.write_bytes(data)
        home.private.chmod(0o600)
        with pytest.raises(VaultLocked):
            home.signer()
        with pytest.raises(KeyVaultError):
            read_public_keys(home.private)
    with pytest.raises(EnvironmentFault):
        read_public_keys(tmp_path / "none")


# --- exports ---------------------------------------------------------------------------------------------------------


def test_an_export_verifies_like_the_log(log: AuditLog, store: ObjectStore, tmp_path: Path) -> None:
    log.record("ann", "release", subject="=1+1 \u2028 é", details={"x": [0.1, None, "é"], "at": datetime.now(UTC)})
    fill(log, 3)
    log.checkpoint(store)
    path = tmp_path / "out" / "log.jsonl"
    assert export_file(log.links(), path, "jsonl") == 4 and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(read_export(path)) == list(log.links())
    assert json.loads(path.read_text().splitlines()[0])["details"]["x"] == [0.1, None, "é"]
    assert check_chain(read_export(path), log.anchors(store)).anchored == 4


@given(st.integers(0, 1 << 20), st.integers(0, 7))
def test_one_edited_byte_in_an_export_does_not_verify(
    tmp_path_factory: pytest.TempPathFactory, at: int, bit: int
) -> None:
    data = bytearray((FOLDER / "entries.jsonl").read_bytes())
    data[at % len(data)] ^= 1 << bit
    path = tmp_path_factory.getbasetemp() / "edited.jsonl"
    path.write_bytes(data)
    assert not check_chain(read_export(path), Anchors({5: list(files_links())[-1].hash})).ok


def test_an_export_keeps_what_stands_there_even_when_it_is_altered(log: AuditLog) -> None:
    fill(log, 2)
    unguarded(log, "UPDATE audit_entries SET details = '{ }' WHERE seq = 2")
    out, empty = io.BytesIO(), io.BytesIO()
    export(log.links(), out, "jsonl")
    assert json.loads(out.getvalue().splitlines()[1])["details"] == "{ }"
    assert export([], empty, "jsonl") == 0 == len(empty.getvalue())


def test_csv_holds_no_formulas(log: AuditLog) -> None:
    texts = ["=HYPERLINK(1)", "+1", "-1", "@x", "\tx", "\rx", "  =1", 'a,"b"\nc', "é", ""]
    for text in texts:
        log.record("=ann", "release", subject=text)
    out = io.BytesIO()
    assert export(log.links(), out, "csv") == len(texts)
    rows = list(csv.DictReader(io.StringIO(out.getvalue().decode(), newline="")))
    assert [row["subject"].removeprefix("'") for row in rows] == texts
    assert [row["seq"] for row in rows] == [str(n) for n in range(1, len(texts) + 1)]
    assert all(row["subject"][:1] == "'" for row in rows[:7]) and rows[0]["actor"] == "'=ann"
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for row in rows for cell in row.values())
    assert export([], io.BytesIO(), "csv") == 0
    with pytest.raises(UsageError):
        export([], io.BytesIO(), "xml")  # type: ignore[arg-type]
