"""The audit log on real databases: entries, guards, many writers."""

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.exc import IntegrityError

from storage.audit import AuditLog, append
from storage.audit_chain import (
    COLUMNS,
    GENESIS,
    Anchors,
)
from storage.audit_keys import AuditHome
from storage.audit_models import create_guards, missing_guards
from storage.errors import UsageError
from tests.storage.audit_place import fault_of, fill, home, log, unguarded
from tests.storage.audit_writer import EACH, THREADS

__all__ = ["home", "log"]


# --- entries ---------------------------------------------------------------------------------------------------------


def test_entries_are_numbered_and_chained_from_zeros(log: AuditLog) -> None:
    first = log.record("ann", "access.ask", dataset="pets", details={"b": 1, "a": [None, "é"]})
    second = log.record("owner", "access.approve", request_id="ab" * 16, subject="ann")
    assert (first.seq, first.previous, second.seq, second.previous) == (1, GENESIS, 2, first.hash)
    assert first.details == '{"a":[null,"\\u00e9"],"b":1}' and second.details == "{}"
    assert abs(first.moment - datetime.now(UTC)) < timedelta(minutes=1) and first.moment.tzinfo is not None
    verdict = log.verify()
    assert verdict.ok and (verdict.entries, verdict.head, verdict.anchored, verdict.since) == (2, second.hash, 0, 2)


def test_an_entry_shares_the_fate_of_its_transaction(log: AuditLog) -> None:
    fill(log, 1)
    with pytest.raises(RuntimeError), log.write() as session:
        append(session, actor="ann", action="grant.create")
        raise RuntimeError
    fill(log, 1)
    assert log.head() == 2 and log.verify().ok


def test_what_can_not_be_recorded_is_refused_and_leaves_no_trace(log: AuditLog) -> None:
    loop: dict[str, Any] = {}
    loop["me"] = loop
    for wrong in (
        {"action": "Grant.Create"},
        {"action": ""},
        {"action": "a b"},
        {"action": "a" * 33},
        {"actor": "x" * 161},
        {"dataset": "x" * 65},
        {"request_id": "x" * 65},
        {"details": {"x": object()}},
        {"details": {"x": float("nan")}},
        {"details": {"x": b""}},
        {"details": loop},
        {"details": {"a": 1, 2: 3}},
    ):
        with pytest.raises(UsageError):
            log.record(**{"actor": "ann", "action": "release"} | wrong)  # type: ignore[arg-type]
    assert log.head() == 0


@given(
    st.text(max_size=20), st.text(max_size=20), st.dictionaries(st.text(max_size=5), st.text(max_size=9), max_size=3)
)
def test_any_text_is_kept_and_verifies(
    tmp_path_factory: pytest.TempPathFactory, actor: str, subject: str, details: dict[str, str]
) -> None:
    log = AuditLog(f"sqlite:///{tmp_path_factory.getbasetemp() / 'texts.db'}")
    entry = log.record(actor[:20], "release", subject=subject + "\ud800\0", details=details)
    assert entry.subject.isprintable() or "\0" not in entry.subject
    assert json.loads(entry.details) == details
    assert log.entries(entry.seq - 1)[0].hash == entry.hash
    assert log.verify().ok
    log.close()


def test_entries_are_found_by_what_they_are_about(log: AuditLog) -> None:
    log.record("ann", "access.ask", dataset="pets")
    log.record("bob", "access.approve", dataset="cars", request_id="1")
    log.record("ann", "accessory", dataset="cars")

    def seqs(**filters: Any) -> list[int]:
        return [entry.seq for entry in log.entries(**filters)]

    assert seqs() == [1, 2, 3] and seqs(after=1) == [2, 3] and seqs(limit=1) == [1]
    assert seqs(newest=True, limit=2) == [2, 3]
    assert seqs(actor="ann") == [1, 3] and seqs(action="access") == [1, 2] and seqs(action="access.ask") == [1]
    assert (
        seqs(dataset="cars") == [2, 3] and seqs(dataset=["pets", "cars"], actor="bob") == [2] and not seqs(dataset=[])
    )
    assert seqs(request_id="1") == [2] and [link.seq for link in log.links(1, dataset="cars")] == [2, 3]


# --- guards against accidents ----------------------------------------------------------------------------------------


def test_the_database_refuses_to_change_remove_or_disorder(log: AuditLog) -> None:
    fill(log, 3)
    copy = f"{', '.join(COLUMNS)} FROM audit_entries WHERE seq = 2"
    for statement in (
        "UPDATE audit_entries SET actor = 'eve' WHERE seq = 2",
        "DELETE FROM audit_entries WHERE seq = 3",
        "DELETE FROM audit_entries",
        f"INSERT OR REPLACE INTO audit_entries SELECT {copy}",
        f"INSERT INTO audit_entries SELECT 9{copy.removeprefix('seq')}",
    ):
        with pytest.raises(IntegrityError, match="append-only"), log.write() as session:
            session.connection().exec_driver_sql(statement)
    assert log.verify() == log.verify(Anchors()) and log.verify().entries == 3


def test_missing_guards_are_told_and_can_be_put_back(log: AuditLog) -> None:
    unguarded(log)
    assert "lacks the triggers" in log.verify().notes[0]
    with log.write() as session:
        create_guards(session.connection())
        create_guards(session.connection())
        assert missing_guards(session.connection()) == []
    assert log.verify().notes == ()


# --- many writers ----------------------------------------------------------------------------------------------------


WRITERS = ("a", "b", "c", "d")


def check_many_writers(url: str) -> None:
    """Four processes of eight threads each."""
    command = [sys.executable, "-m", "tests.storage.audit_writer", url]
    root = Path(__file__).parents[2]
    running = [subprocess.Popen([*command, name], cwd=root) for name in WRITERS]
    assert [process.wait() for process in running] == [0] * len(WRITERS)
    with AuditLog(url) as log:
        verdict = log.verify()
        assert verdict.ok and verdict.entries == len(WRITERS) * THREADS * EACH
        for name in WRITERS:
            numbers = [json.loads(entry.details)["number"] for entry in log.entries(actor=name)]
            assert sorted(numbers) == list(range(THREADS * EACH))


def test_many_processes_and_threads_make_one_chain(tmp_path: Path) -> None:
    check_many_writers(f"sqlite:///{tmp_path / 'log.db'}")


# --- PostgreSQL ------------------------------------------------------------------------------------------------------


def test_many_processes_and_threads_make_one_chain_on_postgresql(postgres: Callable[[], str]) -> None:
    check_many_writers(postgres())


def test_postgresql_keeps_and_guards_the_log(postgres: Callable[[], str], tmp_path: Path) -> None:
    log = AuditLog(postgres(), AuditHome(tmp_path))
    fill(log, 3)
    last = log.record("ann\0", "release", subject="Zoë\0\ud800", details={"x": "\0\ud800"})
    rest = ", ".join(COLUMNS[1:-1])
    for statement in (
        "UPDATE audit_entries SET actor = 'eve' WHERE seq = 2",
        "DELETE FROM audit_entries WHERE seq = 4",
        "TRUNCATE audit_entries",
        f"INSERT INTO audit_entries ({rest}, seq, hash) SELECT {rest}, 9, 'x' FROM audit_entries WHERE seq = 2",
    ):
        with pytest.raises(IntegrityError, match="append-only"), log.write() as session:
            session.connection().exec_driver_sql(statement)
    verdict = log.verify(log.anchors(None))
    assert verdict.ok and verdict.notes == () and verdict.head == last.hash and verdict.entries == 4
    unguarded(log, "UPDATE audit_entries SET subject = 'eve' WHERE seq = 2")
    verdict = log.verify()
    assert "entry 2 was altered" in fault_of(verdict) and "lacks the triggers" in verdict.notes[0]
    with log.write() as session:
        create_guards(session.connection())
        create_guards(session.connection())
        assert missing_guards(session.connection()) == []
    log.close()
