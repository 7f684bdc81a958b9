"""The flow that brings models, evaluation and report of a data set up to date, and nothing before them."""

from flows import graph
from flows.engine import flow
from flows.pipeline import bring_up_to_date, workspace
from flows.stage import stage_main
from storage.errors import UsageError

STAGES = ("train", "evaluate", "report")


@flow("train-evaluate")
def train_evaluate(dataset: str = "sample") -> list[str]:
    """Run what changed of train, evaluate and report; returns the stages that ran.

    Raises:
        UsageError: the variants are not built, or not up to date.
        WorkspaceBusy: a pipeline runs in this workspace.
        DmcpError: a stage failed, with its own message and exit code.
    """
    with workspace():
        graph.select_dataset(dataset)
        mine = [name for name in graph.stages() if name.partition("@")[0] in STAGES]
        before = [name for name in graph.stages() if name not in mine]
        stale = next((name for name in before if not graph.is_current(name)), None)
        if stale is not None:
            raise UsageError(f"{stale} has to run first.", f"Run: dmcp run --dataset {dataset}")
        return [name for name in mine if bring_up_to_date(name)]


if __name__ == "__main__":
    stage_main(train_evaluate)
