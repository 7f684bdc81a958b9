"""Stage `train`: one model on one variant with one seed, tested on clean test images, on record in MLflow."""

from pathlib import Path

from flows.console import note, progress
from flows.engine import flow, task
from flows.stage import stage_main
from storage.settings import settings
from tasks.params import load_params

GRID_ROWS = 8


@task("train model", "train {variant}-{seed}")
def train_model(dataset: str, variant: str, seed: int) -> None:
    """Train; a killed training goes on after its last whole epoch, in the same MLflow run."""
    from tasks.tracking import open_tracking
    from tasks.train import train_variant

    folder = settings().data_path(dataset)
    with progress(f"Training on {dataset}/{variant}, seed {seed}") as bars:
        metrics = train_variant(
            folder / variant,
            folder / "test",
            folder / "models" / f"{variant}-{seed}",
            folder / "metrics" / f"train-{variant}-{seed}.json",
            load_params(dataset).train,
            variant=variant,
            seed=seed,
            dataset=dataset,
            tracking=open_tracking(settings()),
            device=settings().device,
            images=_pictures(folder),
            progress=bars,
        )
    how = f"the same data as {metrics['same_as']}" if metrics["same_as"] else f"{metrics['seconds']:.0f} s"
    note(
        f"{dataset}/{variant}, seed {seed}: {metrics['test_accuracy']:.1%} of clean test images right "
        f"(peak {metrics['peak_test_accuracy']:.1%}), {how}"
    )


def _pictures(folder: Path) -> dict[str, bytes]:
    """Clean, protected, difference, recovered beside each other, where all three variants are there."""
    if not all((folder / variant / "manifest.json").exists() for variant in ("clean", "protected", "recovered")):
        return {}
    from tasks.gallery import dataset_grid

    return {"images.png": dataset_grid(folder, GRID_ROWS, seed=0)}


@flow("train")
def train(dataset: str, variant: str, seed: int) -> None:
    """Write data/DATASET/models/VARIANT-SEED and metrics/train-VARIANT-SEED.json."""
    train_model(dataset, variant, seed)


if __name__ == "__main__":
    stage_main(train)
