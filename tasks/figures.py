"""The report's charts, as SVG that lies inside the page.

Inputs are the rows of `plots/*.csv` (see `tasks.evaluate`). Series keep their colour throughout the report.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tasks.charts import INK, SERIES, inline_svg, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, str]

# --- curves ----------------------------------------------------------------------------------------------------------


def curves(rows: Sequence[Row]) -> str:
    """Test and training accuracy by epoch: a thin line a seed, a thick one the mean over seeds."""
    from matplotlib.ticker import MaxNLocator

    with panels(2, 9.2, 3.1, "curves") as (figure, axes):
        for axis, column, title in zip(
            axes, ("test_accuracy", "train_accuracy"), ("Test accuracy (%)", "Training accuracy (%)"), strict=True
        ):
            for variant, lines in _by_variant(rows, column).items():
                _curve(axis, variant, lines)
            axis.set_title(title)
            axis.set_xlabel("epoch")
            axis.set_ylim(0, 102)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
        return inline_svg(figure, "Test and training accuracy by epoch for the clean, protected and recovered variant")


def _by_variant(rows: Sequence[Row], column: str) -> dict[str, dict[str, list[tuple[int, float]]]]:
    lines: dict[str, dict[str, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        lines[row["variant"]][row["seed"]].append((int(float(row["epoch"])), 100 * float(row[column])))
    return lines


def _curve(axis: "Axes", variant: str, lines: Mapping[str, list[tuple[int, float]]]) -> None:
    # The recovered curve lies on the clean one where all is well: dashed, both stay visible.
    style = "--" if variant == "recovered" else "-"
    seeds = [np.array(sorted(points)) for points in lines.values()]
    if len(seeds) > 1:
        for points in seeds:
            axis.plot(points[:, 0], points[:, 1], color=SERIES[variant], linewidth=0.7, alpha=0.45)
    epochs = seeds[0][:, 0]
    if all(np.array_equal(points[:, 0], epochs) for points in seeds):
        mean = np.mean([points[:, 1] for points in seeds], axis=0)
        marker = "o" if len(epochs) < 3 else ""
        axis.plot(epochs, mean, style, color=SERIES[variant], linewidth=2, label=variant, marker=marker)


# --- confusion -------------------------------------------------------------------------------------------------------


def confusion_matrix(rows: Iterable[Row], classes: Sequence[str]) -> NDArray[np.float64]:
    """Share of each actual class (row) that was predicted as each class (column): float64 [C, C]; empty rows are 0."""
    index = {name: number for number, name in enumerate(classes)}
    counts = np.zeros((len(classes), len(classes)))
    for row in rows:
        counts[index[row["actual"]], index[row["predicted"]]] += 1
    totals = counts.sum(axis=1, keepdims=True)
    return np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)


def confusions(matrices: Mapping[str, NDArray[np.float64]], classes: Sequence[str]) -> str:
    """One matrix a variant, cells the deeper the larger the share; the shares are written in where they fit."""
    with panels(len(matrices), 3.55 * len(matrices), 3.75, "confusion") as (figure, axes):
        for number, (axis, (variant, matrix)) in enumerate(zip(axes, matrices.items(), strict=True)):
            _matrix(axis, matrix, SERIES[variant])
            axis.set_title(variant)
            axis.set_xlabel("predicted")
            _class_ticks(axis, classes, rows_too=number == 0)
        axes[0].set_ylabel("actual")
        return inline_svg(figure, "Confusion matrices of the models, a row an actual class")


def _matrix(axis: "Axes", matrix: NDArray[np.float64], colour: str) -> None:
    from matplotlib.colors import to_rgb

    size = len(matrix)
    cells = np.empty((size, size, 4))
    cells[..., :3] = to_rgb(colour)
    cells[..., 3] = 0.85 * matrix  # see-through where the share is small: the page's background stays the zero
    axis.imshow(cells, interpolation="none", extent=(-0.5, size - 0.5, size - 0.5, -0.5))
    axis.grid(False)
    for spine in axis.spines.values():
        spine.set_visible(True)
    if size <= 12:
        for (line, column), share in np.ndenumerate(matrix):
            if share >= 0.005:
                axis.text(column, line, f"{100 * share:.0f}", ha="center", va="center", fontsize=6.5)


def _class_ticks(axis: "Axes", classes: Sequence[str], rows_too: bool) -> None:
    axis.tick_params(length=0)
    if len(classes) > 25:
        axis.set_xticks([])
        axis.set_yticks([])
        return
    names = [name if len(name) <= 14 else name[:13] + "…" for name in classes]
    axis.set_xticks(range(len(names)), names, rotation=90, fontsize=7.5)
    axis.set_yticks(range(len(names)), names if rows_too else [""] * len(names), fontsize=7.5)


# --- distributions ---------------------------------------------------------------------------------------------------


def quality_histograms(rows: Sequence[Row]) -> str:
    """PSNR and SSIM of the sampled images against the clean ones."""
    with panels(2, 9.2, 2.7, "quality") as (figure, axes):
        for axis, column, title in zip(axes, ("psnr", "ssim"), ("PSNR (dB)", "SSIM"), strict=True):
            values = {
                variant: [float(row[column]) for row in rows if row["variant"] == variant and row[column]]
                for variant in ("protected", "recovered")
            }
            for variant, numbers in values.items():
                if numbers:
                    axis.hist(numbers, bins=_bins(values.values()), color=SERIES[variant], alpha=0.75, label=variant)
            axis.set_title(title)
            axis.set_ylabel("images")
            axis.grid(axis="x", visible=False)
        handles, labels = axes[1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2)
        return inline_svg(figure, "Histograms of PSNR and SSIM of protected and recovered images")


def _bins(series: Iterable[Sequence[float]]) -> list[float]:
    values = [value for numbers in series for value in numbers]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    return [float(edge) for edge in np.linspace(low, high if high > low else low + 1e-3, 61)]


def error_bars(rows: Sequence[Row], bound: int | None) -> str:
    """Samples by absolute error, as shares on a logarithmic axis: recovered (with the bound) and protected."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    with panels(2, 9.2, 2.7, "errors") as (figure, axes):
        for axis, variant in zip(axes, ("recovered", "protected"), strict=True):
            shares = [(int(row["error"]), float(row[variant])) for row in rows]
            points = [(error, share) for error, share in shares if share > 0]
            axis.bar([p[0] for p in points], [p[1] for p in points], color=SERIES[variant], width=0.85)
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter(FuncFormatter(lambda share, _: _percent(share)))
            axis.set_title(f"{variant}: share of samples")
            axis.set_xlabel("absolute error of a sample (of 255)")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.grid(axis="x", visible=False)
            if variant == "recovered":
                _bound(axis, bound, points[-1][0] if points else 0)
        return inline_svg(figure, "Absolute errors of samples against the clean images")


def _percent(share: float) -> str:
    return f"{100 * share:.8f}".rstrip("0").rstrip(".") + " %"


def _bound(axis: "Axes", bound: int | None, largest: int) -> None:
    edge = max(largest, bound or 0)
    axis.set_xlim(-0.7, edge + 1.7)
    if bound is not None:
        axis.axvline(bound + 0.5, color=INK, linewidth=1, linestyle=":")
        axis.text(bound + 0.58, 0.92, f"bound: {bound}", transform=axis.get_xaxis_transform(), va="top")


def payload_bars(rows: Sequence[Row], capacity: float | None) -> str:
    """Images by the size of their payload, beside the capacity."""
    with panels(1, 9.2, 2.4, "payload") as (figure, axes):
        edges = [(float(row["from_bytes"]), float(row["to_bytes"]), int(row["images"])) for row in rows]
        axes[0].bar(
            [low for low, _, _ in edges],
            [images for _, _, images in edges],
            [high - low for low, high, _ in edges],
            align="edge",
            color=SERIES["protected"],
        )
        axes[0].set_xlabel("payload of an image (bytes)")
        axes[0].set_ylabel("images")
        axes[0].grid(axis="x", visible=False)
        if capacity is not None:
            axes[0].axvline(capacity, color=INK, linewidth=1, linestyle=":")
            axes[0].annotate(
                f"capacity: {capacity:,.0f} ",
                (capacity, 0.95),
                xycoords=axes[0].get_xaxis_transform(),
                ha="right",
                va="top",
            )
        return inline_svg(figure, "Histogram of payload sizes and the capacity of an image")
