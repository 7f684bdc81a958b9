"""Stage `download`: a data set becomes its clean and its test variant, as shards."""

from flows.access import prepare
from flows.console import note, progress
from flows.engine import flow, task
from flows.stage import stage_main
from storage.errors import UnusableFiles
from storage.settings import settings
from tasks.ledger import LEDGER_NAME, read_ledger
from tasks.params import load_params


@task("build variants")
def build(dataset: str) -> None:
    """Both splits; downloads are kept below HOME and resumed."""
    from tasks.download import DUPLICATES_NAME, download_dataset, moved_images

    params = load_params(dataset).download
    ledger = settings().data_path(dataset, LEDGER_NAME)
    loader, given = params.source or dataset, params.model_dump(exclude={"source"})
    if moved := moved_images(loader, given, ledger):
        note(
            f"Warning: {dataset} was built with {', '.join(moved)} before. Images move, so what was published of it is "
            "protected anew and has to go; put params.yaml right, and run this again, if that is not meant."
        )
    with progress(f"Building {dataset}") as bars:
        report = download_dataset(
            loader,
            given,
            settings().data_path(dataset, "clean"),
            settings().data_path(dataset, "test"),
            settings().mirror,
            bars,
            dataset,
            ledger,
        )
    note(
        f"{dataset}: {report.train_images:,} training and {report.test_images:,} test images in "
        f"{len(report.classes)} classes, from {report.origin}, {report.seconds:.1f} s"
    )
    if warning := report.warning(settings().data_path(dataset, DUPLICATES_NAME)):
        note(warning)


def has_changed(dataset: str) -> bool:
    """Whether images came into the source, went or changed since the stage ran; a look at the folder only."""
    from tasks.download import fingerprint

    params = load_params(dataset).download
    ledger = read_ledger(settings().data_path(dataset, LEDGER_NAME))
    if ledger is None or ledger.fingerprint is None:
        return False  # it never ran, which DVC sees itself, or its source never grows
    try:
        return fingerprint(params.source or dataset, params.model_dump(exclude={"source"})) != ledger.fingerprint
    except UnusableFiles:
        return True  # the stage refuses them, and leaves a list


@flow("download")
def download(dataset: str) -> None:
    """Build data/DATASET/clean and data/DATASET/test, and see that the data set has a key."""
    build(dataset)
    prepare(dataset)


if __name__ == "__main__":
    stage_main(download)
