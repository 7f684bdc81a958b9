"""Checkpoints of the audit log: signed, in the object store, out of reach of whoever can change the database.

    audit/checkpoints/000000001234.json
    {"format":"dmcp-audit-checkpoint-1","seq":1234,"hash":"...","time":"...","key_id":"...","signature":"..."}

The signature (Ed25519) is over one line of JSON without blanks: ["dmcp-audit-checkpoint-1",seq,hash,time,key_id].
Since the hash of an entry covers all entries before it, one valid checkpoint vouches for the log up to its entry. A
checkpoint is made only of a log that still follows from the checkpoint before: nothing altered is ever signed.

An object is put only where none is (If-None-Match). Whether the server honours that is found out with each checkpoint,
by putting the same bytes again: it must be refused. Where it is not (the embedded rclone), or where someone may delete
objects, an anchor could be replaced or removed; so HOME remembers the newest one, and any copy of a checkpoint kept
elsewhere can be laid beside the log (`dmcp audit verify --checkpoint FILE`). In a bucket with Object Lock nobody can.
HOME also notes the newest entry it saw (`audit.head`), a witness for the end of the log before it is anchored.

Whoever holds the private key, the database, the bucket and HOME can write another history: keep copies elsewhere.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Annotated, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from storage import object_errors
from storage.audit_chain import NOT_AS_NOTED, Anchors, Chain, Fault, Link, encode_time, entry_hash
from storage.audit_keys import AuditHome, PublicKey, Signer, unlike_noted
from storage.database import utc_now
from storage.errors import AuditBroken, NotFound, ObjectStoreError, PublicationConflict
from storage.files import write_atomic
from storage.objects import ObjectStore
from storage.transfer import in_parallel

FORMAT = "dmcp-audit-checkpoint-1"
PREFIX = "audit/checkpoints/"
UNCONDITIONAL = (
    "The object store does not honour conditional puts: a checkpoint there can be written over unnoticed, unless HOME "
    "or someone else remembers it."
)
_READERS = 8
_Hex64 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Checkpoint(BaseModel):
    """One signed statement: the entry `seq` of the log has this hash."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal["dmcp-audit-checkpoint-1"] = "dmcp-audit-checkpoint-1"
    seq: Annotated[int, Field(ge=1)]
    hash: _Hex64
    time: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$")]
    key_id: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
    signature: Annotated[str, Field(pattern="^[0-9a-f]{128}$")]

    @property
    def key(self) -> str:
        """Its name in the bucket."""
        return f"{PREFIX}{self.seq:012d}.json"

    @property
    def moment(self) -> datetime:
        """When it was signed."""
        return datetime.fromisoformat(self.time)

    def encode(self) -> bytes:
        """The one encoding; `decode_checkpoint` accepts no other."""
        return self.model_dump_json().encode() + b"\n"

    def valid(self, pinned: Mapping[str, PublicKey]) -> bool:
        """Whether it is signed under one of these keys."""
        key = pinned.get(self.key_id)
        return key is not None and key.verifies(
            _message(self.seq, self.hash, self.time, self.key_id), bytes.fromhex(self.signature)
        )


def _message(seq: int, digest: str, time: str, key_id: str) -> bytes:
    return json.dumps([FORMAT, seq, digest, time, key_id], separators=(",", ":")).encode("ascii")


def sign_checkpoint(signer: Signer, seq: int, digest: str, now: datetime | None = None) -> Checkpoint:
    """State, under the private key, that entry `seq` has this hash."""
    time, key_id = encode_time(now or utc_now()), signer.public.key_id
    signature = signer.sign(_message(seq, digest, time, key_id)).hex()
    return Checkpoint(seq=seq, hash=digest, time=time, key_id=key_id, signature=signature)


def decode_checkpoint(data: bytes) -> Checkpoint | None:
    """A checkpoint from its bytes; None when they are none, to the byte."""
    try:
        checkpoint = Checkpoint.model_validate_json(data)
    except ValidationError:
        return None
    return checkpoint if checkpoint.encode() == data else None


class _Remembered(BaseModel):
    """HOME/audit.anchor.json: the newest checkpoint put from here, and whether the server honoured the condition."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    checkpoint: Checkpoint
    conditional: bool | None


def remembered(home: AuditHome) -> Checkpoint | None:
    """The newest checkpoint put from here. Raises AuditBroken when that record is not what was written."""
    found = _remembered(home)
    return found.checkpoint if found is not None else None


def conditional(home: AuditHome) -> bool | None:
    """Whether the object store honoured the condition at the newest checkpoint; None: it is not known."""
    found = _remembered(home)
    return found.conditional if found is not None else None


def _remembered(home: AuditHome) -> _Remembered | None:
    try:
        return _Remembered.model_validate_json(home.anchor.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError:
        raise AuditBroken(
            f"{home.anchor} is not what was written there.", "Find out who changed it; then move it away."
        ) from None


# --- reading ---------------------------------------------------------------------------------------------------------


def read_anchors(
    store: ObjectStore | None,
    pinned: Mapping[str, PublicKey],
    home: AuditHome | None = None,
    others: Iterable[Checkpoint] = (),
) -> Anchors:
    """Every checkpoint there is, each checked under the pinned public keys; what is wrong becomes a fault.

    Args:
        store: the private bucket; None: only `home` and `others` are asked.
        pinned: the public keys; no private one is needed.
        home: whose remembered checkpoint must be in the bucket, and whose noted entry in the log.
        others: copies of checkpoints that were kept elsewhere.
    """
    found, faults, notes = {}, [], []
    stored = _read_all(store) if store is not None else {}
    for key, checkpoint in stored.items():
        fault = _wrong(key, checkpoint, pinned)
        if fault is not None:
            faults.append(fault)
        elif checkpoint is not None:
            found[checkpoint.seq] = checkpoint
    local = _remembered(home) if home is not None else None
    if local is not None and local.conditional is False:
        notes.append(UNCONDITIONAL)
    kept = [("the checkpoint remembered in HOME", local.checkpoint)] if local is not None else []
    for name, checkpoint in [*kept, *(("the checkpoint given", other) for other in others)]:
        if not checkpoint.valid(pinned):
            faults.append(Fault(0, f"{name} (entry {checkpoint.seq}) is not signed under a pinned key"))
            continue
        if store is not None and checkpoint.key not in stored:
            what = f"the checkpoint of entry {checkpoint.seq}, signed {checkpoint.time}, is gone from the object store"
            faults.append(Fault(0, what))
        if found.setdefault(checkpoint.seq, checkpoint).hash != checkpoint.hash:
            faults.append(Fault(0, f"{name} and that in the object store disagree about entry {checkpoint.seq}"))
    return Anchors(
        {seq: checkpoint.hash for seq, checkpoint in found.items()},
        {seq: checkpoint.time for seq, checkpoint in found.items()},
        home.noted_head() if home is not None else None,
        tuple(faults),
        tuple(notes),
    )


def _read_all(store: ObjectStore) -> dict[str, Checkpoint | None]:
    """All objects below the prefix, in order; None for one that is no checkpoint."""
    try:
        keys = sorted(info.key for info in store.list(PREFIX))
    except NotFound:  # no bucket yet
        return {}
    return dict(zip(keys, in_parallel(lambda key: _read(store, key), keys, _READERS), strict=True))


def _read(store: ObjectStore, key: str) -> Checkpoint | None:
    try:
        return decode_checkpoint(store.get_bytes(key))
    except NotFound:  # between listing and reading
        return None


def _wrong(key: str, checkpoint: Checkpoint | None, pinned: Mapping[str, PublicKey]) -> Fault | None:
    if checkpoint is None:
        return Fault(0, f"{key} in the object store is no checkpoint")
    if checkpoint.key != key:
        return Fault(0, f"{key} in the object store holds the checkpoint of entry {checkpoint.seq}")
    if checkpoint.key_id not in pinned:
        return Fault(0, f"{key} is signed under key {checkpoint.key_id}, which is not pinned")
    if not checkpoint.valid(pinned):
        return Fault(0, f"{key} has a wrong signature")
    return None


# --- writing ---------------------------------------------------------------------------------------------------------


class Log(Protocol):
    """What is anchored."""

    def links(self, after: int = 0) -> Iterator[Link]:
        """The entries after one of them, in order."""
        ...

    def last(self) -> tuple[int, str]:
        """Number and hash of the last entry; 0 and zeros: there is none."""
        ...

    def hash_of(self, seq: int) -> str | None:
        """The hash of one entry; None: there is no such entry."""
        ...


def anchor(log: Log, store: ObjectStore, home: AuditHome) -> Checkpoint | None:
    """Put a checkpoint of the last entry, unless there is one; None for an empty log.

    Raises:
        AuditBroken: the log does not follow from the newest checkpoint, or another one lies there.
        VaultLocked: the private key does not open.
        ObjectStoreError: the bucket can not be written.
    """
    with home.locked():
        before = remembered(home) or _newest(store, home)
        if before is not None and not before.valid(home.pinned()):
            raise _not_signed(f"{home.anchor} holds a checkpoint that is not signed under a key of {home.public}")
        seq, digest = _checked_head(log, before, home.noted_head())
        if not seq:
            return None
        store.ensure_bucket()
        again = before if before is not None and before.seq == seq else None
        checkpoint = again or sign_checkpoint(home.signer(), seq, digest)
        checkpoint = _put(store, checkpoint, home.pinned())
        record = _Remembered(checkpoint=checkpoint, conditional=_honours_conditions(store, checkpoint))
        write_atomic(home.anchor, record.model_dump_json().encode() + b"\n", mode=0o600)
        return checkpoint


def checkpoint_due(
    log: Log, store: ObjectStore, home: AuditHome, every_entries: int = 1000, every_seconds: float = 900
) -> Checkpoint | None:
    """Anchor the log when it is time: so many entries, or so many seconds and any entry, after the last checkpoint.

    Call it as often as you like, from anywhere: when nothing is due it costs two queries and two small files.

    Returns:
        the new checkpoint; None when none was due.

    Raises:
        AuditBroken: the entry that HOME noted last is no longer in the log, whether a checkpoint is due or not; and as
            `anchor`.
    """
    wrong = unlike_noted(home.noted_head(), log.hash_of)
    if wrong is not None:
        raise _not_signed(wrong)
    end, digest = log.last()
    if end:
        home.note_head(end, digest, log.hash_of)
    last = remembered(home)
    if last is not None:
        new = end - last.seq
        apart = abs(utc_now() - last.moment)  # of either sign: the clock may have been put back since
        if new == 0 or (0 < new < every_entries and apart < timedelta(seconds=every_seconds)):
            return None
    return anchor(log, store, home) if end or last else None


def _newest(store: ObjectStore, home: AuditHome) -> Checkpoint | None:
    """The newest checkpoint in the bucket that is signed under a pinned key."""
    with suppress(NotFound):
        for key in sorted((info.key for info in store.list(PREFIX)), reverse=True):
            checkpoint = _read(store, key)
            if checkpoint is not None and checkpoint.key == key and checkpoint.valid(home.pinned()):
                return checkpoint
    return None


def _checked_head(log: Log, before: Checkpoint | None, noted: tuple[int, str] | None) -> tuple[int, str]:
    """Number and hash of the last entry, after the way there from the last checkpoint was checked."""
    seen, digest = noted or (0, "")
    chain = Chain()
    entries = log.links(before.seq - 1 if before else 0)
    if before is not None:
        first = next(entries, None)
        if first is None or first.seq != before.seq:
            raise _not_signed(f"entry {before.seq}, which a checkpoint names, is missing")
        if first.hash != before.hash or entry_hash(first) != before.hash:
            raise _not_signed(f"entry {before.seq}, or one before it, is not what a checkpoint signed")
        chain = Chain(before.seq, before.hash)
    for entry in entries:
        wrong = chain.follow(entry)
        if wrong is not None:
            raise _not_signed(wrong)
        if entry.seq == seen and entry.hash != digest:
            raise _not_signed(NOT_AS_NOTED.format(seen))
    if chain.seq < seen:
        raise _not_signed(f"it ends with entry {chain.seq}, but this machine saw entry {seen}")
    return chain.seq, chain.head


def _not_signed(why: str) -> AuditBroken:
    return AuditBroken(
        f"The audit log is not signed: {why}.", "Run `dmcp audit verify`; keep database and bucket as they are."
    )


def _put(store: ObjectStore, checkpoint: Checkpoint, pinned: Mapping[str, PublicKey]) -> Checkpoint:
    """Put a checkpoint where none is; return the one that lies there then, which says the same."""
    for _ in range(2):
        try:
            found = decode_checkpoint(store.get_bytes(checkpoint.key))
        except NotFound:
            try:
                _put_once(store, checkpoint)
            except PublicationConflict:
                continue  # another machine was faster: see what it put
            return checkpoint
        if found is not None and found.hash == checkpoint.hash and found.valid(pinned):
            return found
        raise _not_signed(f"{store.where(checkpoint.key)} exists and says something else")
    raise ObjectStoreError(f"{store.where(checkpoint.key)} comes and goes.", "Check the object store.")


def _put_once(store: ObjectStore, checkpoint: Checkpoint) -> None:
    try:
        store.put_bytes(checkpoint.key, checkpoint.encode(), if_none_match=True, content_type="application/json")
    except ObjectStoreError as error:
        if not _unknown_condition(error):
            raise
        store.put_bytes(checkpoint.key, checkpoint.encode(), content_type="application/json")


def _honours_conditions(store: ObjectStore, checkpoint: Checkpoint) -> bool | None:
    """Whether the server refuses to put over an object; found out with the same bytes, so nothing changes."""
    try:
        store.put_bytes(checkpoint.key, checkpoint.encode(), if_none_match=True, content_type="application/json")
    except PublicationConflict:
        return True
    except ObjectStoreError as error:
        return False if _unknown_condition(error) else None
    return False


def _unknown_condition(error: ObjectStoreError) -> bool:
    from botocore.exceptions import ClientError

    cause = error.__cause__
    return isinstance(cause, ClientError) and object_errors.code(cause) in ("NotImplemented", "501")
