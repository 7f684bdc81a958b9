"""What a server's conditional puts are worth: found out by trying, before anything relies on them.

Measured: rclone ignores both conditions; OpenStack Swift checks and writes in two steps, so two of 24 racing writers
won; of Ceph RGW's 24 exactly one did. AWS documents the latter.
"""

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from enum import Enum

from storage.errors import ObjectStoreError, PublicationConflict
from storage.objects import ObjectStore


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

    On scratch objects, which are removed again: an If-None-Match put of something that exists and an If-Match put with
    a wrong ETag must be refused, and of `racers` If-None-Match puts at once only one may win. (Some servers check and
    write in two steps: they pass the first two and fail the third.)
    """
    alone, raced = (f"dmcp-probe-{uuid.uuid4().hex}" for _ in range(2))
    store.put_bytes(alone, b"probe")
    try:
        if not _refuses(store, alone, if_none_match=True) or not _refuses(store, alone, if_match="0" * 32):
            return Guarantee.LAST_WRITER_WINS
        gate = threading.Barrier(racers)

        def lost(_: int) -> bool:
            gate.wait()
            return _refuses(store, raced, if_none_match=True)

        with ThreadPoolExecutor(racers) as pool:
            winners = list(pool.map(lost, range(racers))).count(False)
        return Guarantee.ATOMIC if winners <= 1 else Guarantee.LAST_WRITER_WINS
    finally:
        store.delete(alone)
        store.delete(raced)


def _refuses(store: ObjectStore, key: str, if_none_match: bool = False, if_match: str | None = None) -> bool:
    """Whether a conditional put is answered with "the condition does not hold"."""
    try:
        store.put_bytes(key, b"other", if_none_match=if_none_match, if_match=if_match)
    except PublicationConflict:
        return True
    except ObjectStoreError:  # conditions are not implemented
        return False
    return False
