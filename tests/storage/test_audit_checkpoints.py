"""Checkpoints of the audit log in a real object store: what was anchored can not be cut off or written anew."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.audit import AuditLog, checkpoint_due
from storage.audit_checkpoints import (
    Checkpoint,
    anchor,
    conditional,
    decode_checkpoint,
    read_anchors,
    remembered,
    sign_checkpoint,
)
from storage.audit_keys import AuditHome, read_public_keys
from storage.errors import AuditBroken, UsageError
from storage.guarantee import Guarantee
from storage.objects import ObjectStore
from tests.services import Careful
from tests.storage.audit_place import VECTOR, fault_of, fill, home, log, unguarded
from tests.vectors.make_audit import FOLDER, signer

__all__ = ["home", "log"]


def test_a_checkpoint_vouches_for_the_log_up_to_its_entry(
    log: AuditLog, store: ObjectStore, promised: Guarantee
) -> None:
    assert log.checkpoint(store) is None and log.verify(log.anchors(store)).ok
    fill(log, 3)
    made = log.checkpoint(store)
    assert made is not None and made.key == "audit/checkpoints/000000000003.json"
    assert store.get_bytes(made.key) == made.encode()
    assert log.checkpoint(store) == made  # nothing new: the same one
    fill(log, 2)
    verdict = log.verify(log.anchors(store))
    assert verdict.ok and (verdict.checkpoints, verdict.anchored, verdict.since) == (1, 3, 2)
    assert verdict.anchored_at == made.time and abs(made.moment - datetime.now(UTC)) < timedelta(minutes=1)
    assert conditional(log.home) is (promised is Guarantee.ATOMIC)
    assert len(verdict.notes) == (0 if conditional(log.home) else 1)
    assert all("does not honour" in note for note in verdict.notes)
    assert log.checkpoint(store) != made
    verdict = log.verify(log.anchors(store))
    assert verdict.ok and (verdict.checkpoints, verdict.anchored, verdict.since) == (2, 5, 0)


def test_a_server_that_honours_conditions_is_noticed(log: AuditLog, store: ObjectStore) -> None:
    fill(log, 1)
    log.checkpoint(Careful(store))
    assert conditional(log.home) is True and log.verify(log.anchors(store)).notes == ()


def test_the_public_key_is_all_that_a_verifier_needs(log: AuditLog, store: ObjectStore, tmp_path: Path) -> None:
    fill(log, 3)
    log.checkpoint(store)
    pinned = read_public_keys(log.home.public)
    elsewhere = AuditLog(f"sqlite:///{log.home.folder / 'registry.db'}")
    verdict = elsewhere.verify(read_anchors(store, pinned))
    assert verdict.ok and verdict.anchored == 3
    with pytest.raises(UsageError):
        elsewhere.checkpoint(store)
    stranger = AuditHome(tmp_path / "stranger")
    with stranger.locked():
        stranger.signer()
    assert "not pinned" in fault_of(elsewhere.verify(read_anchors(store, stranger.pinned())))
    assert "not pinned" in fault_of(elsewhere.verify(read_anchors(store, {})))
    elsewhere.close()


@pytest.mark.parametrize("forge", [False, True], ids=["cut", "written anew"])
def test_what_was_anchored_can_not_be_cut_off_or_written_anew(log: AuditLog, store: ObjectStore, forge: bool) -> None:
    fill(log, 5)
    log.checkpoint(store)
    unguarded(log, "DELETE FROM audit_entries WHERE seq > 2")
    if forge:
        fill(log, 5)
        assert log.verify().ok  # the chain alone is whole
    found = fault_of(log.verify(log.anchors(store)))
    assert ("is not what a checkpoint signed" if forge else "the last 3 or more were removed") in found
    with pytest.raises(AuditBroken):
        log.checkpoint(store)  # and is never signed
    with pytest.raises(AuditBroken):
        checkpoint_due(log, store, log.home, 1)
    log.home.anchor.unlink()
    with pytest.raises(AuditBroken):
        log.checkpoint(store)  # the object store remembers too


def test_a_broken_chain_is_never_signed(log: AuditLog, store: ObjectStore) -> None:
    fill(log, 2)
    log.checkpoint(store)
    fill(log, 3)
    unguarded(log, "UPDATE audit_entries SET actor = 'eve' WHERE seq = 4")
    with pytest.raises(AuditBroken, match="entry 4"):
        log.checkpoint(store)
    assert [info.key for info in store.list("audit/")] == ["audit/checkpoints/000000000002.json"]


def test_a_checkpoint_that_is_gone_is_missed_and_put_back(log: AuditLog, store: ObjectStore) -> None:
    fill(log, 2)
    made = log.checkpoint(store)
    assert made is not None
    store.delete(made.key)
    assert "gone from the object store" in fault_of(log.verify(log.anchors(store)))
    assert log.checkpoint(store) == made
    assert log.verify(log.anchors(store)).ok
    home = log.home
    home.anchor.unlink()
    store.delete(made.key)
    assert log.verify(log.anchors(store)).ok  # nobody remembers ...
    kept = log.anchors(store, [made])
    assert "gone from the object store" in fault_of(log.verify(kept))  # ... but whoever kept a copy


@given(st.integers(0, 10_000), st.integers(0, 7))
def test_any_flipped_bit_of_a_checkpoint_is_found(position: int, bit: int) -> None:
    data = bytearray(VECTOR)
    data[position % len(data)] ^= 1 << bit
    found = decode_checkpoint(bytes(data))
    assert found is None or not found.valid(read_public_keys(FOLDER / "audit.pub"))


def test_altered_objects_in_the_store_are_found(log: AuditLog, store: ObjectStore) -> None:
    fill(log, 2)
    made = log.checkpoint(store)
    assert made is not None
    log.home.anchor.unlink()
    good = made.encode()
    other_key = sign_checkpoint(signer(), 2, made.hash)
    wrong = made.model_copy(update={"time": "2020-01-01T00:00:00.000000Z"})
    for data, what in (
        (b"", "is no checkpoint"),
        (good[:-1], "is no checkpoint"),
        (good.replace(b'"seq":2', b'"seq":3'), "holds the checkpoint of entry 3"),
        (other_key.encode(), "not pinned"),
        (wrong.encode(), "wrong signature"),
    ):
        store.put_bytes(made.key, data)
        assert what in fault_of(log.verify(log.anchors(store)))
    with pytest.raises(AuditBroken, match="says something else"):
        log.checkpoint(store)
    store.put_bytes(made.key, good)
    store.put_bytes("audit/checkpoints/note.txt", b"hello")
    assert "note.txt in the object store is no checkpoint" in fault_of(log.verify(log.anchors(store)))


def test_an_altered_memory_of_the_last_checkpoint_is_found(log: AuditLog, store: ObjectStore) -> None:
    fill(log, 2)
    made = log.checkpoint(store)
    assert made is not None
    text = log.home.anchor.read_text()
    log.home.anchor.write_text(text.replace('"seq":2', '"seq":1'))
    assert "not signed under a pinned key" in fault_of(log.verify(log.anchors(store)))
    with pytest.raises(AuditBroken):
        log.checkpoint(store)
    log.home.anchor.write_text(text[:-4])
    with pytest.raises(AuditBroken, match=r"audit\.anchor\.json"):
        log.anchors(store)


def test_two_machines_anchor_the_same_log(store: ObjectStore, log: AuditLog, tmp_path: Path) -> None:
    """The same key in two homes: the second finds what the first put."""
    fill(log, 2)
    careful = Careful(store)
    first = log.checkpoint(careful)
    other = AuditHome(tmp_path / "other")
    other.folder.mkdir()
    for path in (log.home.private, log.home.public):
        target = other.folder / path.name
        target.write_bytes(path.read_bytes())
        target.chmod(0o600)
    assert anchor(log, careful, other) == first == remembered(other)
    fill(log, 1)
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(lambda place: anchor(log, careful, place), (log.home, other)))
    assert made[0] == made[1] and log.verify(log.anchors(store)).anchored == 3


def test_checkpoints_are_due_after_entries_or_seconds(log: AuditLog, store: ObjectStore) -> None:
    def due(entries: int = 3, seconds: float = 3600) -> Checkpoint | None:
        return checkpoint_due(log, store, log.home, entries, seconds)

    assert due() is None
    fill(log, 1)
    assert due() is not None and due() is None
    fill(log, 2)
    assert due() is None
    fill(log, 1)
    assert due() is not None
    fill(log, 1)
    assert due(seconds=0) is not None and due(seconds=0) is None
    assert log.verify(log.anchors(store)).checkpoints == 3
