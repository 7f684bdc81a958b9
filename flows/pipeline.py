"""The scheduled flow: DVC's stages in DVC's order, then push, publish, and a round trip as a user would make it.

DVC decides what has to run; each stage that has is one Prefect task here and one flow of its own below it. `dmcp run`
and `make run` run this in their own process, the deployment `pipeline` runs it every night.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from filelock import FileLock, Timeout

from flows import access, graph
from flows.console import note
from flows.download import has_changed
from flows.engine import flow, task
from flows.publish import latest_published, publish_folder, was_withdrawn
from flows.roundtrip import round_trip
from flows.services import object_store
from flows.stage import stage_main
from storage.audit import checkpoint_due, open_audit_log
from storage.errors import WorkspaceBusy
from storage.objects import open_store
from storage.settings import settings
from storage.versions import read_channel


@flow("pipeline")
def pipeline(dataset: str | None = None) -> dict[str, Any]:
    """Bring one data set up to date: all stages, the private remote, the published version.

    Args:
        dataset: its name in params.yaml; None, as every night: the selected one, if a pipeline protected it before,
            the object store has it and nobody withdrew what was published last. So a worker never publishes what nobody
            asked for, nor to another place.

    Returns:
        `ran`, the stages that DVC ran; `version`, what was published; `pushed`, whether there is a remote.

    Raises:
        WorkspaceBusy: another pipeline runs in this workspace.
        DmcpError: a stage failed, with its own message and exit code.
    """
    nothing: dict[str, Any] = {"ran": [], "version": None, "pushed": False}
    unasked, dataset = dataset is None, dataset or _under_care()
    if dataset is None:
        return nothing
    with workspace(), object_store():
        if unasked and not _is_here(dataset):
            return nothing
        graph.select_dataset(dataset)
        access.prepare(dataset)
        ran = [stage for stage in graph.stages() if bring_up_to_date(stage)]
        pushed = push()
        version = None if ran else latest_published(dataset)
        if version is None:
            version = publish_folder(str(settings().data_path(dataset, "protected")), dataset)["id"]
            round_trip(dataset, version)
        else:
            note(f"{dataset}@{version} is published: nothing to do.")
        anchor_audit_log()
    return {"ran": ran, "version": version, "pushed": pushed}


def _under_care() -> str | None:
    """The selected data set, if it is one to be brought up to date unasked."""
    dataset = graph.selected_dataset()
    if dataset is None or f"protect@{dataset}" not in graph.locked_stages():
        note("Nothing to bring up to date: no pipeline protected the selected data set yet (dmcp run --dataset NAME).")
        return None
    if was_withdrawn(dataset):
        note(f"The latest version of {dataset} was withdrawn, so nothing is published (dmcp run --dataset {dataset}).")
        return None
    return dataset


def _is_here(dataset: str) -> bool:
    """Whether the object store is one that this data set was published to."""
    store = open_store(settings(), "public")
    if read_channel(store, dataset) is not None:
        return True
    note(f"{dataset} is not published at {store.where()}, so nothing is done (dmcp run --dataset {dataset}).")
    return False


@task("stage", "{stage}")
def bring_up_to_date(stage: str) -> bool:
    """Have DVC run a stage if anything it depends on changed; whether it did."""
    name, _, dataset = stage.partition("@")
    grown = name == "download" and has_changed(dataset)  # DVC does not watch where the images come from
    if graph.is_current(stage) and not grown:
        note(f"{stage}: unchanged")
        return False
    graph.run_stage(stage, force=grown)
    return True


@task("push")
def push() -> bool:
    """Send clean and recovered data to DVC's private remote, where one is set; whether one is."""
    return graph.push()


@task("anchor the audit log")
def anchor_audit_log() -> None:
    """Sign where the audit log ends and put that into the private bucket, when it is time (storage/audit.py)."""
    with closing(open_audit_log(settings())) as log:
        store = open_store(settings(), "private")
        checkpoint_due(log, store, log.home, settings().audit_every_entries, settings().audit_every_seconds)


@contextmanager
def workspace() -> Iterator[None]:
    """One pipeline at a time in one workspace."""
    path = settings().home_path("run", "pipeline.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path, timeout=0):
            yield
    except Timeout:
        raise WorkspaceBusy(
            "Another pipeline runs in this workspace.", "Wait for it, or use a clone of your own."
        ) from None


if __name__ == "__main__":
    stage_main(pipeline)
