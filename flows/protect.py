"""Stage `protect`: the clean variant becomes the protected one, shard by shard, side by side.

A shard is always computed by one thread, so the bytes do not depend on how many run at once, nor where; a killed run
goes on with the shards that were not finished (`flows/work.py`). Of more than DMCP_SHARDS_PER_RUN shards, child runs of
the deployment `protect-shards` do so many each (`flows/child_runs.py`).
"""

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flows.access import current_key_id, data_key
from flows.child_runs import over_runs, range_of
from flows.console import note
from flows.engine import flow, over_shards, task
from flows.meter import meter, took
from flows.runners import check_home
from flows.stage import stage_main
from flows.work import Slot, Work, place, read_job, work_for
from storage.errors import SettingsError
from storage.files import replace_directory, sha256_file, write_atomic
from storage.manifest import MANIFEST_NAME, Manifest, read_manifest, write_manifest
from storage.settings import settings
from storage.shards import ShardInfo, describe_shard
from tasks.digests import code_digest
from tasks.growth import basis_of
from tasks.learning.device import arithmetic, resolve_device
from tasks.params import ProtectParams, load_params
from tasks.protect import (
    ProtectJob,
    ShardReport,
    method_named,
    prepare_library,
    protect_shard,
    summarise,
    surrogate_features,
)

CODE = (
    "tasks/method",
    "tasks/protect.py",
    "tasks/batches.py",
    "tasks/growth.py",
    "tasks/models_io.py",
    "tasks/learning",
    "storage/png.py",
    "storage/shards.py",
)


SHARDS = "protect-shards/protect-shards"
"""FLOW/DEPLOYMENT of the child runs."""


def protect(dataset: str) -> None:
    """Protect data/DATASET/clean as data/DATASET/protected and write metrics/protect.json."""
    folder = settings().data_path(dataset)
    metrics = run_protect(
        folder / "clean",
        folder / "protected",
        folder / "surrogate" / "model.pt",
        load_params(dataset).protect,
        current_key_id(dataset),
    )
    write_atomic(folder / "metrics" / "protect.json", json.dumps(metrics, indent=2).encode() + b"\n")


def run_protect(clean: Path, out: Path, surrogate: Path, params: ProtectParams, key_id: str) -> dict[str, Any]:
    """Protect a variant.

    Args:
        clean: the variant to protect; every image needs a label.
        out: the protected variant; appears whole.
        surrogate: model.pt of the surrogate.
        params: the method's parameters.
        key_id: which key of the vault seals.

    Returns:
        what `metrics/protect.json` holds.

    Raises:
        UnknownKey, VaultLocked: the vault does not give the key.
        CorruptManifest, CorruptShard, UnsupportedImage, DatasetError: the variant can not be read.
        ParameterError: the parameters do not fit together, or not to the variant.
        WorkspaceBusy: another process does the very same.
        EnvironmentFault: a worker process ended, or no worker takes the child runs.
    """
    return protect_variant(str(clean), str(out), str(surrogate), params.model_dump(), key_id)


@flow("protect", sharded=True)
def protect_variant(clean: str, out: str, surrogate: str, parameters: dict[str, Any], key_id: str) -> dict[str, Any]:
    """Protect all shards of a variant; only paths, parameters and the key's public id travel."""
    started = time.monotonic()
    source, target = Path(clean), Path(out)
    manifest = read_manifest(source)
    data_key(key_id)  # before anything is computed: is the key there?
    facts = facts_of(manifest, Path(surrogate), parameters, key_id)
    with work_for("protect", manifest.dataset, facts) as work:
        _prepare(work, facts, source, manifest, Path(surrogate))
        reports, fresh = _protect_shards(manifest, work)
        with replace_directory(target, MANIFEST_NAME) as folder:
            shards = [_placed(work.slot(shard.sha256), folder / shard.name) for shard in manifest.shards]
            write_manifest(folder, manifest.model_copy(update={"shards": shards}))
        work.keep_only_this({shard.sha256 for shard in manifest.shards})
    metrics = summarise([reports[shard.name] for shard in manifest.shards])
    metrics |= {
        "wall_seconds": round(time.monotonic() - started, 3),
        "fresh": fresh,
        "workers": settings().workers,
        "key_id": key_id,
    }
    note(f"Protected {metrics['protected']:,} of {metrics['images']:,} images in {took(metrics)}.")
    return metrics


def facts_of(manifest: Manifest, surrogate: Path, parameters: dict[str, Any], key_id: str) -> dict[str, Any]:
    """All that decides the protected shards but for the clean ones."""
    return {
        "dataset": manifest.dataset,
        "split": manifest.split,
        "basis": basis_of(manifest, surrogate).digest,  # not the manifest: what came in changes no other shard
        "surrogate": sha256_file(surrogate),
        # Of the profile that is used alone: other values of the other one decide nothing.
        "parameters": {name: parameters[name] for name in ("profile", parameters["profile"])},
        "key": key_id,
        "device": resolve_device(settings().device).type,
        "arithmetic": arithmetic(resolve_device(settings().device)),
        "code": code_digest(*CODE),
    }


def shared_of(manifest: Manifest) -> dict[str, Any]:
    """What a job says of the variant."""
    return {"dataset": manifest.dataset, "split": manifest.split, "classes": len(manifest.classes)}


def _prepare(work: Work, facts: dict[str, Any], clean: Path, manifest: Manifest, surrogate: Path) -> None:
    """Leave in the work folder what all shards share: the job, and the library of targets."""
    wanted = method_named(facts["parameters"])
    library = work.folder / "library.npy"
    surrogate_features(surrogate.resolve(), wanted.layer, facts["device"])  # loaded before threads use it
    if not library.exists():
        prepare_library(clean, surrogate.resolve(), library, wanted, facts["device"])
    paths = {"clean": clean.resolve(), "surrogate": surrogate.resolve(), "library": library}
    work.write_job(facts | paths | shared_of(manifest))


def _protect_shards(manifest: Manifest, work: Work) -> tuple[dict[str, ShardReport], int]:
    """The reports of all shards, by name, and how many images were not done before."""
    reports: dict[str, ShardReport] = {}
    with meter("protect", len(manifest.shards), manifest.samples) as progress:

        def finished(report: dict[str, Any], reused: bool) -> None:
            reports[report["shard"]] = ShardReport(**report)
            progress.advance(report["images"], reused)

        jobs = [(shard.name, shard.sha256) for shard in manifest.shards]
        if 0 < settings().shards_per_run < len(jobs):
            over_runs(SHARDS, work, jobs, lambda job: work.slot(job[1]).finished(), finished)
        else:
            _protect_here(jobs, str(work.folder), finished)
    return reports, progress.fresh


@flow("protect-shards", sharded=True)
def protect_range(work: str, first: int, end: int, jobs: str) -> None:
    """Protect the shards number `first` to `end` - 1 of a run that was split; see `flows/child_runs.py`."""
    with range_of(work, first, end, jobs) as mine:
        shared = read_job(work)
        if shared["code"] != code_digest(*CODE):
            raise SettingsError("A worker has other code than the run.", "Bring all machines to the same release.")
        if shared["arithmetic"] != arithmetic(resolve_device(shared["device"])):
            raise SettingsError(
                f"Networks compute in {arithmetic(resolve_device(shared['device']))} on a worker, and in "
                f"{shared['arithmetic']} where the run began: the images would depend on who protected them.",
                "Let workers of one kind of machine, with one release of torch, serve the work pool.",
            )
        _features(shared)
        _protect_here(mine, work, lambda report, reused: None)


def _protect_here(jobs: Iterable[Sequence[str]], work: str, finished: Callable[[dict[str, Any], bool], None]) -> None:
    """Protect shards, given by name and digest, by this flow's task runner."""
    over_shards(
        protect_one,
        ((name, sha256, work) for name, sha256 in jobs),
        lambda result: finished(result["report"], result["reused"]),
    )


def _features(shared: dict[str, Any]) -> None:
    """Load the surrogate, before threads use it."""
    layer = method_named(shared["parameters"]).layer
    surrogate_features(Path(shared["surrogate"]), layer, shared["device"])


@task("protect shard", "protect {name}")
def protect_one(name: str, sha256: str, work: str) -> dict[str, Any]:
    """Protect one shard, unless an earlier run did. The key is taken from the vault here and goes nowhere else."""
    check_home(work)
    slot = Work(Path(work)).slot(sha256)
    report = slot.finished()
    if report is not None:
        return {"report": report, "reused": True}
    shared = read_job(work)
    made = asdict(protect_shard(Path(shared["clean"], name), slot.shard, job_of(shared), data_key(shared["key"])))
    made["shard"] = name
    slot.finish(made)
    return {"report": made, "reused": False}


def job_of(shared: dict[str, Any]) -> ProtectJob:
    """What all shards share, from what the work folder says."""
    return ProtectJob(
        shared["dataset"],
        shared["split"],
        shared["classes"],
        Path(shared["surrogate"]),
        Path(shared["library"]),
        method_named(shared["parameters"]),
        shared["device"],
    )


def _placed(slot: Slot, target: Path) -> ShardInfo:
    place(slot.shard, target)
    return describe_shard(target)


if __name__ == "__main__":
    stage_main(protect)
