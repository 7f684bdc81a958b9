"""The note of the audit log's newest entry: its end is not cut off unnoticed either."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from storage.audit import AuditLog, checkpoint_due
from storage.audit_chain import (
    GENESIS,
)
from storage.audit_checkpoints import (
    remembered,
)
from storage.errors import AuditBroken, EnvironmentFault
from storage.objects import ObjectStore
from tests.storage.audit_place import fault_of, fill, home, log, unguarded

__all__ = ["home", "log"]


def test_the_end_of_the_log_has_a_witness_before_it_is_anchored(log: AuditLog, store: ObjectStore) -> None:
    fill(log, 2)
    log.checkpoint(store)
    entry = log.record("service", "release", dataset="pets")
    assert log.home.noted_head() == (3, entry.hash)
    fill(log, 1)
    assert log.verify(log.anchors(store)).ok
    unguarded(log, "DELETE FROM audit_entries WHERE seq > 2")
    found = fault_of(log.verify(log.anchors(store)))
    assert found == "it ends with entry 2, but this machine saw entry 3: the last 1 or more were removed"
    with pytest.raises(AuditBroken, match="this machine saw entry 3"):
        log.checkpoint(store)
    fill(log, 2)
    assert log.verify().ok and "not what this machine saw" in fault_of(log.verify(log.anchors(None)))
    with pytest.raises(AuditBroken, match="not what this machine saw"):
        log.checkpoint(store)


def test_asking_whether_an_anchor_is_due_notes_the_newest_entry(log: AuditLog, store: ObjectStore) -> None:
    fill(log, 1)
    checkpoint_due(log, store, log.home)
    fill(log, 1)
    assert checkpoint_due(log, store, log.home) is None and log.home.noted_head() == log.last()
    log.home.note_head(1, GENESIS, log.hash_of)  # older: nothing changes
    assert log.home.noted_head() == log.last()


def test_entries_added_later_do_not_hide_that_the_end_was_cut_off(
    log: AuditLog, store: ObjectStore, caplog: pytest.LogCaptureFixture
) -> None:
    fill(log, 2)
    made = log.checkpoint(store)
    for _ in range(3):
        log.record("service", "release")
    noted = log.home.noted_head()
    unguarded(log, "DELETE FROM audit_entries WHERE seq > 2")
    with pytest.raises(AuditBroken, match="entry 5, which this machine saw, is missing"):
        checkpoint_due(log, store, log.home)  # whether one is due or not
    for seq in range(3, 7):  # up to the noted number, and past it
        caplog.clear()
        assert log.record("service", "release").seq == seq  # records go on
        assert [entry.levelname for entry in caplog.records if entry.name == "dmcp.audit"] == ["ERROR"]
        assert log.home.noted_head() == noted
    assert log.verify().ok and "not what this machine saw" in fault_of(log.verify(log.anchors(store)))
    with pytest.raises(AuditBroken, match="not what this machine saw"):
        checkpoint_due(log, store, log.home, 1)
    assert log.home.noted_head() == noted and remembered(log.home) == made


def test_an_emptied_log_is_not_taken_for_a_new_one(log: AuditLog, store: ObjectStore) -> None:
    log.record("service", "release")
    unguarded(log, "DELETE FROM audit_entries")
    with pytest.raises(AuditBroken, match="is missing"):
        checkpoint_due(log, store, log.home)
    log.record("service", "download")
    with pytest.raises(AuditBroken, match="not what this machine saw"):
        checkpoint_due(log, store, log.home)


def test_heads_noted_out_of_order_are_no_fault(log: AuditLog, caplog: pytest.LogCaptureFixture) -> None:
    fill(log, 6)
    entries = log.entries()
    for number in (2, 1, 5, 4, 5, 6, 3):
        log.home.note_head(number, entries[number - 1].hash, log.hash_of)
    assert log.home.noted_head() == log.last()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: log.record("service", "release"), range(40)))
    assert not [entry for entry in caplog.records if entry.name == "dmcp.audit"]
    assert log.verify(log.anchors(None)).ok


def test_a_note_that_runs_ahead_of_the_end_just_read_is_no_fault(log: AuditLog, store: ObjectStore) -> None:
    class Busy(AuditLog):
        """Another process adds and notes an entry just after this one asked for the last."""

        def last(self) -> tuple[int, str]:
            found = super().last()
            log.record("service", "release")
            return found

    log.record("service", "release")
    with Busy(f"sqlite:///{log.home.folder / 'registry.db'}", log.home) as busy:
        for _ in range(3):
            checkpoint_due(busy, store, log.home, 1)
    assert log.home.noted_head() == log.last() and log.verify(log.anchors(store)).anchored == 4


def test_a_database_out_of_reach_keeps_the_note(log: AuditLog, caplog: pytest.LogCaptureFixture) -> None:
    def gone(seq: int) -> str | None:
        raise EnvironmentFault(f"no answer about {seq}")

    noted = log.record("service", "release")
    log.home.note_head(2, GENESIS, gone)
    assert log.home.noted_head() == (1, noted.hash)
    assert [entry.levelname for entry in caplog.records if entry.name == "dmcp.audit"] == ["WARNING"]


@pytest.mark.parametrize("text", ["x", "1 2\n", "0 " + GENESIS + "\n", "2 " + GENESIS, "2 " + GENESIS + "\n\n", "\xff"])
def test_an_altered_note_is_found(log: AuditLog, text: str) -> None:
    fill(log, 2)
    log.home.folder.mkdir(exist_ok=True)
    log.home.head.write_text(text)
    log.record("service", "release")  # goes on, and leaves the note for verify to find
    with pytest.raises(AuditBroken, match=r"audit\.head"):
        log.anchors(None)
    log.home.head.write_text("")  # after a power failure
    assert log.verify(log.anchors(None)).ok
