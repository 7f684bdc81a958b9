"""Stage `download`: a data set becomes its clean and its test variant, as shards."""

from flows.access import prepare
from flows.console import note, progress
from flows.engine import flow, task
from flows.stage import stage_main
from storage.settings import settings
from tasks.params import load_params


@task("build variants")
def build(dataset: str) -> None:
    """Both splits; downloads are kept below HOME and resumed."""
    from tasks.download import download_dataset

    params = load_params(dataset).download
    with progress(f"Building {dataset}") as bars:
        report = download_dataset(
            params.source or dataset,
            params.model_dump(exclude={"source"}),
            settings().data_path(dataset, "clean"),
            settings().data_path(dataset, "test"),
            settings().mirror,
            bars,
            dataset,
        )
    note(
        f"{dataset}: {report.train_images:,} training and {report.test_images:,} test images in "
        f"{len(report.classes)} classes, from {report.origin}, {report.seconds:.1f} s"
    )


@flow("download")
def download(dataset: str) -> None:
    """Build data/DATASET/clean and data/DATASET/test, and see that the data set has a key."""
    build(dataset)
    prepare(dataset)


if __name__ == "__main__":
    stage_main(download)
