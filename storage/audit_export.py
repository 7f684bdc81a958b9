"""The audit log as a file: JSON lines, which verify again without the database, and CSV for people's tables.

JSON lines: an entry a line, its fields in the order of the table; `details` is an object. An export of all entries can
be checked like the log itself (`read_export`, `dmcp audit verify --from FILE`).

CSV (RFC 4180, UTF-8, with a heading): `details` is JSON text. A cell that a spreadsheet would take for a formula gets
an apostrophe in front, so CSV is for reading; what proves something is the other.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Literal, get_args

from storage.audit_chain import COLUMNS, Link, encode_details
from storage.errors import AuditBroken, EnvironmentFault, UsageError
from storage.files import open_atomic

Format = Literal["jsonl", "csv"]
FORMATS: tuple[Format, ...] = get_args(Format)
MAX_LINE = 16 << 20
_RISKY = ("=", "+", "-", "@", "\t", "\r", "\n", "|", "%")


def export_file(links: Iterable[Link], path: Path, form: Format) -> int:
    """Write entries to a private file that appears when it is whole; returns how many."""
    with open_atomic(path, mode=0o600) as file:
        return export(links, file, form)


def export(links: Iterable[Link], file: IO[bytes], form: Format) -> int:
    """Write entries as they come; returns how many.

    Raises:
        UsageError: another format.
    """
    if form not in FORMATS:
        raise UsageError(f"{form!a} is no format of an export.", f"One of: {', '.join(FORMATS)}.")
    lines = _csv(links) if form == "csv" else _jsonl(links)
    written = sum(1 for line in lines if file.write(line))
    return written - 1 if form == "csv" else written  # one is the heading


def _jsonl(links: Iterable[Link]) -> Iterator[bytes]:
    encode = json.JSONEncoder(ensure_ascii=True, separators=(",", ":")).encode
    for link in links:
        yield encode(link._asdict() | {"details": _opened(link.details)}).encode() + b"\n"


def _opened(details: Any) -> Any:
    """The details as an object where that leads back to the same text; else as they are."""
    try:
        found = json.loads(details)
        return found if isinstance(found, dict) and encode_details(found) == details else details
    except (TypeError, ValueError, UsageError):
        return details


def _csv(links: Iterable[Link]) -> Iterator[bytes]:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for link in links:
        yield _taken(text)
        writer.writerow([_harmless(cell) for cell in link])
    yield _taken(text)


def _taken(text: io.StringIO) -> bytes:
    data = text.getvalue().encode("utf-8", "backslashreplace")
    text.seek(0)
    text.truncate()
    return data


def _harmless(cell: object) -> object:
    """A text cell that no spreadsheet takes for a formula."""
    if isinstance(cell, str) and cell.lstrip(" ").startswith(_RISKY):
        return f"'{cell}"
    return cell


def read_export(path: Path) -> Iterator[Link]:
    """The entries of a JSON lines export, one by one.

    Raises:
        AuditBroken: a line is no entry.
        EnvironmentFault: the file can not be read.
    """
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(MAX_LINE):
                number += 1
                yield _entry(line, number)
    except OSError as error:
        raise EnvironmentFault(f"{path} can not be read: {error.strerror}.", "Name an export of the log.") from error


def _entry(line: bytes, number: int) -> Link:
    try:
        fields = json.loads(line.decode("utf-8"))
        if list(fields) != list(COLUMNS):
            raise ValueError
        details = fields["details"]
        link = Link(**fields | {"details": details if isinstance(details, str) else encode_details(details)})
        if next(_jsonl([link])) != line:
            raise ValueError
    except (ValueError, TypeError, RecursionError, UsageError):
        raise AuditBroken(f"Line {number} of the export is no entry.", "Export the log again.") from None
    return link
