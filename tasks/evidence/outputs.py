"""What an evaluation leaves: data/DATASET/evidence/PRESET and metrics/evidence-PRESET.json.

    results.json    all of it (`records.Evidence`)
    cells.csv       a row a cell
    curves.csv      a row an epoch: mean test accuracy of the main rows by protection
    quality.csv     a row a bin: how PSNR and SSIM spread, by protection
    accuracy.svg    the bars of the report, for other pages
    images.png      clean, protected, difference and recovered images, protection below protection
    report.html     the report (`report.py`)

The metrics are numbers at the top level, accuracies as shares, for each protection NAME of the main rows:
NAME_last and NAME_peak (means over the seeds), NAME_worst_countermeasure and NAME_best_adaptive (the highest peak that
a countermeasure or an attack came to), NAME_psnr in dB. And of the protection that is section `protect` of params.yaml:
`objective`, its mean peak accuracy without countermeasure (lower is better), `objective_std` (of a sample, over the
seeds), `n` (seeds) and `psnr`; `strongest`, `strongest_std` and `strongest_n`, the same of the treatment that serves a
thief best: for each seed that the treatments have, the highest peak of training plainly, with a countermeasure, or
after an attack.
"""

import io
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from storage.files import csv_bytes, replace_directory, write_atomic
from tasks.evidence.figures import accuracy_figure
from tasks.evidence.images import ImageSet
from tasks.evidence.protections import Protected
from tasks.evidence.records import Cell, CellResult, Evidence
from tasks.evidence.report import write_evidence_report
from tasks.grids import GridRow, comparison_grid

RESULTS = "results.json"


def write_outputs(
    evidence: Evidence,
    judged: str | None,
    clean: ImageSet,
    protected: Mapping[str, Protected],
    grid_rows: int,
    folder: Path,
    preset: str,
) -> None:
    """Write all of it; the folder appears whole.

    Args:
        judged: the protection that `objective` is about; None: no row of the preset is.
    """
    with replace_directory(folder / "evidence" / preset, RESULTS) as out:
        write_atomic(out / RESULTS, evidence.model_dump_json(indent=1).encode() + b"\n")
        write_atomic(out / "cells.csv", _cells(evidence))
        write_atomic(out / "curves.csv", _curves(evidence))
        write_atomic(out / "quality.csv", _quality(evidence))
        write_atomic(out / "images.png", _pictures(clean, protected, grid_rows))
        if main_rows(evidence):
            write_atomic(out / "accuracy.svg", accuracy_figure(evidence))
        write_evidence_report(out)
    metrics = json.dumps(figures(evidence, judged), indent=1, sort_keys=True)
    write_atomic(folder / "metrics" / f"evidence-{preset}.json", metrics.encode() + b"\n")


def figures(evidence: Evidence, judged: str | None) -> dict[str, float]:
    """The metrics; see above."""
    psnr = {facts.name: facts.psnr_mean for facts in evidence.protections}
    found: dict[str, float] = {}
    for name, rows in main_rows(evidence).items():
        found[f"{name}_last"] = statistics.fmean(r.test_accuracy for r in rows)
        found[f"{name}_peak"] = statistics.fmean(r.peak_test_accuracy for r in rows)
        for what, field in (("worst_countermeasure", "countermeasure"), ("best_adaptive", "attack")):
            treated = [r for r in evidence.cells if r.cell.protection == name and getattr(r.cell, field) != "none"]
            if treated:
                found[f"{name}_{what}"] = max(r.peak_test_accuracy for r in treated)
        if name in psnr:
            found[f"{name}_psnr"] = psnr[name]
    own = main_rows(evidence).get(judged or "")
    if own and judged is not None:
        found |= {"n": len(own), "psnr": psnr[judged]}
        found |= _spread("objective", [r.peak_test_accuracy for r in own])
        strongest = _strongest(evidence, judged, own)
        found |= _spread("strongest", strongest) | {"strongest_n": len(strongest)}
    return {name: round(value, 6) for name, value in found.items()}


def _spread(name: str, values: Sequence[float]) -> dict[str, float]:
    """Mean and, of more than one, standard deviation."""
    return {name: statistics.fmean(values)} | ({f"{name}_std": statistics.stdev(values)} if len(values) > 1 else {})


def _strongest(evidence: Evidence, judged: str, own: Sequence[CellResult]) -> list[float]:
    """The highest peak of each seed that the protection's treated rows have, or of all where nothing was tried."""
    treated = [
        r
        for r in evidence.cells
        if r.cell.protection == judged and (r.cell.countermeasure, r.cell.attack) != ("none", "none")
    ]
    seeds = {r.cell.seed for r in treated or own}
    return [max(r.peak_test_accuracy for r in [*own, *treated] if r.cell.seed == seed) for seed in sorted(seeds)]


def main_rows(evidence: Evidence) -> dict[str, list[CellResult]]:
    """Results of the plainly trained cells by protection, in the preset's order: one a seed."""
    first = next(iter(evidence.cells), None)
    rows: dict[str, list[CellResult]] = {}
    for result in evidence.cells:
        cell = result.cell
        plain = Cell(protection=cell.protection, seed=cell.seed, architecture=first.cell.architecture if first else "")
        if cell == plain and cell.seed in evidence.setting.seeds:
            rows.setdefault(cell.protection, []).append(result)
    return rows


def _cells(evidence: Evidence) -> bytes:
    fields = list(Cell.model_fields)
    measured = ("train_accuracy", "test_accuracy", "peak_test_accuracy", "peak_epoch", "n_train", "n_test", "seconds")
    rows = ([getattr(r.cell, f) for f in fields] + [getattr(r, m) for m in measured] for r in evidence.cells)
    return csv_bytes([*fields, *measured], rows)


def _curves(evidence: Evidence) -> bytes:
    rows = main_rows(evidence)
    means = [np.mean([r.history for r in results], axis=0) for results in rows.values()]
    lines = ([epoch, *(round(float(v), 6) for v in values)] for epoch, values in enumerate(zip(*means, strict=True), 1))
    return csv_bytes(["epoch", *rows], lines)


def _quality(evidence: Evidence) -> bytes:
    def lines() -> Iterable[Sequence[object]]:
        for facts in evidence.protections:
            for measure, histogram in (("psnr", facts.psnr), ("ssim", facts.ssim)):
                edges = zip(histogram.edges, histogram.edges[1:], histogram.counts, strict=False)
                yield from ((facts.name, measure, low, high, count) for low, high, count in edges)

    return csv_bytes(["protection", "measure", "from", "to", "images"], lines())


def _pictures(clean: ImageSet, protected: Mapping[str, Protected], count: int) -> bytes:
    """A grid a protection, one below the other, each below its name; PNG bytes."""
    from PIL import Image, ImageDraw, ImageFont

    images = clean.load().images
    wanted = np.linspace(0, len(images) - 1, min(count, len(images))).astype(np.int64)
    grids = [(name, Image.open(io.BytesIO(_grid(images, one, wanted)))) for name, one in protected.items()]
    title = 26
    width = max((grid.width for _, grid in grids), default=1)
    canvas = Image.new("RGB", (width, max(1, sum(grid.height + title for _, grid in grids))), (244, 244, 242))
    draw, font, top = ImageDraw.Draw(canvas), ImageFont.load_default(size=15), 0
    for name, grid in grids:
        draw.text((8, top + title // 2), name, fill=(40, 40, 44), font=font, anchor="lm")
        canvas.paste(grid, (0, top + title))
        top += grid.height + title
    out = io.BytesIO()
    canvas.save(out, "PNG", compress_level=6)
    return out.getvalue()


def _grid(images: Any, one: Protected, wanted: Any) -> bytes:
    shown, back = one.published.load().images, one.recovered.load().images
    at = {int(row): place for place, row in enumerate(one.published.rows())}
    came = {int(row): place for place, row in enumerate(one.recovered.rows())}
    rows = [
        GridRow(images[row], shown[at[row]], back[came[row]] if row in came else None)
        for row in wanted.tolist()
        if row in at
    ]
    blank = np.full_like(images[0], 255)
    return comparison_grid(rows or [GridRow(blank, blank, None)], tile=64, groups=2)
