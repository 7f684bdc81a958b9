"""Stage `report`: one self-contained HTML page of what the evaluation found."""

from flows.console import note, shown
from flows.engine import flow, task
from flows.stage import stage_main
from storage.settings import settings
from tasks.params import load_params
from tasks.report import write_report


@task("write report")
def write(dataset: str) -> None:
    """The page, with the parameters that led to it."""
    page = write_report(settings().data_path(dataset), load_params(dataset).model_dump())
    note(f"Report: {shown(page)}")


@flow("report")
def report(dataset: str) -> None:
    """Write data/DATASET/report.html."""
    write(dataset)


if __name__ == "__main__":
    stage_main(report)
