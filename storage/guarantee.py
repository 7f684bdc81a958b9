"""What a server's conditional puts are worth: found out by trying, before anything relies on them.

Measured: rclone ignores both conditions; OpenStack Swift checks and writes in two steps, so two of 24 racing writers
won; of Ceph RGW's 24 exactly one did (docs/object-stores.md). AWS documents the latter. Ceph compares the ETag of an
If-Match put as it stands in the header, so there the quotation marks that HTTP puts around it never match.
"""

import copy
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from enum import Enum

from storage.errors import ObjectStoreError, PublicationConflict
from storage.objects import ObjectStore

PROBE = "dmcp-probe-"
"""What the keys of scratch objects begin with."""
_LEFT_BEHIND = timedelta(hours=1)


class Guarantee(Enum):
    """What a server's conditional puts are worth."""

    ATOMIC = "atomic"
    """If-Match and If-None-Match are honoured, also among writers that race: the second one is told."""
    LAST_WRITER_WINS = "last-writer-wins"
    """Conditions are ignored, refused or racy: of two publishers at the same moment the later one wins, silently."""

    @property
    def explanation(self) -> str:
        """One sentence for people."""
        if self is Guarantee.ATOMIC:
            return "The server honours conditional puts: a publisher that comes second is told."
        return "The server does not honour conditional puts: publish from one place at a time."


def probe_conditional_puts(store: ObjectStore, racers: int = 8) -> Guarantee:
    """Find out by trying what conditional puts are worth on this server.

    On scratch objects, which are removed again (if the server fails just then, by a later probe): an If-None-Match put
    of something that exists must be refused; an If-Match put must be refused with a wrong ETag and done with the right
    one, in quotes or else bare, which the store remembers; and of `racers` If-None-Match puts at once only one may win.
    (Some servers check and write in two steps: they pass all others and fail the last.)
    """
    alone, raced = (f"{PROBE}{uuid.uuid4().hex}" for _ in range(2))
    try:
        etag = store.put_bytes(alone, b"probe")
        if not _refuses(store, alone, if_none_match=True) or not _learns_if_match(store, alone, etag):
            return Guarantee.LAST_WRITER_WINS
        gate = threading.Barrier(racers)

        def lost(_: int) -> bool:
            gate.wait()
            return _refuses(store, raced, if_none_match=True)

        with ThreadPoolExecutor(racers) as pool:
            winners = list(pool.map(lost, range(racers))).count(False)
        return Guarantee.ATOMIC if winners <= 1 else Guarantee.LAST_WRITER_WINS
    finally:
        _clean_up(store, alone, raced)


def _clean_up(store: ObjectStore, *keys: str) -> None:
    """Remove these scratch objects, and those that a probe left behind which was killed or cut off."""
    long_ago = datetime.now(UTC) - _LEFT_BEHIND
    with suppress(ObjectStoreError):
        for key in keys:
            store.delete(key)
        for left in store.list(PROBE):
            if left.modified < long_ago:
                store.delete(left.key)


def _learns_if_match(store: ObjectStore, key: str, etag: str) -> bool:
    """Whether If-Match puts are done or refused as they should be; `store.quotes_etags` is right then."""
    for quotes in (True, False):
        trial = copy.copy(store)  # others may be using the store
        trial.quotes_etags = quotes
        if not _refuses(trial, key, if_match="0" * 32):
            return False
        _refuses(trial, key, if_match=etag)
        # Whether it was done the answer does not tell: a retry may meet its own first try.
        if store.head(key).etag != etag:
            store.quotes_etags = quotes
            return True
    return False


def _refuses(store: ObjectStore, key: str, if_none_match: bool = False, if_match: str | None = None) -> bool:
    """Whether a conditional put is answered with "the condition does not hold"."""
    try:
        store.put_bytes(key, b"other", if_none_match=if_none_match, if_match=if_match)
    except PublicationConflict:
        return True
    except ObjectStoreError:  # conditions are not implemented
        return False
    return False
