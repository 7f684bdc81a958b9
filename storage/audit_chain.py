"""The chain of the audit log: how an entry is encoded and hashed, and how a whole log is checked.

The hash of an entry is the SHA-256, in hex, of one line of JSON in ASCII without blanks:

    ["dmcp-audit-1",SEQ,TIME,ACTOR,ACTION,DATASET,REQUEST_ID,SUBJECT,DETAILS,PREVIOUS]

SEQ is a number, DATASET and REQUEST_ID may be null, all else is strings. TIME is RFC 3339 in UTC with microseconds
(`2026-01-31T12:00:00.000000Z`). DETAILS is a string that holds a JSON object itself: keys sorted, no blanks, ASCII.
PREVIOUS is the hash of the entry before; 64 zeros for the first. So each hash covers everything up to its entry.

`check_chain` reads entries one after another and keeps nothing of them: a log may have any length.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from storage.errors import AuditBroken, UsageError

ENCODING = "dmcp-audit-1"
GENESIS = "0" * 64

NOT_AS_NOTED = "entry {0}, or one before it, is not what this machine saw when it was written (HOME/audit.head)"

_encode = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode


class Link(NamedTuple):
    """One entry as it is stored, in the order of its encoding."""

    seq: int
    time: str
    actor: str
    action: str
    dataset: str | None
    request_id: str | None
    subject: str
    details: str
    previous: str
    hash: str


COLUMNS = Link._fields


def encode_entry(entry: Link) -> bytes:
    """What is hashed; see the top of this file."""
    return _encode([ENCODING, *entry[:-1]]).encode("ascii")


def entry_hash(entry: Link) -> str:
    """The hash that an entry with these contents has, whatever `entry.hash` says."""
    return hashlib.sha256(encode_entry(entry)).hexdigest()


def encode_details(details: Mapping[str, Any]) -> str:
    """The one encoding of an entry's details; times become RFC 3339.

    Raises:
        UsageError: something in it is no JSON.
    """
    try:
        return json.dumps(
            dict(details), ensure_ascii=True, allow_nan=False, separators=(",", ":"), sort_keys=True, default=_plain
        )
    except (TypeError, ValueError) as error:
        raise UsageError(f"The details of an audit entry can not be encoded: {error}.") from None


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return encode_time(value)
    raise TypeError(f"{type(value).__name__} is no JSON")


def encode_time(moment: datetime) -> str:
    """RFC 3339, UTC, microseconds: 27 characters."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


@dataclass(frozen=True)
class Fault:
    """The first thing that is wrong: where (0: the anchors themselves) and what."""

    seq: int
    what: str


@dataclass(frozen=True)
class AuditVerdict:
    """What a check of the log found.

    `entries` were read and hold together; `anchored` is the seq of the last entry that a valid checkpoint covers (0:
    none), `anchored_at` when that was signed. Entries after it are chained, but nothing outside vouches for them yet.
    """

    entries: int
    head: str
    checkpoints: int
    anchored: int
    anchored_at: str | None
    fault: Fault | None
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return self.fault is None

    @property
    def since(self) -> int:
        """How many entries came after the last anchor."""
        return max(self.entries - self.anchored, 0)

    def check(self) -> None:
        """Raises AuditBroken when something is wrong."""
        if self.fault is not None:
            raise AuditBroken(
                f"The audit log does not verify: {self.fault.what}.",
                "Keep database and bucket as they are; compare them with a backup and with exports made before.",
            )


class Chain:
    """Where a walk along the log is: `follow` takes the next entry and says what is wrong with it."""

    def __init__(self, seq: int = 0, head: str = GENESIS) -> None:
        self.seq = seq
        self.head = head

    def follow(self, entry: Link) -> str | None:
        """Go on to `entry`; or stay, and return why it is not the next one."""
        fault = _misfit(entry, self.seq, self.head)
        if fault is None:
            self.seq, self.head = entry.seq, entry.hash
        return fault


def _misfit(entry: Link, seq: int, head: str) -> str | None:
    number = entry.seq
    if number != seq + 1:
        if not isinstance(number, int) or number <= seq:
            return f"after entry {seq} comes entry {number!r}"
        missing = f"entry {seq + 1} is" if number == seq + 2 else f"entries {seq + 1} to {number - 1} are"
        return f"{missing} missing"
    try:
        computed = entry_hash(entry)
    except (TypeError, ValueError):
        return f"entry {number} was altered: it holds what no entry holds"
    if computed != entry.hash:
        return f"entry {number} was altered: its hash is not that of its contents"
    if entry.previous != head:
        return f"entry {number} does not follow entry {seq}: one of them was put in another's place"
    return None


@dataclass(frozen=True)
class Anchors:
    """What the checkpoints say: hash and time of signing by seq, all with a valid signature; and what is wrong.

    `noted` is the newest entry that this machine saw (number and hash): not signed, but newer than any checkpoint.
    """

    hashes: Mapping[int, str] = field(default_factory=dict)
    times: Mapping[int, str] = field(default_factory=dict)
    noted: tuple[int, str] | None = None
    faults: tuple[Fault, ...] = ()
    notes: tuple[str, ...] = ()


def check_chain(entries: Iterable[Link], anchors: Anchors, notes: Iterable[str] = ()) -> AuditVerdict:
    """Check a whole log, from its first entry on, against its anchors (read before the entries were).

    Reads on until the first fault. `entries` may raise AuditBroken for an entry that can not even be read.
    """
    chain, hashes, noted, fault, last = Chain(), anchors.hashes, anchors.noted, None, 0
    follow = chain.follow
    try:
        for entry in entries:
            wrong = follow(entry)
            if wrong is not None:
                fault = Fault(chain.seq + 1, wrong)
                break
            if entry.seq in hashes:
                if hashes[entry.seq] != entry.hash:
                    fault = Fault(entry.seq, f"entry {entry.seq}, or one before it, is not what a checkpoint signed")
                    break
                last = entry.seq
            if noted is not None and entry.seq == noted[0] and entry.hash != noted[1]:
                fault = Fault(entry.seq, NOT_AS_NOTED.format(entry.seq))
                break
    except AuditBroken as error:
        fault = Fault(chain.seq + 1, error.what.rstrip("."))
    if fault is None:
        fault = _beyond(chain.seq, anchors) or next(iter(anchors.faults), None)
    return AuditVerdict(
        entries=chain.seq,
        head=chain.head,
        checkpoints=sum(1 for seq in hashes if seq <= chain.seq),
        anchored=last,
        anchored_at=anchors.times.get(last),
        fault=fault,
        notes=(*anchors.notes, *notes),
    )


def _beyond(end: int, anchors: Anchors) -> Fault | None:
    """A checkpoint, or a note, of an entry that the log does not have: its end was cut off."""
    newest, noted = max(anchors.hashes, default=0), anchors.noted[0] if anchors.noted is not None else 0
    if max(newest, noted) <= end:
        return None
    who = f"a checkpoint of {anchors.times.get(newest, 'some time')} names" if newest >= noted else "this machine saw"
    newest = max(newest, noted)
    missing = f"the last {newest - end} or more were removed"
    return Fault(end + 1, f"it ends with entry {end}, but {who} entry {newest}: {missing}")
