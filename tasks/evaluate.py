"""Evaluate one data set: what protection did to models and pixels, what restoration gave back.

Reads the variants, the models' records and what `protect` and `restore` wrote; writes

    metrics/evaluation.json   the figures (`tasks.metrics.Evaluation`)
    plots/                    tables and pictures for the report and `dvc plots` (`tasks.plots`)

Every image is compared for sample errors. PSNR and SSIM are measured on a seeded sample, whose size stands in the
record.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from storage.errors import DatasetError
from storage.files import Progress, replace_directory, write_atomic
from tasks.digests import dvc_digest
from tasks.fidelity import Comparison, Pairs, compare_variants
from tasks.gallery import dataset_grid
from tasks.metrics import (
    VARIANTS,
    Bounds,
    Counts,
    Evaluation,
    Fidelity,
    NamedReason,
    ProtectMetrics,
    Quality,
    RestoreMetrics,
    Setting,
    StageTime,
    Stat,
    TrainMetrics,
    VariantAccuracy,
    VariantName,
    read_record,
)
from tasks.plots import write_plots
from tasks.quality import spread


class EvaluateParams(Protocol):
    """The `evaluate` section of params.yaml."""

    @property
    def quality_images(self) -> int:
        """Images whose PSNR and SSIM are measured."""

    @property
    def seed(self) -> int:
        """Draws them, and the rows of the grid."""

    @property
    def grid_images(self) -> int:
        """Rows of the image grid."""


def evaluate(
    dataset_dir: Path, params: EvaluateParams, seeds: Sequence[int] | None = None, progress: Progress | None = None
) -> Evaluation:
    """Evaluate `data/DATASET` and write the files named above.

    Args:
        dataset_dir: folder with the variants, `models/` and `metrics/`.
        params: what to measure.
        seeds: seeds to count, those of `train.seeds` (records of seeds tried earlier may still lie there); None: all.
        progress: told the shard's name, images done and images in all.

    Raises:
        DatasetError: a record is missing or lacks a field, models were trained in different ways, variants do not
            belong together, or recovered images are not exact that should be.
        CorruptManifest, CorruptShard, UnsupportedImage: a variant can not be read.
    """
    models = read_models(dataset_dir, seeds)
    protect = read_record(dataset_dir / "metrics" / "protect.json", ProtectMetrics)
    restore = read_record(dataset_dir / "metrics" / "restore.json", RestoreMetrics)
    comparison = compare_variants(
        dataset_dir, quality_images=params.quality_images, seed=params.seed, progress=progress
    )
    evaluation = _assemble(dataset_dir, params, models=models, protect=protect, restore=restore, comparison=comparison)
    if evaluation.promised and not evaluation.identical:
        raise DatasetError(
            f"{dataset_dir / 'recovered'} is not the clean variant, though every image promises to come back exactly.",
            "This must not happen: report it. Until then: dvc repro --force.",
        )
    with replace_directory(dataset_dir / "plots") as plots:
        write_plots(plots, dataset_dir, models, protect, comparison)
        (plots / "images.png").write_bytes(dataset_grid(dataset_dir, params.grid_images, params.seed))
    write_atomic(dataset_dir / "metrics" / "evaluation.json", (evaluation.model_dump_json(indent=2) + "\n").encode())
    return evaluation


# --- accuracies ------------------------------------------------------------------------------------------------------


def read_models(dataset_dir: Path, seeds: Sequence[int] | None = None) -> list[TrainMetrics]:
    """The records of all models, ordered by variant and seed.

    Raises:
        DatasetError: a variant has no model, the variants have different seeds, or models were trained differently.
    """
    models: list[TrainMetrics] = []
    for variant in VARIANTS:
        paths = (
            sorted((dataset_dir / "metrics").glob(f"train-{variant}-*.json"))
            if seeds is None
            else [dataset_dir / "metrics" / f"train-{variant}-{seed}.json" for seed in sorted(seeds)]
        )
        found = [read_record(path, TrainMetrics) for path in paths]
        if not found:
            raise DatasetError(f"No model was trained on the {variant} variant.", f"Run dmcp train {variant}.")
        models += sorted(found, key=lambda model: model.seed)
    _check_comparable(models)
    return models


def _check_comparable(models: list[TrainMetrics]) -> None:
    for name in ("recipe", "architecture", "stem", "epochs", "n_test"):
        values = sorted({str(getattr(model, name)) for model in models})
        if len(values) > 1:
            raise DatasetError(
                f"The models to compare were trained with different {name}: {', '.join(values)}.",
                "Train them again with the same parameters: dvc repro.",
            )
    by_variant = {variant: {m.seed for m in models if m.variant == variant} for variant in VARIANTS}
    if len(set(map(frozenset, by_variant.values()))) > 1:
        text = "; ".join(f"{name}: {', '.join(map(str, sorted(seeds)))}" for name, seeds in by_variant.items())
        raise DatasetError(f"The variants were trained with different seeds ({text}).", "Train the missing ones.")


def _stat(values: Sequence[float]) -> Stat:
    summary = spread(values)
    return Stat(mean=summary.mean or 0.0, std=summary.std, n=summary.n)


def _accuracy(models: list[TrainMetrics]) -> VariantAccuracy:
    return VariantAccuracy(
        seeds=[model.seed for model in models],
        train=_stat([model.train_accuracy for model in models]),
        last=_stat([model.test_accuracy for model in models]),
        peak=_stat([model.peak_test_accuracy for model in models]),
        last_by_seed=[model.test_accuracy for model in models],
        n_train=models[0].n_train,
        seconds=sum(model.seconds for model in models),
    )


# --- the record ------------------------------------------------------------------------------------------------------


def _assemble(
    dataset_dir: Path,
    params: EvaluateParams,
    *,
    models: list[TrainMetrics],
    protect: ProtectMetrics,
    restore: RestoreMetrics,
    comparison: Comparison,
) -> Evaluation:
    manifest, first = comparison.manifest, models[0]
    accuracy: dict[VariantName, VariantAccuracy] = {
        variant: _accuracy([model for model in models if model.variant == variant]) for variant in VARIANTS
    }
    return Evaluation(
        dataset=manifest.dataset,
        split=manifest.split,
        classes=len(manifest.classes),
        counts=_counts(comparison, protect, restore),
        quality_sample=params.quality_images,
        quality_seed=params.seed,
        bounds=Bounds(
            images=dict(sorted(comparison.bounds.images.items())),
            broken=comparison.bounds.broken,
            unknown=comparison.bounds.unknown,
        ),
        setting=Setting(**first.model_dump(include=set(Setting.model_fields))),
        accuracy=accuracy,
        fidelity={
            "protected": _fidelity(comparison.pairs["protected"]),
            "recovered": _fidelity(comparison.pairs["recovered"]),
        },
        rungs=protect.rungs,
        spilled=protect.spilled,
        payload_bytes=protect.payload_bytes,
        capacity_bytes=protect.capacity_bytes,
        times={"protect": _time(protect), "restore": _time(restore)},
        digests={name: dvc_digest(dataset_dir / name) for name in (*VARIANTS, "test") if (dataset_dir / name).is_dir()},
    )


def _time(stage: ProtectMetrics | RestoreMetrics) -> StageTime:
    return StageTime(steps=stage.seconds, wall=stage.wall_seconds, fresh=stage.fresh, workers=stage.workers)


def _counts(comparison: Comparison, protect: ProtectMetrics, restore: RestoreMetrics) -> Counts:
    images = comparison.images
    missing = images["clean"] - images["protected"]
    if (protect.images, protect.protected, len(protect.left_out)) != (images["clean"], images["protected"], missing):
        raise DatasetError(
            f"protect.json counts {protect.protected} of {protect.images} images protected and "
            f"{len(protect.left_out)} left out; the variants hold {images['protected']} and {images['clean']}.",
            "They belong to different runs: run dvc repro.",
        )
    return Counts(
        clean=images["clean"],
        protected=images["protected"],
        recovered=images["recovered"],
        left_out=missing,
        refused=len(restore.refused),
        left_out_reasons=_reasons(protect.left_out),
        refused_reasons=_reasons(restore.refused),
    )


def _reasons(entries: Iterable[NamedReason], most: int = 12) -> dict[str, int]:
    """Reasons by how often they occur; what is beyond the most frequent ones is summed up."""
    counts = Counter(entry.reason for entry in entries)
    kept = dict(counts.most_common(most))
    rest = counts.total() - sum(kept.values())
    return kept | ({"other reasons": rest} if rest else {})


def _fidelity(pairs: Pairs) -> Fidelity:
    errors, psnr, ssim = pairs.errors, spread(pairs.quality.psnr), spread(pairs.quality.ssim)
    measured = len(pairs.quality.psnr)
    return Fidelity(
        images=errors.images,
        bit_exact=errors.exact,
        bit_exact_share=errors.exact / errors.images if errors.images else None,
        max_sample_error=errors.max_error,
        mean_sample_error=errors.mean_error,
        labels_changed=pairs.labels_changed,
        quality=Quality(
            images=measured,
            identical_share=pairs.quality.identical / measured if measured else None,
            psnr_mean=psnr.mean,
            psnr_std=psnr.std,
            psnr_min=psnr.min,
            ssim_mean=ssim.mean,
            ssim_std=ssim.std,
            ssim_min=ssim.min,
        ),
    )
