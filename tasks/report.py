"""The report: one self-contained HTML page, and the same summary as a table for the terminal.

The page takes its figures from `metrics/evaluation.json` and `plots/` (see `tasks.evaluate`): it measures nothing
itself. It refers to nothing outside itself, follows the reader's light or dark setting, and prints.
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from storage.errors import DatasetError
from storage.files import write_atomic
from storage.manifest import read_manifest
from tasks import figures
from tasks.charts import SERIES
from tasks.grids import DIFFERENCE_GAIN
from tasks.machine import describe_machine, package_versions
from tasks.metrics import VARIANTS, Evaluation, Stat, VariantAccuracy, read_evaluation
from tasks.page import data_uri, render
from tasks.published import PUBLISHED, differences, is_scaled
from tasks.verdict import percent, verdict

if TYPE_CHECKING:
    from rich.table import Table

Rows = list[dict[str, str]]
PLOTS = ("curves", "errors", "quality", "payload", *(f"confusion-{variant}" for variant in VARIANTS))

_PLUS_MINUS = "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}"


def write_report(dataset_dir: Path, parameters: Mapping[str, Any], out: Path | None = None) -> Path:
    """Write the report of `data/DATASET`.

    Args:
        dataset_dir: folder with `metrics/evaluation.json`, `plots/` and the clean variant's manifest.
        parameters: nested parameters to print; `Params.model_dump()`.
        out: the page; default `dataset_dir / "report.html"`.

    Returns:
        The page's path.

    Raises:
        DatasetError: the evaluation or a plot's data is missing or not usable.
    """
    evaluation = read_evaluation(dataset_dir)
    plots = {name: _rows(dataset_dir / "plots" / f"{name}.csv") for name in PLOTS}
    classes = read_manifest(dataset_dir / "clean").classes
    grid = dataset_dir / "plots" / "images.png"
    if not grid.exists():
        raise DatasetError(f"{grid} is missing.", "Run the evaluation again: dvc repro.")
    context = _context(evaluation, parameters)
    context["figures"] = _figures(evaluation, plots, classes)
    context["images"] = data_uri(grid)
    page = dataset_dir / "report.html" if out is None else out
    write_atomic(page, render("report.html.j2", context))
    return page


def _rows(path: Path) -> Rows:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError as error:
        raise DatasetError(f"{path} is missing.", "Run the evaluation again: dvc repro.") from error


def _figures(evaluation: Evaluation, plots: Mapping[str, Rows], classes: Sequence[str]) -> dict[str, Any]:
    from markupsafe import Markup  # our own SVG, in which matplotlib has escaped every text

    matrices: dict[str, Any] = {
        name: figures.confusion_matrix(plots[f"confusion-{name}"], classes) for name in VARIANTS
    }
    charts = {
        "curves": figures.curves(plots["curves"]),
        "confusion": figures.confusions(matrices, classes),
        "quality": figures.quality_histograms(plots["quality"]),
        "errors": figures.error_bars(plots["errors"], evaluation.bounds.largest),
        "payload": figures.payload_bars(plots["payload"], evaluation.capacity_bytes) if plots["payload"] else "",
    }
    return {name: Markup(svg) for name, svg in charts.items()}


# --- words and tables ------------------------------------------------------------------------------------------------


def _context(evaluation: Evaluation, parameters: Mapping[str, Any]) -> dict[str, Any]:
    e = evaluation
    published = PUBLISHED.get(e.dataset)
    seeds = e.accuracy["clean"].seeds
    return {
        "dataset": e.dataset,
        "colours": SERIES,
        "subtitle": f"{e.counts.clean:,} images of {e.classes} classes, split “{e.split}”, "
        f"{e.counts.protected:,} protected, {e.counts.recovered:,} recovered. Test accuracy on {e.setting.n_test:,} "
        "clean images:",
        "tiles": [_tile(name, e.accuracy[name]) for name in VARIANTS],
        "verdict": verdict(e),
        "setting": _setting(e),
        "seed_text": _seed_text(seeds),
        "many_seeds": len(seeds) > 1,
        "published": published,
        "accuracy": [_accuracy_row(e, name) for name in VARIANTS],
        "differences": differences(published, e.setting, e.accuracy, parameters.get("train", {})) if published else [],
        "scaled": published is not None and is_scaled(published, e.setting, e.accuracy),
        "images_caption": f"Drawn by seed {e.quality_seed}, enlarged without smoothing. The difference column shows "
        f"128 + {DIFFERENCE_GAIN} × (protected − clean): grey where nothing changed.",
        "quality_caption": f"PSNR and SSIM: mean ± standard deviation over {_sampled(e)} (PSNR per RGB image, peak "
        "255, over images that differ; SSIM with an 11 × 11 Gaussian window, mean of R, G and B). Errors: every "
        "sample of every image, of 255.",
        "fidelity": [_fidelity_row(e, "protected"), _fidelity_row(e, "recovered")],
        "bounds": _bounds(e),
        "certificate": _certificate(e) if e.promised else [],
        "payload": _payload(e),
        "rungs": _rungs(e),
        "exceptions": _exceptions(e),
        "timings": _timings(e),
        "facts": _facts(e, parameters),
    }


def _pm(stat: Stat, digits: int = 2) -> str:
    """Mean ± standard deviation in percent; the mean alone for a single seed."""
    mean = f"{100 * stat.mean:.{digits}f}"
    return mean if stat.std is None else f"{mean}{_PLUS_MINUS}{100 * stat.std:.{digits}f}"


def _seed_text(seeds: Sequence[int]) -> str:
    names = ", ".join(map(str, seeds))
    return f"one seed ({names}), so without a deviation" if len(seeds) == 1 else f"{len(seeds)} seeds ({names})"


def _tile(name: str, result: VariantAccuracy) -> dict[str, str]:
    spread = "one seed" if result.last.std is None else f"± {100 * result.last.std:.1f}, {result.last.n} seeds"
    detail = f"{spread}; best epoch {percent(result.peak.mean)}"
    return {"variant": name, "value": percent(result.last.mean), "detail": detail}


def _setting(e: Evaluation) -> str:
    s = e.setting
    stem = {"imagenet": "its own stem", "small": "a 3×3 stride-1 stem"}.get(s.stem, f"stem “{s.stem}”")
    where = f", on {s.device}" if s.device else ""
    return (
        f"{s.architecture} with {stem}, trained from scratch with the recipe “{s.recipe}” for {s.epochs} epochs{where}"
        ", the same for every variant."
    )


def _accuracy_row(e: Evaluation, name: Any) -> dict[str, str]:
    result, published = e.accuracy[name], PUBLISHED.get(e.dataset)
    row = {
        "variant": name,
        "last": _pm(result.last),
        "peak": _pm(result.peak),
        "train": _pm(result.train),
        "n_train": f"{result.n_train:,}",
    }
    if published:
        train, test = published.accuracy[name]
        row |= {"published_test": f"{100 * test:.2f}", "published_train": f"{100 * train:.2f}"}
    return row


def _sampled(e: Evaluation) -> str:
    images = e.fidelity["recovered"].quality.images
    if images >= e.counts.recovered:
        return f"all {images:,} images"
    return f"{images:,} images drawn by seed {e.quality_seed}"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _plus_minus(mean: float | None, std: float | None, digits: int) -> str:
    return _number(mean, digits) if std is None else f"{_number(mean, digits)}{_PLUS_MINUS}{_number(std, digits)}"


def _fidelity_row(e: Evaluation, name: Any) -> dict[str, Any]:
    f, q = e.fidelity[name], e.fidelity[name].quality
    psnr = "identical" if q.identical_share == 1 else _plus_minus(q.psnr_mean, q.psnr_std, 2)
    cells = [
        psnr,
        _number(q.psnr_min, 2),
        _plus_minus(q.ssim_mean, q.ssim_std, 4),
        _number(q.ssim_min, 4),
        f"{f.bit_exact:,} of {f.images:,} ({percent(f.bit_exact_share)})",
        str(f.max_sample_error if f.max_sample_error is not None else "–"),
        _number(f.mean_sample_error, 3),
    ]
    return {"variant": name, "cells": cells}


def _certificate(e: Evaluation) -> list[tuple[str, str]]:
    """What profile `exact` promises, counted."""
    exact = e.fidelity["recovered"].bit_exact
    beside = f"{e.spilled:,} ({percent(e.spilled / e.counts.protected, 2)})" if e.counts.protected else "0"
    return [
        ("images protected", f"{e.counts.protected:,}"),
        ("payload beside the pixels", beside),
        ("refused by restoration", f"{e.counts.refused:,}"),
        ("recovered bit for bit", f"{exact:,} of {e.counts.recovered:,}"),
        ("labels changed", f"{e.fidelity['recovered'].labels_changed:,}"),
        ("digest of the clean variant", e.digests.get("clean", "–")),
        ("digest of the recovered variant", e.digests.get("recovered", "–")),
        ("verdict", "the same bytes: shards, order, labels, pixels" if e.identical else "not the same"),
    ]


def _bounds(e: Evaluation) -> str:
    b = e.bounds
    parts = [f"{count:,} images at most {bound}" for bound, count in sorted(b.images.items())]
    if not parts:
        text = "No protected image has a header that promises a bound."
    else:
        text = f"Each protected image's header says how far off recovered samples can be: {', '.join(parts)}. "
        text += "Every image keeps it." if b.broken == 0 else f"{b.broken:,} images break it."
        text += f" {b.unknown:,} images have no readable header." if b.unknown else ""
    changed = e.fidelity["recovered"].labels_changed
    return f"{text} Labels: {f'{changed:,} changed' if changed else 'all as in the clean variant'}."


def _payload(e: Evaluation) -> str:
    p = e.payload_bytes
    if p is None:
        return "No payload sizes were recorded."
    text = f"An image's sealed payload takes {p.mean:,.0f} bytes on average ({p.min:,.0f} to {p.max:,.0f})"
    return (
        f"{text}; the largest capacity of an image is {e.capacity_bytes:,.0f} bytes."
        if e.capacity_bytes
        else f"{text}."
    )


def _rungs(e: Evaluation) -> list[dict[str, str]]:
    total = sum(e.rungs.values())
    return [
        {"name": name, "images": f"{count:,}", "share": percent(count / total, 2)}
        for name, count in sorted(e.rungs.items(), key=lambda item: -item[1])
        if total
    ]


def _exceptions(e: Evaluation) -> list[dict[str, Any]]:
    c = e.counts
    groups = [
        (f"Left out of the protected variant: {c.left_out:,} of {c.clean:,}", c.left_out_reasons),
        (f"Refused by restoration: {c.refused:,} of {c.protected:,}", c.refused_reasons),
    ]
    return [{"title": t, "rows": [(reason, f"{n:,}") for reason, n in reasons.items()]} for t, reasons in groups]


def _timings(e: Evaluation) -> list[dict[str, str]]:
    rows = []
    stages: list[tuple[Literal["protect", "restore"], int]] = [
        ("protect", e.counts.clean),
        ("restore", e.counts.protected),
    ]
    for stage, images in stages:
        times = e.times[stage]
        rows += [_timing(stage, step, seconds, images) for step, seconds in times.steps.items()]
        fresh = images if times.fresh is None else times.fresh
        if times.wall is not None and fresh:
            workers = f", {times.workers} workers" if times.workers else ""
            some = f", {fresh:,} images" if fresh < images else ""
            rows.append(_timing(stage, f"whole stage by the clock{workers}{some}", times.wall, fresh))
    for name in VARIANTS:
        result = e.accuracy[name]
        runs = f"{name}, {len(result.seeds)} × {e.setting.epochs} epochs"
        rows.append(_timing("train", runs, result.seconds, result.n_train * e.setting.epochs * len(result.seeds)))
    return rows


def _timing(stage: str, step: str, seconds: float, images: int) -> dict[str, str]:
    rate = f"{images / seconds:,.0f}" if seconds > 0 else "–"
    return {"stage": stage, "step": step, "seconds": f"{seconds:,.1f}", "rate": rate}


def _facts(e: Evaluation, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    same = e.digests["clean"] == e.digests["recovered"]
    recovered = e.fidelity["recovered"]
    if same:
        note = "Clean and recovered are the same, bit for bit."
    elif recovered.bit_exact < recovered.images:
        note = "Clean and recovered differ in pixels."
    else:
        missing = e.counts.clean - e.counts.recovered
        note = f"What was recovered is bit for bit the same; {missing:,} images are missing."
    return [
        {"title": "Parameters", "rows": flatten(parameters), "code": True, "note": ""},
        {
            "title": "Data sets, by the digests that DVC and MLflow name them with",
            "rows": list(e.digests.items()),
            "code": True,
            "note": note,
        },
        {
            "title": "Machine that wrote this page",
            "rows": list(describe_machine().items()),
            "code": False,
            "note": "",
        },
        {"title": "Versions", "rows": list(package_versions().items()), "code": True, "note": ""},
    ]


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested mappings as (dotted name, text): {"a": {"b": 1}} -> [("a.b", "1")]."""
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += flatten(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", "–" if value is None else str(value)))
    return rows


# --- terminal --------------------------------------------------------------------------------------------------------


def summary_table(evaluation: Evaluation) -> "Table":
    """Clean, protected and recovered beside each other, accuracies in % (mean ± deviation over seeds)."""
    from rich.table import Table

    seeds = len(evaluation.accuracy["clean"].seeds)
    table = Table(
        title=f"{evaluation.dataset}: {evaluation.setting.architecture}, {evaluation.setting.epochs} epochs, "
        f"{seeds} {'seed' if seeds == 1 else 'seeds'}"
    )
    table.add_column("trained on")
    for heading in ("train acc. %", "test acc. % (last)", "test acc. % (peak)", "PSNR dB", "SSIM"):
        table.add_column(heading, justify="right")
    for name in VARIANTS:
        result = evaluation.accuracy[name]
        psnr, ssim = "–", "–"
        if name != "clean":
            quality = evaluation.fidelity[name].quality
            psnr = "identical" if quality.identical_share == 1 else _number(quality.psnr_mean, 1)
            ssim = _number(quality.ssim_mean, 4)
        table.add_row(name, _pm(result.train), _pm(result.last), _pm(result.peak), psnr, ssim)
    return table
