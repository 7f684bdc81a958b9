"""The evidence's tables for the terminal: the same rows as on the page."""

from dataclasses import dataclass
from typing import Any

from tasks.evidence import rows, words
from tasks.evidence.records import CLEAN, Evidence
from tasks.evidence.tables import Book


@dataclass(frozen=True)
class TextTable:
    """A table of texts; `right`: the columns to align to the right."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    right: list[str]


def evidence_tables(evidence: Evidence) -> list[TextTable]:
    """All tables that have rows, in the order of the page. Accuracies are in percent."""
    book = Book(evidence)
    s = evidence.setting
    plain = f"{s.dataset}, preset {s.preset}: test accuracy (%), {s.images:,} images, {s.recipe}, {s.epochs} epochs"
    treated = ["trained on", "last epoch", "best epoch", "seeds", "way", "finding"]
    misuse = ["on images of", "tried", "refused", "clean image", "wrong image", "refused with"]
    tables = [
        _table(plain, ["trained on", "last epoch", "best epoch", "training", "seeds", "images"], rows.accuracy(book)),
        _table("Countermeasures", ["countermeasure", *treated], rows.countermeasures(book)),
        _table("Attackers who know the algorithm, but no key", ["attack", *treated], rows.attacks(book)),
        _table("Other networks: last (best) epoch", ["network", CLEAN, *book.protections], rows.architectures(book)),
        _table(
            "Mixed with clean images: last (best) epoch",
            ["protected", "by", "mixture", "clean rest alone", "images of the rest"],
            rows.shares(book),
        ),
        _table("Misuse of keys", ["misuse", *misuse], rows.keys(evidence)),
        _table(
            "Restored",
            ["protection", "images", "left out", "restored", "refused", "bit for bit", "largest error"],
            rows.certificate(evidence),
        ),
        _table(
            "Pixels", ["protection", "PSNR (dB)", "SSIM", "looked at", "beside", "seconds"], rows.fidelity(evidence)
        ),
    ]
    return [table for table in tables if table.rows]


def evidence_words(evidence: Evidence) -> list[str]:
    """The page's verdict: what holds, where it fails, and what the figures rest on."""
    book = Book(evidence)
    return [*words.plain(book), *words.failures(book), *words.owner(book), *words.uncertainty(book)]


_TEXT = ("finding", "reasons")


def _table(title: str, columns: list[str], found: list[dict[str, Any]]) -> TextTable:
    lines = [
        [row[part] for part in ("title", "name") if part in row]
        + row["cells"]
        + [row[part] for part in _TEXT if part in row]
        for row in found
    ]
    first = found[0] if found else {}
    before, after = sum(part in first for part in ("title", "name")), sum(part in first for part in _TEXT)
    return TextTable(title, columns, lines, columns[before : len(columns) - after])
