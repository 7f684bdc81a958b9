"""`dmcp data`: from a data set, or from one's own folder, to clean variants."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows import console
from flows.commands import common

if TYPE_CHECKING:
    from tasks.download import DownloadReport
    from tasks.ledger import Ledger

KEY_COLUMNS = ("key", "class", "file")

app = typer.Typer(no_args_is_help=True, help="Get data sets as clean variants (owner).")


def register(root: typer.Typer) -> None:
    """Add the group to the command tree."""
    root.add_typer(app, name="data", rich_help_panel="Owner")


@app.command()
def get(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name of `dmcp data list`, or of params.yaml.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A folder; clean/ and test/ are made in it.")],
    path: Annotated[Path | None, typer.Option(help="imagefolder: the folder of class folders.")] = None,
    dataset: Annotated[str | None, typer.Option(help="The name the variants carry; default: NAME.")] = None,
    sets: common.Set = None,
) -> None:
    """Build the clean variants of a data set: OUT/clean (what is protected later) and OUT/test (what never is).

    One's own images: dmcp data get imagefolder OUT --path FOLDER --dataset NAME, where FOLDER has a folder of PNG or
    JPEG files for each class. Variants that OUT holds are replaced, those of another data set never.
    """
    from tasks.download import DUPLICATES_NAME

    report = _download(name, out, _parameters(name, path, common.parse_sets(sets)), dataset)
    if warning := report.warning(Path(console.shown(out / DUPLICATES_NAME))):
        console.note(warning)
    clean = console.shown(out / "clean")
    console.finished(
        f"Built {report.dataset} from {report.origin}: {report.train_images:,} images to protect and "
        f"{report.test_images:,} to test with, {len(report.classes)} classes, in {report.seconds:.0f} s.",
        [
            ("clean", f"{clean}  ({console.size(report.train_bytes)})"),
            ("test", f"{console.shown(out / 'test')}  ({console.size(report.test_bytes)})"),
        ],
        [
            f"dmcp key create {report.dataset}",
            f"dmcp protect {clean} {console.shown(out / 'protected')}",
        ],
    )


def _check_out(out: Path, dataset: str) -> None:
    """See that no variant in OUT belongs to another data set: two of it would be replaced, and a third published.

    Raises:
        UsageError: one does.
    """
    from storage.errors import CorruptManifest, UsageError
    from storage.manifest import read_manifest

    for folder in (out / name for name in ("clean", "test", "protected", "recovered")):
        with suppress(CorruptManifest):  # there is none, or a damaged one, which building it again mends
            held = read_manifest(folder).dataset
            if held != dataset:
                raise UsageError(
                    f"{console.shown(folder)} holds the data set {held}, not {dataset}; nothing is replaced.",
                    f"Name another folder than {console.shown(out)}, or give --dataset {held} if it is the same one.",
                )


def _parameters(name: str, path: Path | None, extra: dict[str, Any]) -> dict[str, Any]:
    """The loader's parameters: those of params.yaml where it knows the name, then the options."""
    from tasks.params import PARAMS_FILE, deep_merge, known_datasets, load_params

    known: dict[str, Any] = {}
    if PARAMS_FILE.exists() and name in known_datasets():
        known = load_params(name).download.model_dump(exclude_none=True)
    if path is not None:
        extra = {**extra, "path": str(path)}
    return deep_merge(known, extra)


def _download(name: str, out: Path, parameters: dict[str, Any], dataset: str | None) -> DownloadReport:
    from storage.settings import settings
    from tasks import datasets
    from tasks.download import download_dataset
    from tasks.ledger import LEDGER_NAME

    loader = str(parameters.pop("source", name))
    datasets.get(loader)  # a name that nobody knows is said first
    _check_out(out, dataset or name)
    _check_moved(loader, parameters, out / LEDGER_NAME)
    with console.progress(f"Building {dataset or name}") as progress:
        return download_dataset(
            loader,
            parameters,
            out / "clean",
            out / "test",
            settings().mirror,
            progress,
            dataset or name,
            out / LEDGER_NAME,
        )


def _check_moved(loader: str, parameters: dict[str, Any], ledger: Path) -> None:
    """See that images that may be published stay in their split and shard. Raises UsageError when they do not."""
    from storage.errors import UsageError
    from tasks.download import moved_images

    if moved := moved_images(loader, parameters, ledger):
        raise UsageError(
            f"{console.shown(ledger.parent)} was built with {', '.join(moved)}. Images would move between shards, or "
            "from training to test, and all that is published would have to be protected anew.",
            f"Give what it was built with (--set NAME=VALUE). To begin anew, remove {console.shown(ledger)} first.",
        )


@app.command()
def keys(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="What `dmcp data get` made: the folder with ledger.json.")
    ],
    files: Annotated[
        list[str] | None, typer.Argument(metavar="FILE", help="File names, such as CLASS/NAME.jpg; default: all.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the keys and nothing else.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print as CSV.")] = False,
) -> None:
    """Show which key the images of one's own folder have: those that are published, not those of the test split.

    For a grant for some of them: dmcp data keys FOLDER FILE... --quiet > keys.txt, then dmcp access grant USER DATASET
    --version ID --samples keys.txt
    """
    from storage.files import csv_bytes
    from tasks.sample_keys import images_named, own_images

    ledger = _ledger(folder)
    found = images_named(ledger, files) if files else own_images(ledger)
    rows = [(image.key, image.class_name, image.file) for image in found]
    if quiet:
        console.say("\n".join(image.key for image in found))
    elif csv:
        console.say(csv_bytes(KEY_COLUMNS, rows).decode().rstrip())
    else:
        console.table(KEY_COLUMNS, rows)


def _ledger(folder: Path) -> Ledger:
    """The ledger of a data set that has file names.

    Raises:
        NoSuchPath: there is no ledger.
        DatasetError: it is damaged, or is of a data set without file names.
    """
    from storage.errors import DatasetError, NoSuchPath
    from tasks.ledger import LEDGER_NAME, read_ledger

    path = folder / LEDGER_NAME
    ledger = read_ledger(path)
    if ledger is None:
        raise NoSuchPath(f"There is no {path}.", "Name the folder that `dmcp data get` made (its OUT).")
    if not ledger.splits:
        raise DatasetError(
            f"The images of {ledger.source} have no file names.",
            "Their keys are their numbers, in the order of the source.",
        )
    return ledger


@app.command(name="list")
def list_datasets() -> None:
    """List the data sets there are."""
    from tasks import datasets

    text = datasets.__doc__ or ""
    described = [
        line.split(None, 1)
        for line in text.splitlines()
        if line.split(None, 1)[:1] and line.split()[0] in datasets.NAMES
    ]
    console.table(("name", "what it is"), described)
    console.say("Next: dmcp data get NAME OUT")
