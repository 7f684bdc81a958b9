"""The chain of the audit log: nothing in it changes unnoticed; the format is that of the vectors."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.audit import AuditLog
from storage.audit_chain import (
    COLUMNS,
    GENESIS,
    Anchors,
    Link,
    check_chain,
    encode_details,
    encode_entry,
    entry_hash,
)
from storage.audit_checkpoints import (
    decode_checkpoint,
    read_anchors,
)
from storage.audit_keys import read_public_keys
from storage.errors import AuditBroken, DmcpError
from tests.storage.audit_place import VECTOR, fault_of, files_links, fill, home, log, unguarded
from tests.vectors.make_audit import FOLDER, files

__all__ = ["home", "log"]


# --- the chain: pure -------------------------------------------------------------------------------------------------


def chain_of(count: int) -> list[Link]:
    links: list[Link] = []
    for seq in range(1, count + 1):
        previous = links[-1].hash if links else GENESIS
        time = f"2026-01-01T00:00:{seq:02d}.000000Z"
        request = f"{seq:032x}" if seq % 2 else None
        details = encode_details({"shard": seq, "images": 200})
        bare = Link(seq, time, "ann", "release", "pets", request, f"shard {seq}", details, previous, "")
        links.append(bare._replace(hash=entry_hash(bare)))
    return links


def chained(links: list[Link]) -> list[Link]:
    """The same entries, numbered and hashed anew: what someone who can write the database would do."""
    done: list[Link] = []
    for seq, link in enumerate(links, 1):
        bare = link._replace(seq=seq, previous=done[-1].hash if done else GENESIS)
        done.append(bare._replace(hash=entry_hash(bare)))
    return done


CHAIN = chain_of(9)
ANCHORS = Anchors({4: CHAIN[3].hash, 9: CHAIN[8].hash}, {4: "then", 9: "now"})


@given(st.integers(0, 8), st.sampled_from(COLUMNS), st.data())
def test_any_changed_bit_of_any_column_is_found(row: int, column: str, data: st.DataObject) -> None:
    value = getattr(CHAIN[row], column)
    if isinstance(value, int):
        other: Any = value ^ (1 << data.draw(st.integers(0, 62)))
    elif value is None:
        other = data.draw(st.sampled_from(["", "null", "None", "x"]))
    else:
        raw = bytearray(value.encode())
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        other = raw.decode("utf-8", "surrogateescape")
    links = [*CHAIN[:row], CHAIN[row]._replace(**{column: other}), *CHAIN[row + 1 :]]
    verdict = check_chain(links, Anchors())
    assert not verdict.ok and verdict.entries == row


@given(st.integers(0, 8), st.sampled_from(COLUMNS), st.sampled_from([None, b"", 1.0, True, [], "", float("nan")]))
def test_values_of_other_types_are_found(row: int, column: str, other: Any) -> None:
    value = getattr(CHAIN[row], column)
    if (value is None and other is None) or (value == other and type(value) is type(other)):
        return
    links = [*CHAIN[:row], CHAIN[row]._replace(**{column: other}), *CHAIN[row + 1 :]]
    assert not check_chain(links, Anchors()).ok


@given(st.lists(st.integers(0, 8), max_size=12).filter(lambda order: order != list(range(9))))
def test_any_other_selection_or_order_is_found(order: list[int]) -> None:
    """Removed, repeated, swapped, cut off: whatever is not all entries in order, against the anchors."""
    verdict = check_chain([CHAIN[i] for i in order], ANCHORS)
    assert not verdict.ok


@given(st.permutations(range(9)).map(list), st.integers(0, 9))
def test_histories_written_anew_are_found_when_anchored(order: list[int], count: int) -> None:
    forged = chained([CHAIN[i] for i in order[:count]])
    if forged == CHAIN:
        return
    assert check_chain(forged, Anchors()).ok  # a chain alone does not show it ...
    assert not check_chain(forged, ANCHORS).ok  # ... an anchor does


@given(st.integers(0, 9), st.integers(0, 8))
def test_an_inserted_entry_is_found(at: int, source: int) -> None:
    inserted = CHAIN[source]._replace(actor="eve")
    assert not check_chain([*CHAIN[:at], inserted, *CHAIN[at:]], ANCHORS).ok
    forged = chained([*CHAIN[:at], inserted, *CHAIN[at:]])
    assert check_chain(forged, ANCHORS).ok == (at == 9)  # after the last anchor: a longer log


def test_the_first_fault_is_said_plainly() -> None:
    def fault(*links: Link) -> str:
        return fault_of(check_chain(links, ANCHORS))

    a, b, c, d = CHAIN[:4]
    assert fault(b, c) == "entry 1 is missing"
    assert fault(a, d) == "entries 2 to 3 are missing"
    assert fault(a, b._replace(actor="eve")) == "entry 2 was altered: its hash is not that of its contents"
    assert fault(a, b, b) == "after entry 2 comes entry 2"
    assert "does not follow entry 1" in fault(a, chain_of(3)[1]._replace(**_rehashed(b, previous=GENESIS)))
    assert "ends with entry 3, but a checkpoint of now names entry 9: the last 6" in fault(a, b, c)
    assert fault() == "it ends with entry 0, but a checkpoint of now names entry 9: the last 9 or more were removed"
    assert fault(*chained([a, b, c, d._replace(actor="eve")])) == (
        "entry 4, or one before it, is not what a checkpoint signed"
    )


def _rehashed(link: Link, **changes: Any) -> dict[str, Any]:
    bare = link._replace(**changes)
    return bare._replace(hash=entry_hash(bare))._asdict()


# --- the chain: in the database --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("written") / "log.db"
    log = AuditLog(f"sqlite:///{path}")
    for number in range(6):
        details = {"shard": number, "sha256": "ab" * 32}
        log.record("ann", "release", dataset="pets", request_id=f"{number:032x}", subject="Zoë", details=details)
    unguarded(log)
    log.close()
    return path


@given(st.integers(1, 6), st.sampled_from(COLUMNS[1:]), st.data())
def test_one_edited_byte_in_the_database_does_not_verify(written: Path, seq: int, column: str, data: Any) -> None:
    raw = sqlite3.connect(written, isolation_level=None)
    (before,) = raw.execute(f"SELECT CAST({column} AS BLOB) FROM audit_entries WHERE seq = ?", (seq,)).fetchone()
    edited = bytearray(before)
    edited[data.draw(st.integers(0, len(edited) - 1))] = data.draw(st.integers(0, 255))
    change = f"UPDATE audit_entries SET {column} = CAST(? AS TEXT) WHERE seq = ?"
    log = AuditLog(f"sqlite:///{written}")
    try:
        raw.execute(change, (bytes(edited), seq))
        verdict = log.verify()
        assert verdict.ok == (bytes(edited) == before)
        assert verdict.fault is None or verdict.fault.seq == seq
    finally:
        raw.execute(change, (before, seq))
        raw.close()
        log.close()


def test_bytes_that_are_no_text_are_found_where_they_are(log: AuditLog) -> None:
    fill(log, 5)
    unguarded(log, "UPDATE audit_entries SET subject = CAST(x'ff' AS TEXT) WHERE seq = 4")
    assert fault_of(log.verify()) == "The entry after 3 was altered: it holds bytes that are no text"
    unguarded(log, "UPDATE audit_entries SET subject = x'41' WHERE seq = 2")
    assert fault_of(log.verify()) == "entry 2 was altered: it holds what no entry holds"


def test_a_removed_and_a_renumbered_entry_are_found(log: AuditLog) -> None:
    fill(log, 5)
    unguarded(log, "DELETE FROM audit_entries WHERE seq = 3")
    assert fault_of(log.verify()) == "entry 3 is missing"
    unguarded(log, "UPDATE audit_entries SET seq = seq - 1 WHERE seq > 3")
    assert "entry 3 was altered" in fault_of(log.verify())


def test_a_long_log_is_read_page_by_page(log: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.audit.PAGE", 50)
    fill(log, 100)
    told: list[int] = []
    assert log.verify(progress=lambda what, done, total: told.append(done)).entries == 100
    assert told == [0, 50] and len(list(log.links())) == 100
    fill(log, 1)
    assert log.verify().entries == len(list(log.links())) == 101
    unguarded(log, "UPDATE audit_entries SET actor = 'eve' WHERE seq = 57")
    assert log.verify().entries == 56


# --- format vectors --------------------------------------------------------------------------------------------------


def test_the_format_is_that_of_the_vectors() -> None:
    for name, data in files().items():
        assert (FOLDER / name).read_bytes() == data, name


def test_the_vectors_verify() -> None:
    links = list(files_links())
    assert [encode_entry(link) for link in links] == (FOLDER / "encoded.txt").read_bytes().splitlines()
    kept = decode_checkpoint(VECTOR)
    assert kept is not None
    verdict = check_chain(links, read_anchors(None, read_public_keys(FOLDER / "audit.pub"), others=[kept]))
    assert verdict.ok and (verdict.entries, verdict.anchored, verdict.since) == (5, 4, 1)


def test_faults_are_errors_of_the_tree() -> None:
    assert issubclass(AuditBroken, DmcpError) and AuditBroken.exit_code == 3
