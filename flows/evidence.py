"""The flow that brings the evaluation of a data set's protection up to date, with the stages it needs and no others."""

from flows import graph
from flows.engine import flow
from flows.pipeline import bring_up_to_date, workspace
from flows.stage import stage_main

STAGE = "evaluate-protection"


@flow("evidence")
def evidence(dataset: str = "sample", preset: str = "quick") -> list[str]:
    """Run what changed of the evaluation and what it depends on; returns the stages that ran.

    The selection stays: `dvc repro evaluate-protection` then means this one, until another data set is selected.

    Raises:
        ParameterError: params.yaml knows no such data set or preset.
        WorkspaceBusy: a pipeline runs in this workspace.
        DmcpError: a stage failed, with its own message and exit code.
    """
    with workspace():
        graph.select_dataset(dataset, [preset])
        return [stage for stage in graph.stages(f"{STAGE}@{dataset}-{preset}") if bring_up_to_date(stage)]


if __name__ == "__main__":
    stage_main(evidence)
