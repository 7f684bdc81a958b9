"""One of several processes that write the audit log at once: `python -m tests.storage.audit_writer URL NAME`."""

import sys
from concurrent.futures import ThreadPoolExecutor

from storage.audit import AuditLog

THREADS, EACH = 8, 2


def write(url: str, name: str) -> None:
    """From eight threads, entries numbered 0 to 15."""
    with AuditLog(url) as log, ThreadPoolExecutor(THREADS) as pool:
        numbers = range(THREADS * EACH)
        list(pool.map(lambda number: log.record(name, "release", details={"number": number}), numbers))


if __name__ == "__main__":
    write(*sys.argv[1:])
