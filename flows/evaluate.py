"""Stage `evaluate`: accuracies over seeds, what restoration gave back, and the data of all plots."""

from flows.console import progress
from flows.engine import flow, task
from flows.graph import check_selection
from flows.stage import stage_main
from storage.settings import settings
from tasks import evaluate as evaluation
from tasks.params import load_params


@task("evaluate")
def measure(dataset: str) -> None:
    """Compare the variants and gather the models' records."""
    params = load_params(dataset)
    with progress(f"Evaluating {dataset}") as bars:
        evaluation.evaluate(settings().data_path(dataset), params.evaluate, params.seeds, bars)


@flow("evaluate")
def evaluate(dataset: str) -> None:
    """Write data/DATASET/metrics/evaluation.json and data/DATASET/plots."""
    check_selection(dataset)
    measure(dataset)


if __name__ == "__main__":
    stage_main(evaluate)
