"""The evidence report: one self-contained HTML page of one preset's results.

The page takes its figures from `results.json` and `images.png` in `data/DATASET/evidence/PRESET`; it measures nothing
itself. Sections whose rows a preset does not have are left out. The same results give the same bytes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from storage.errors import DatasetError
from storage.files import write_atomic
from tasks.evidence import figures, judgement, lines, names, rows, words
from tasks.evidence.records import CLEAN, Evidence
from tasks.evidence.tables import Book
from tasks.grids import DIFFERENCE_GAIN
from tasks.page import data_uri, render
from tasks.published import PUBLISHED
from tasks.report import flatten

RESULTS, IMAGES, PAGE = "results.json", "images.png", "report.html"


def read_evidence(folder: Path) -> Evidence:
    """`results.json` of a preset's folder.

    Raises:
        DatasetError: it is missing, or not such a record.
    """
    path = folder / RESULTS
    try:
        return Evidence.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise DatasetError(f"{path} is missing.", "Run the evaluation: dvc repro evaluate-protection.") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        cure = "It was made by another release or by hand: run the evaluation again."
        raise DatasetError(f"{path} is no evidence: {where}: {first['msg']}.", cure) from error


def write_evidence_report(folder: Path, out: Path | None = None) -> Path:
    """Write the page of `data/DATASET/evidence/PRESET`.

    Args:
        folder: holds `results.json`, and `images.png` where there are images to show.
        out: the page; default `folder / "report.html"`.

    Returns:
        The page's path.

    Raises:
        DatasetError: the results are missing or not usable.
    """
    book = Book(read_evidence(folder))
    picture = folder / IMAGES
    page = folder / PAGE if out is None else out
    context = _context(book) | {"images": data_uri(picture) if picture.exists() else ""}
    write_atomic(page, render("evidence.html.j2", context))
    return page


def _context(book: Book) -> dict[str, Any]:
    setting = book.evidence.setting
    colours = figures.colours(book)
    published = PUBLISHED.get(setting.dataset)
    return {
        "colours": {_css(book, name): colour for name, colour in colours.items()},
        "css": {name: _css(book, name) for name in colours},
        "trained_on": [CLEAN, *book.protections],
        "dataset": setting.dataset,
        "preset": setting.preset,
        "subtitle": _subtitle(book),
        "tiles": _tiles(book),
        "verdict": [*words.plain(book), *words.exactness(book.evidence.protections), *words.keys(book.evidence.keys)],
        "failures": words.failures(book),
        "holding": words.holding(book),
        "owner": words.owner(book),
        "uncertainty": words.uncertainty(book),
        "attack_words": words.attacks(book),
        "architecture_words": words.architectures(book),
        "share_words": words.shares(book),
        "figures": _figures(book),
        "accuracy": rows.accuracy(book),
        "paper": rows.paper(published) if published else None,
        "countermeasures": rows.countermeasures(book),
        "attacks": rows.attacks(book),
        "architectures": rows.architectures(book),
        "shares": rows.shares(book),
        "keys": rows.keys(book.evidence),
        "fidelity": rows.fidelity(book.evidence),
        "certificate": rows.certificate(book.evidence),
        "rivals": rows.rival_tables(book),
        "abouts": rows.abouts(book),
        "images_caption": f"Enlarged without smoothing. The difference columns show 128 + {DIFFERENCE_GAIN} × "
        "(protected − clean), cut off at 0 and 255: grey where nothing changed.",
        "facts": _facts(book.evidence),
    }


def _css(book: Book, name: str) -> str:
    """A class of the page for a series: protections may be called what CSS can not."""
    if name == CLEAN:
        return CLEAN
    if name in book.recovered:
        return "recovered"
    return f"series-{book.protections.index(name)}"


def _subtitle(book: Book) -> str:
    s = book.evidence.setting
    count = len(book.evidence.cells)
    networks = "1 network" if count == 1 else f"{count:,} networks"
    return (
        f"Preset “{s.preset}”: {networks} trained on {s.images:,} images of {s.classes} "
        f"classes and tested on {s.test_images:,} clean ones. Mean test accuracy:"
    )


def _tiles(book: Book) -> list[dict[str, Any]]:
    tiles: list[dict[str, Any]] = []
    for name in (CLEAN, *book.protections):
        score = book.get(name)
        if score is None:
            continue
        details = [_spread(score.last.std, score.last.n), f"best epoch {words.percent(score.peak.mean)}"]
        if hardest := judgement.hardest(book, name) if name != CLEAN else None:
            title = names.treatment(hardest.cell.countermeasure, hardest.cell.attack)
            details.append(f"most with a treatment: {words.percent(hardest.peak.mean)} ({title}, best epoch)")
        label = "trained on clean images" if name == CLEAN else f"trained on protected images, {name}"
        value = words.percent(score.last.mean)
        tiles.append({"css": _css(book, name), "label": label, "value": value, "details": details})
    return tiles


def _spread(std: float | None, seeds: int) -> str:
    return "one seed" if std is None else f"± {100 * std:.1f}, {seeds} seeds"


def _figures(book: Book) -> dict[str, Any]:
    from markupsafe import Markup  # our own SVG, in which matplotlib has escaped every text

    hardest = {name: score for name in book.protections if (score := judgement.hardest(book, name))}
    best = {name: score for name in book.protections if (score := judgement.best_attack(book, name))}
    treated = {score.cell.countermeasure for score in hardest.values() if score.cell.attack == "none"}
    cleans = {names.countermeasure_title(name): book.get(CLEAN, countermeasure=name) for name in sorted(treated)}
    charts = {
        "accuracy": figures.accuracy_bars(book),
        "curves": lines.curves(book, hardest, {title: score for title, score in cleans.items() if score}),
        "heat": figures.heat_map(book),
        "attacks": figures.attack_bars(book, best),
        "architectures": figures.architecture_bars(book),
        "shares": lines.share_curves(book),
        "quality": figures.quality_histograms(book),
    }
    return {name: Markup(svg) if svg else "" for name, svg in charts.items()}


def _facts(evidence: Evidence) -> list[dict[str, Any]]:
    s = evidence.setting
    trained = sum(result.seconds for result in evidence.cells)
    setting: Mapping[str, object] = {
        "data set": s.dataset,
        "training images": f"{s.images:,}",
        "test images": f"{s.test_images:,}",
        "classes": s.classes,
        "recipe": f"{s.recipe}, {s.epochs} epochs, stem “{s.stem}”",
        "seeds": ", ".join(map(str, s.seeds)),
        "surrogate's test accuracy": words.percent(s.surrogate_accuracy),
        "trained on": ", ".join(sorted({f"{result.device}, {result.precision}" for result in evidence.cells})) or "–",
        "command": evidence.command,
        "duration": f"{evidence.seconds:,.0f} s by the clock; {trained:,.0f} s of training in all",
    }
    tables = [("Setting", setting), ("Machine that measured", evidence.machine), ("Surrogate", s.surrogate)]
    tables += [(f"Protection {of.name}", of.parameters | {"digest": of.digest}) for of in evidence.protections]
    return [{"title": title, "rows": flatten(table)} for title, table in tables if table]
