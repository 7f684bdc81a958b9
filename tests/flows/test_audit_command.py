"""`dmcp audit` on a real registry and a real object store: what it prints, and its exit codes."""

import csv
import io
import json
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from flows.cli import app
from storage.audit import AuditLog, open_audit_log
from storage.audit_checkpoints import remembered
from storage.audit_models import GUARDS
from storage.objects import open_store
from storage.server import running_server
from storage.settings import Settings, settings


@pytest.fixture
def log(home: Path) -> Iterator[AuditLog]:
    """Three entries, and the object server running."""
    with running_server(home), open_audit_log(Settings(home=home)) as log:
        log.record("ann", "access.ask", dataset="pets", subject="=cats\x1b[2J")
        log.record("owner", "access.approve", dataset="pets", subject="ann", details={"grant": 1})
        log.record("service", "release", dataset="cars", request_id="ab" * 16, details={"shard": 0})
        yield log


def dmcp(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["audit", *(str(argument) for argument in arguments)])
    assert result.exit_code == code, result.output
    return result


def tamper(home: Path, statement: str) -> None:
    raw = sqlite3.connect(home / "registry.db")
    for name in GUARDS:
        raw.execute(f"DROP TRIGGER IF EXISTS {name}")
    raw.execute(statement)
    raw.commit()
    raw.close()


def test_an_empty_log_verifies_and_has_nothing_to_anchor(home: Path) -> None:
    assert "no such entry" in dmcp("show").stdout
    assert "nothing to anchor" in dmcp("checkpoint").stdout
    assert "verifies: 0 entries" in dmcp("verify").stdout
    assert not (home / "audit.key.pem").exists()


def test_show_lists_the_newest_and_obeys_filters_but_no_terminal_codes(log: AuditLog) -> None:
    shown = dmcp("show").stdout
    assert all(word in shown for word in ("access.ask", "access.approve", "release", "ab" * 16, '{"grant":1}'))
    assert "\x1b[2J" not in shown and r"\x1b[2J" in shown
    assert "access.ask" not in dmcp("show", "--last", 2).stdout
    assert "release" not in dmcp("show", "--action", "access").stdout
    assert "release" in dmcp("show", "--dataset", "cars").stdout
    assert "no such entry" in dmcp("show", "--actor", "eve").stdout
    assert "no such entry" in dmcp("show", "--after", 3).stdout
    dmcp("show", "--last", 0, code=2)


def test_checkpoint_then_verify_then_a_changed_entry(log: AuditLog, home: Path) -> None:
    assert "entries since         3" in dmcp("verify").stdout
    made = dmcp("checkpoint")
    assert "Entry 3 and all before it are anchored" in made.stdout and "does not honour" in made.stderr
    again = dmcp("verify")
    assert "verifies: 3 entries" in again.stdout and "anchored up to entry  3" in again.stdout
    tamper(home, "UPDATE audit_entries SET subject = 'eve' WHERE seq = 2")
    broken = dmcp("verify", code=3)
    assert "entry 2 was altered" in broken.stderr and broken.stdout == ""
    log.record("ann", "access.ask")
    assert (
        dmcp("checkpoint").exit_code == 0
    )  # follows from the checkpoint before; what lies below it is verify's matter
    assert "entry 2 was altered" in dmcp("verify", code=3).stderr


@pytest.mark.parametrize("offline", [False, True])
def test_a_log_that_was_cut_off_fails(log: AuditLog, home: Path, offline: bool) -> None:
    dmcp("checkpoint")
    tamper(home, "DELETE FROM audit_entries WHERE seq > 1")
    assert "the last 2 or more were removed" in dmcp("verify", *["--offline"][: int(offline)], code=3).stderr
    assert "not signed" in dmcp("checkpoint", code=3).stderr


def test_an_auditor_needs_the_public_key_and_a_copy_of_the_checkpoint_only(
    log: AuditLog, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dmcp("checkpoint")
    key, kept, out = tmp_path / "audit.pub", tmp_path / "kept.json", tmp_path / "log.jsonl"
    key.write_bytes((home / "audit.pub").read_bytes())
    last = remembered(log.home)
    assert last is not None
    kept.write_bytes(open_store(Settings(home=home), "private").get_bytes(last.key))
    assert "Wrote 3 entries" in dmcp("export", out).stdout
    monkeypatch.setenv("DMCP_HOME", str(tmp_path / "auditor"))
    settings.cache_clear()
    arguments = ("verify", "--from", out, "--public-key", key, "--checkpoint", kept, "--offline")
    assert "anchored up to entry  3" in dmcp(*arguments).stdout
    out.write_bytes(out.read_bytes().replace(b"owner", b"0wner"))
    assert "entry 2 was altered" in dmcp(*arguments, code=3).stderr
    kept.write_bytes(b"{}")
    assert "is no checkpoint" in dmcp(*arguments, code=3).stderr
    dmcp("verify", "--offline", "--public-key", out, code=5)
    dmcp("verify", "--offline", "--public-key", tmp_path / "none", code=4)
    dmcp("verify", "--offline", "--from", tmp_path / "none", code=4)


def test_checkpoints_without_a_pinned_key_do_not_count(log: AuditLog, home: Path) -> None:
    dmcp("checkpoint")
    (home / "audit.pub").rename(home / "elsewhere.pub")
    assert "not pinned" in dmcp("verify", code=3).stderr
    dmcp("verify", "--public-key", home / "elsewhere.pub")


def test_export_writes_private_files_in_both_formats(log: AuditLog, tmp_path: Path) -> None:
    lines, sheet = tmp_path / "log.jsonl", tmp_path / "log.csv"
    assert "dmcp audit verify --from" in dmcp("export", lines).stdout
    dmcp("export", sheet)
    assert [json.loads(line)["seq"] for line in lines.read_text().splitlines()] == [1, 2, 3]
    rows = list(csv.DictReader(io.StringIO(sheet.read_text(), newline="")))
    assert len(rows) == 3 and rows[0]["subject"].startswith("'=cats")
    assert stat.S_IMODE(lines.stat().st_mode) == 0o600 and sorted(tmp_path.glob(".*")) == []
    filtered = dmcp("export", tmp_path / "x", "--dataset", "cars", "--format", "csv").stdout
    assert "Wrote 1 entries" in filtered and "verify" not in filtered
    dmcp("export", tmp_path / "x", "--format", "xml", code=2)


def test_export_streams_to_stdout(log: AuditLog, home: Path) -> None:
    command = [sys.executable, "-m", "flows.cli", "audit", "export", "-", "--after", "1"]
    done = subprocess.run(command, capture_output=True, check=True)
    assert [json.loads(line)["seq"] for line in done.stdout.splitlines()] == [2, 3]
