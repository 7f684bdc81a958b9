"""`dmcp train`, `dmcp export`: what an image data set is good for. `compare` has its own file."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from flows import console
from flows.commands import common
from flows.commands.compare import compare

PANEL = "Models"
_NAMES = ("clean", "protected", "recovered")


def register(root: typer.Typer) -> None:
    """Add the commands to the command tree."""
    root.command(rich_help_panel=PANEL)(train)
    root.command(rich_help_panel=PANEL)(compare)
    root.command(rich_help_panel=PANEL)(export)


def train(
    variant: Annotated[
        str, typer.Argument(metavar="VARIANT", help="A variant's folder; or clean, protected, recovered of --dataset.")
    ],
    dataset: Annotated[str | None, typer.Option(help="Default: the manifest's; for a bare name, sample.")] = None,
    test: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Clean test images; default: test beside it.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, order and augmentation.")] = 0,
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Where the model goes.")] = None,
    sets: common.Set = None,
) -> None:
    """Train a network on a variant and test it on clean images; the run is on record in MLflow.

    Parameters are the section `train` of params.yaml; --set changes them, as in --set epochs=3. Without --set and
    --out, a variant below data/DATASET gets the model that `dmcp run` makes; else OUT (or trained/ beside it) does.
    """
    from storage.settings import settings
    from tasks.tracking import open_tracking
    from tasks.train import train_variant

    folder = find_variant(variant, dataset)
    name = common.dataset_of(folder, dataset)
    values = common.parse_sets(sets)
    params = common.params_for(name, {"train": values}).train
    model, record = _places(folder, seed, out, plain=not values)
    _check_out(model)
    tracking = open_tracking(settings())
    with console.progress(f"Training {params.architecture} on {console.shown(folder)}, seed {seed}") as progress:
        metrics = train_variant(
            folder,
            test or folder.parent / "test",
            model,
            record,
            params,
            variant=folder.name,
            seed=seed,
            dataset=name,
            tracking=tracking,
            device=settings().device,
            progress=progress,
        )
    _tell(name, folder, model, record, metrics)


def find_variant(given: str, dataset: str | None) -> Path:
    """The folder that is meant: a path that exists, else one of the three variants of a data set.

    Raises:
        NoSuchPath: neither.
    """
    from storage.errors import NoSuchPath
    from storage.settings import settings

    path = Path(given)
    if not path.is_dir() and given in _NAMES:
        path = settings().data_path(dataset or "sample", given)
    if not path.is_dir():
        raise NoSuchPath(
            f"There is no variant {given}.", "Name its folder, or clean, protected or recovered and --dataset."
        )
    return path


def _places(folder: Path, seed: int, out: Path | None, plain: bool) -> tuple[Path, Path]:
    """Folder of the model, and file of its figures."""
    name = f"{folder.name}-{seed}"
    if out is None and plain and folder.name in _NAMES:
        return folder.parent / "models" / name, folder.parent / "metrics" / f"train-{name}.json"
    chosen = out or folder.parent / "trained" / name
    return chosen, chosen / "metrics.json"


def _check_out(model: Path) -> None:
    """See that only an earlier model is replaced.

    Raises:
        UsageError: the folder holds something else, or a variant too.
    """
    from storage.errors import UsageError
    from storage.manifest import MANIFEST_NAME

    if model.exists() and not model.is_dir():
        raise UsageError(f"{model} is a file, not a folder.", "Name another folder.")
    ours = (model / "model.pt").is_file() and not (model / MANIFEST_NAME).exists()
    if model.is_dir() and any(model.iterdir()) and not ours:
        raise UsageError(
            f"{model} holds something else than an earlier model and is not replaced.",
            "Name another folder, or remove this one first.",
        )


def _tell(dataset: str, folder: Path, model: Path, record: Path, metrics: dict[str, Any]) -> None:
    console.finished(
        f"Trained on {metrics['n_train']:,} images of {console.shown(folder)} for {metrics['epochs']} epochs in "
        f"{metrics['seconds']:.0f} s: {metrics['test_accuracy']:.1%} of {metrics['n_test']:,} clean test images right "
        f"(peak {metrics['peak_test_accuracy']:.1%}; training images {metrics['train_accuracy']:.1%}).",
        [
            ("model", f"{console.shown(model)}/model.pt"),
            ("figures", console.shown(record)),
            ("MLflow run", metrics["mlflow_run"]),
        ],
        [f"dmcp compare {dataset}", "dmcp up shows the run in MLflow"],
    )


class Layout(StrEnum):
    """What `dmcp export` writes."""

    imagefolder = "imagefolder"


def export(
    variant: Annotated[Path, typer.Argument(metavar="VARIANT", help="A folder of shards with manifest.json.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new or empty folder.")],
    layout: Annotated[Layout, typer.Option("--as", help="OUT/CLASS/KEY.png, for torchvision's ImageFolder.")] = (
        Layout.imagefolder
    ),
) -> None:
    """Write a variant as ordinary image files."""
    from tasks.export import export_imagefolder

    with console.progress(f"Writing {layout.value}") as progress:
        count = export_imagefolder(variant, out, progress)
    folder = console.shown(out)
    console.finished(
        f"Wrote {count:,} images of {console.shown(variant)}.",
        [("folder", folder)],
        [f"torchvision.datasets.ImageFolder({folder!r})"],
    )
