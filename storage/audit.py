"""The audit log: who did what and when, append-only and hash-chained, written before anything is released.

    with registry.write() as session:
        ...                                                       # the change
        append(session, actor="ann", action="access.ask", dataset="cifar10", subject="request 7")   # last: its entry
    log = open_audit_log(settings())
    log.record("service", "release", request_id=..., details={"shard": 3})    # returns once it is on disk

The entry of a change is written in the change's own transaction: both are there, or neither. What is released outside
the database (a result, a download) is recorded before: no entry, no data. An entry without its release can be (the
process died in between); a release without its entry can not.

Entries are numbered 1, 2, 3 without gaps, each with the hash of the one before (`storage/audit_chain.py`). Writers take
turns: SQLite has one at a time; on PostgreSQL `append` takes an advisory lock until the transaction ends. So append
last in a transaction: the lock is held for a moment only, and two transactions never wait for each other crosswise.

Signed checkpoints in the object store vouch for the log from outside the database (`storage/audit_checkpoints.py`).
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Select, select, text
from sqlalchemy.orm import Session

from storage.audit_chain import (
    COLUMNS,
    GENESIS,
    Anchors,
    AuditVerdict,
    Link,
    check_chain,
    encode_details,
    encode_time,
    entry_hash,
)
from storage.audit_checkpoints import Checkpoint, anchor, checkpoint_due, read_anchors
from storage.audit_keys import AuditHome, audit_home
from storage.audit_models import AuditEntry, create_guards, drop_guards, missing_guards
from storage.database import utc_now
from storage.errors import AuditBroken, EnvironmentFault, UsageError
from storage.files import Progress
from storage.objects import ObjectStore
from storage.registry_schema import RegistryDatabase
from storage.settings import Settings

__all__ = [
    "AuditEntry",
    "AuditLog",
    "AuditVerdict",
    "Checkpoint",
    "append",
    "checkpoint_due",
    "create_guards",
    "drop_guards",
    "open_audit_log",
]

PAGE = 5000  # entries read at once: some megabytes

_POSTGRESQL_LOCK = 0x646D637061756474  # "dmcpaudt"
_ACTION = re.compile(r"[a-z]+(-[a-z]+)*(\.[a-z]+(-[a-z]+)*)*")
_LIMITS = {"actor": 160, "action": 32, "dataset": 64, "request_id": 64}


def append(
    session: Session,
    *,
    actor: str,
    action: str,
    dataset: str | None = None,
    request_id: str | None = None,
    subject: str = "",
    details: Mapping[str, Any] | None = None,
    now: datetime | None = None,
) -> AuditEntry:
    """Add the next entry within a `Database.write()` transaction; it is on record when that commits.

    Args:
        session: of a writing transaction; nothing but its commit should follow.
        actor: the name of the user who acts, or of the part of the service.
        action: what was done, such as `grant.create`: lower-case words joined by dots.
        dataset: which data set it is about.
        request_id: which restore request it is about.
        subject: to whom or what it was done, for people: a user's name, a grant's number.
        details: more, as JSON; never a token, a key or an address that gives access.
        now: the time; this moment by default.

    Raises:
        UsageError: the action is none, a text is too long, or the details are no JSON.
    """
    # The lock's statement is plain text, before which nothing is flushed: the log would be locked before the rows.
    session.flush()
    named = {"actor": _storable(actor), "action": action, "dataset": dataset, "request_id": request_id}
    for name, value in named.items():
        if value is not None and len(value) > _LIMITS[name]:
            raise UsageError(f"The {name} of an audit entry is longer than {_LIMITS[name]} characters.")
    if not _ACTION.fullmatch(action):
        raise UsageError(f"{action!a} is no action of the audit log.", "Lower-case words joined by dots.")
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _POSTGRESQL_LOCK})
    last, previous = _last(session)
    bare = Link(
        last + 1,
        encode_time(utc_now() if now is None else now),
        _storable(actor),
        action,
        None if dataset is None else _storable(dataset),
        None if request_id is None else _storable(request_id),
        _storable(subject),
        encode_details(details or {}),
        previous,
        "",
    )
    entry = AuditEntry(**bare._replace(hash=entry_hash(bare))._asdict())
    session.add(entry)
    session.flush()
    return entry


def _last(session: Session) -> tuple[int, str]:
    row = session.execute(select(AuditEntry.seq, AuditEntry.hash).order_by(AuditEntry.seq.desc()).limit(1)).first()
    return (0, GENESIS) if row is None else (row.seq, row.hash)


def _storable(value: str) -> str:
    """The same text as every database keeps it: no NUL, no lone surrogates (names of files may have them)."""
    return value.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


class AuditLog(RegistryDatabase):
    """The log in the registry's database. Safe to use from several threads and processes."""

    def __init__(self, url: str, home: AuditHome | None = None, *, migrate: bool = False) -> None:
        """Connect, and create the tables where there are none; see `RegistryDatabase`.

        Args:
            url: the registry's SQLAlchemy address.
            home: where the keys of checkpoints are; needed to make or check any.
            migrate: upgrade what an earlier release made, instead of refusing it.
        """
        super().__init__(url, migrate=migrate)
        self._home = home

    @property
    def home(self) -> AuditHome:
        """Where the keys of checkpoints are. Raises UsageError when the log was opened without."""
        if self._home is None:
            raise UsageError("This audit log was opened without a place for its keys.", "Use open_audit_log.")
        return self._home

    def __enter__(self) -> "AuditLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def record(
        self,
        actor: str,
        action: str,
        *,
        dataset: str | None = None,
        request_id: str | None = None,
        subject: str = "",
        details: Mapping[str, Any] | None = None,
    ) -> AuditEntry:
        """Add one entry in a transaction of its own. When this returns it is on disk: release only then."""
        with self.write() as session:
            entry = append(
                session,
                actor=actor,
                action=action,
                dataset=dataset,
                request_id=request_id,
                subject=subject,
                details=details,
            )
        if self._home is not None:
            self._home.note_head(entry.seq, entry.hash, self.hash_of)
        return entry

    # --- reading ---------------------------------------------------------------------------------------------------

    def entries(
        self,
        after: int = 0,
        limit: int = 1000,
        *,
        dataset: str | Collection[str] | None = None,
        actor: str | None = None,
        action: str | None = None,
        request_id: str | None = None,
        newest: bool = False,
        before: int | None = None,
    ) -> Sequence[AuditEntry]:
        """Entries after one of them, in order; of a data set (or several), an actor, an action, a request when named.

        Args:
            after: the number of the last entry already known.
            limit: at most so many.
            dataset: a data set or several; of an empty collection there is no entry.
            actor: whose.
            action: `grant.create`, or `grant` for all that begin with it.
            request_id: about which request.
            newest: the last `limit` of them, instead of the first (in order all the same).
            before: only entries with lower numbers: with `newest`, a page of a list that goes back in time.
        """
        query = select(AuditEntry).where(AuditEntry.seq > after)
        if before is not None:
            query = query.where(AuditEntry.seq < before)
        query = _only(query, dataset=dataset, actor=actor, action=action, request_id=request_id)
        if newest:
            return self.all(query.order_by(AuditEntry.seq.desc()).limit(limit))[::-1]
        return self.all(query.order_by(AuditEntry.seq).limit(limit))

    def head(self) -> int:
        """The number of the last entry; 0: there is none."""
        return self.last()[0]

    def last(self) -> tuple[int, str]:
        """Number and hash of the last entry; 0 and zeros: there is none."""
        with self.read() as session:
            return _last(session)

    def hash_of(self, seq: int) -> str | None:
        """The hash of one entry, as it is stored; None: there is no such entry."""
        with self.read() as session:
            return session.scalar(select(AuditEntry.hash).where(AuditEntry.seq == seq))

    def links(
        self,
        after: int = 0,
        *,
        dataset: str | Collection[str] | None = None,
        actor: str | None = None,
        action: str | None = None,
        request_id: str | None = None,
    ) -> Iterator[Link]:
        """The entries after one of them as plain tuples, in order, page by page: a log may have any length.

        Raises:
            AuditBroken: an entry holds bytes that are no text.
        """
        query = _only(
            select(*(getattr(AuditEntry, name) for name in COLUMNS)),
            dataset=dataset,
            actor=actor,
            action=action,
            request_id=request_id,
        )
        query, size = query.order_by(AuditEntry.seq), PAGE
        while True:
            try:
                page = self._links(query.where(AuditEntry.seq > after).limit(size))
            except EnvironmentFault as error:
                if "UTF-8" not in error.what:
                    raise
                if size == 1:
                    raise AuditBroken(
                        f"The entry after {after} was altered: it holds bytes that are no text."
                    ) from None
                size = 1  # as far as it can be read
                continue
            yield from page
            if len(page) < size:
                return
            after = page[-1].seq

    def _links(self, query: Select[Any]) -> list[Link]:
        with self.read() as session:
            return [Link._make(row) for row in session.execute(query)]

    # --- checking --------------------------------------------------------------------------------------------------

    def anchors(self, store: ObjectStore | None, others: Iterable[Checkpoint] = ()) -> Anchors:
        """The checkpoints in the private bucket, checked under the public keys pinned in HOME. Read them first."""
        return read_anchors(store, self.home.pinned(), self.home, others)

    def verify(self, anchors: Anchors | None = None, progress: Progress | None = None) -> AuditVerdict:
        """Check every entry, and the log against its anchors (`log.verify(log.anchors(store))`).

        Without anchors only the chain is checked: that the end was cut off, or all of it written anew, shows against
        anchors alone. Entries that are added meanwhile do no harm.
        """
        return check_chain(_told(self.links(), self.head(), progress), anchors or Anchors(), self._notes())

    def checkpoint(self, store: ObjectStore) -> Checkpoint | None:
        """Anchor the log as it is now in the private bucket; None while it is empty. See `audit_checkpoints.anchor`."""
        return anchor(self, store, self.home)

    def _notes(self) -> list[str]:
        with self.read() as session:
            missing = missing_guards(session.connection())
        if not missing:
            return []
        return [f"The database lacks the triggers that keep accidents from the log: {', '.join(missing)}."]


def _only(query: Select[Any], **filters: str | Collection[str] | None) -> Select[Any]:
    for name, value in filters.items():
        column = getattr(AuditEntry, name)
        if value is None:
            continue
        if name == "action":
            query = query.where((column == value) | column.startswith(f"{value}.", autoescape=True))
        else:
            query = query.where(column == value if isinstance(value, str) else column.in_(list(value)))
    return query


def _told(links: Iterator[Link], total: int, progress: Progress | None) -> Iterator[Link]:
    if progress is None:
        yield from links
        return
    for done, link in enumerate(links):
        if done % PAGE == 0:
            progress("entries", done, max(total, done))
        yield link


def open_audit_log(settings: Settings) -> AuditLog:
    """The log of these settings, in the registry's database."""
    url = settings.registry_url or f"sqlite:///{settings.home_path('registry.db')}"
    return AuditLog(url, audit_home(settings), migrate=settings.migrate)
