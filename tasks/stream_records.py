"""What a streamed protection has done, on the local disk, so that one that was killed goes on.

The shards themselves lie in the bucket. Here lies for each input shard, by its digest, what was made of it and how that
is recognised in the bucket, and the payloads that travel beside the pixels of its images: about 20 bytes an image, and
the payloads. It is one SQLite file, which several threads and processes may write to, and which gives the payloads in
the order of the published file without holding them all in memory.
"""

import json
import sqlite3
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.files import open_atomic
from storage.s3_client import FileDigest
from tasks.payloads import dump_payloads

NAME = "done.db"
PATIENCE_SECONDS = 60.0  # while another shard's worker writes
_BATCH = 1000  # payloads in memory at once

_SCHEMA = """
CREATE TABLE IF NOT EXISTS shards (
    source TEXT PRIMARY KEY, samples INTEGER NOT NULL, size INTEGER NOT NULL, sha256 TEXT NOT NULL,
    etags TEXT NOT NULL, report TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS payloads (
    image BLOB, payload BLOB, source TEXT, PRIMARY KEY (image, payload, source)
) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Done:
    """One protected shard in the bucket: images, how it is recognised there, and the report of its protection."""

    samples: int
    digest: FileDigest
    report: dict[str, Any]


class Records:
    """The records of one work folder; made when missing."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        with self._open() as database:
            database.executescript(_SCHEMA)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._path, timeout=PATIENCE_SECONDS)) as database, database:
            yield database

    def find(self, source: str) -> Done | None:
        """What was made of the input shard of this digest, if it was."""
        with self._open() as database:
            row = database.execute(
                "SELECT samples, size, sha256, etags, report FROM shards WHERE source = ?", (source,)
            ).fetchone()
        if row is None:
            return None
        samples, size, sha256, etags, report = row
        return Done(samples, FileDigest(size, sha256, frozenset(json.loads(etags))), json.loads(report))

    def add(self, source: str, done: Done, payloads: Collection[tuple[bytes, bytes]]) -> None:
        """Put a shard on record, once the bucket holds it; `payloads`: pairs of image id and payload."""
        digest = done.digest
        row = (source, done.samples, digest.size, digest.sha256, json.dumps(sorted(digest.etags)))
        with self._open() as database:
            database.execute("DELETE FROM payloads WHERE source = ?", (source,))
            database.executemany("INSERT INTO payloads VALUES (?, ?, ?)", ((*pair, source) for pair in payloads))
            database.execute("INSERT OR REPLACE INTO shards VALUES (?, ?, ?, ?, ?, ?)", (*row, json.dumps(done.report)))

    def keep_only(self, sources: Collection[str]) -> None:
        """Forget what was made of other input shards: those of an older variant."""
        with self._open() as database:
            database.execute("CREATE TEMP TABLE kept (source TEXT PRIMARY KEY)")
            database.executemany("INSERT OR IGNORE INTO kept VALUES (?)", ((source,) for source in sources))
            for table in ("shards", "payloads"):
                database.execute(f"DELETE FROM {table} WHERE source NOT IN (SELECT source FROM kept)")

    def write_payloads(self, path: Path) -> None:
        """Write all payloads on record as the file that is published, `tasks.payloads.dump_payloads` of them."""
        with self._open() as database, open_atomic(path) as file:
            rows = database.execute("SELECT DISTINCT image, payload FROM payloads ORDER BY image, payload")
            while batch := rows.fetchmany(_BATCH):
                file.write(dump_payloads(batch))
