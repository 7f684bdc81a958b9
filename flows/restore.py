"""Restoring: the flow that serves a request, and the stage `restore`, which is a request of the pipeline's own user.

The grant is checked here, in the flow: at the start where the request names its data set, and again in every shard for
the data set of every key that its images ask for. Images that may not be restored, or can not be, are refused one by
one with their reason; the rest is served. A user may hand in PNGs that were saved anew and so lost the payloads that
travelled beside their pixels: those are looked up in the published versions of the key's data set. Finished shards
survive a killed run, and are handed out again only after the grant was checked again.
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import uuid4

from flows import access
from flows.console import note
from flows.engine import flow, over_shards, task
from flows.meter import meter
from flows.services import object_store
from flows.stage import stage_main
from flows.work import Slot, Work, code_digest, place, read_job, work_for
from storage import errors
from storage.errors import CorruptManifest, ForeignImage, KeyVaultError, NotAuthorised, PayloadMissing, Refused
from storage.files import replace_directory, write_atomic
from storage.manifest import MANIFEST_NAME, read_manifest, write_manifest
from storage.objects import open_store
from storage.registry import Registry, Request
from storage.settings import settings
from storage.shards import ShardInfo, read_shard, write_shard
from tasks.method.seal import DataKey
from tasks.payloads import PublishedPayloads
from tasks.request import fetch_index, fetch_input, make_report, put_report, put_result, wanted
from tasks.request_index import InputShard, RefusedFile, RequestIndex, RequestReport, result_name
from tasks.request_variants import local_index
from tasks.restore import FindPayload, nothing_published, restore_samples

CODE = (
    "tasks/method",
    "tasks/restore.py",
    "tasks/payloads.py",
    "tasks/batches.py",
    "storage/png.py",
    "storage/shards.py",
)


@dataclass
class Served:
    """What became of a request's shards, in the order of the input."""

    results: dict[int, ShardInfo] = field(default_factory=dict)
    restored: list[str] = field(default_factory=list)
    refused: list[RefusedFile] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, number: int, report: dict[str, Any]) -> None:
        """One more shard."""
        self.results[number] = ShardInfo(**report["result"])
        self.restored += report["restored"]
        self.refused += [RefusedFile(**entry) for entry in report["refused"]]
        for step, seconds in report["seconds"].items():
            self.seconds[step] = self.seconds.get(step, 0.0) + seconds


# --- a request of a user ---------------------------------------------------------------------------------------------


@flow("restore", sharded=True)
def serve_request(request_id: str, force: bool = False) -> dict[str, Any]:
    """Restore what a request asks for, and put the results into the private bucket.

    Args:
        request_id: the request; the registry and the bucket hold everything else.
        force: serve it though it is running or failed, to resume after a kill.

    Returns:
        counts: images, restored, refused.

    Raises:
        NotFound, WorkspaceBusy, UsageError: there is no such request, or it is not pending.
        NotAuthorised, KeyVaultError: nothing of it may, or can, be restored; the request failed and may be tried again.
    """
    with object_store(), access.registry() as book:
        request = book.claim_request(request_id, force)
        with _failure_recorded(book, request_id):
            store = open_store(settings(), "private")
            index = fetch_index(store, request)
            with work_for("restore", request_id, {"code": code_digest(*CODE)}) as work:
                served = _serve(request, index, work, deliver=True)
                results = [served.results[number] for number in sorted(served.results)]
                report = make_report(request_id, index, results, served.restored, served.refused)
                key = put_report(store, report)
                _raise_if_barred(report)
                refused = len(report.refused) + len(index.refused)
                book.set_request_state(request_id, "done", restored=report.restored, refused=refused, result=key)
                work.discard()
    note(f"Request {request_id}: {report.restored:,} images restored, {refused:,} refused.")
    return {"images": report.restored + refused, "restored": report.restored, "refused": refused}


@contextmanager
def _failure_recorded(book: Registry, request_id: str) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        # The class comes first: `flows/dispatch.py` makes the same error of it again, with the same exit code.
        book.set_request_state(request_id, "failed", message=f"{type(error).__name__}: {error}")
        raise


def _raise_if_barred(report: RequestReport) -> None:
    """When nothing was restored, and all for one reason that owner or requester can mend, the request failed."""
    kinds = {refusal.error for refusal in report.refused}
    kind = getattr(errors, next(iter(kinds)), Refused) if len(kinds) == 1 else Refused
    if report.restored or not issubclass(kind, MENDABLE):
        return
    raise kind(f"None of {len(report.refused):,} images was restored. {report.refused[0].reason}", "")


# --- the stage -------------------------------------------------------------------------------------------------------


def restore(dataset: str) -> None:
    """Restore data/DATASET/protected as data/DATASET/recovered, every image of it, and write metrics/restore.json."""
    restore_variant(dataset)


@flow("restore-variant", sharded=True)
def restore_variant(dataset: str) -> None:
    """A request of the user `pipeline` for the whole protected variant, served into a folder beside it.

    Raises:
        NoGrant, GrantRevoked: the pipeline's user may not.
        Refused: not every image was restored.
    """
    folder = settings().data_path(dataset)
    started = time.monotonic()
    access.current_key_id(dataset)
    with access.registry() as book:
        user = book.get_user(access.PIPELINE_USER)
        index = local_index(folder / "protected", None)
        source = str((folder / "protected").resolve())
        request_id = book.create_request(user.id, "variant", dataset, source, images=index.images)
        request = book.claim_request(request_id)
        with _failure_recorded(book, request_id):
            with work_for("restore", dataset, {"code": code_digest(*CODE)}) as work:
                served = _serve(request, index, work, deliver=False)
                _check_all_restored(dataset, index, served)
                _place(folder, work, served)
                work.keep_only_this()
            book.set_request_state(
                request_id, "done", restored=index.images, refused=0, result=str(folder / "recovered")
            )
    metrics = {
        "images": index.images,
        "restored": index.images,
        "refused": [],
        "seconds": {step: round(value, 3) for step, value in served.seconds.items()},
        "wall_seconds": round(time.monotonic() - started, 3),
        "workers": settings().workers,
    }
    write_atomic(folder / "metrics" / "restore.json", json.dumps(metrics, indent=2).encode() + b"\n")
    note(f"Restored all {index.images:,} images in {metrics['wall_seconds']:.0f} s.")


def _check_all_restored(dataset: str, index: RequestIndex, served: Served) -> None:
    if len(served.restored) == index.images:
        return
    first = served.refused[0]
    raise Refused(
        f"{index.images - len(served.restored):,} of {index.images:,} images of {dataset} were not restored; "
        f"the first, {first.name}: {first.error}: {first.reason}",
        f"Protect again: dvc repro --force protect@{dataset}",
    )


def _place(folder: Path, work: Work, served: Served) -> None:
    manifest = read_manifest(folder / "protected")
    with replace_directory(folder / "recovered", MANIFEST_NAME) as out:
        shards = []
        for number, shard in enumerate(manifest.shards):
            place(_slot(work, shard, number).shard, out / shard.name)
            result = served.results[number]
            shards.append(ShardInfo(shard.name, result.samples, result.bytes, result.sha256))
        write_manifest(out, manifest.model_copy(update={"shards": shards}))


# --- both ------------------------------------------------------------------------------------------------------------


def _serve(request: Request, index: RequestIndex, work: Work, deliver: bool) -> Served:
    """Restore all shards of a request, side by side; `deliver`: put the results into the private bucket."""
    if request.dataset is not None:
        with access.registry() as book:
            book.check_grant(request.user_id, request.dataset)
    needed = index.model_copy(update={"names": {}, "refused": []})  # names are not a task's business
    folder = work.write_job(
        {
            "request": request.id,
            "user": request.user_id,
            "dataset": request.dataset,
            "deliver": deliver,
            "lookup": uuid4().hex if deliver else None,  # the stage's shards hold their payloads: it needs no bucket
            "index": needed.model_dump(mode="json"),
        }
    )
    reports: dict[int, dict[str, Any]] = {}
    with meter("restore", len(index.shards), index.images) as progress:

        def finished(result: dict[str, Any]) -> None:
            reports[result["number"]] = result["report"]
            progress.advance(len(result["report"]["restored"]) + len(result["report"]["refused"]), result["reused"])

        over_shards(restore_one, ((number, folder) for number in range(len(index.shards))), finished)
    served = Served()
    for number in sorted(reports):
        served.add(number, reports[number])
    return served


@task("restore shard", "restore {number}")
def restore_one(number: int, work: str) -> dict[str, Any]:
    """Restore one input shard, unless an earlier run did and the grants it needed still hold."""
    job = read_job(work)
    index = RequestIndex.model_validate(job["index"])
    entry = index.shards[number]
    slot = _slot(Work(Path(work)), entry.shard, number)
    with access.registry() as book:
        keys = GrantedKeys(book, job["user"], job["dataset"])
        report = slot.finished()
        reused = report is not None and keys.still_granted(report["datasets"]) and not _mendable(report)
        if not reused:
            slot.folder.mkdir(parents=True, exist_ok=True)
            find = published_payloads(job["lookup"]) if job["lookup"] else nothing_published
            report = _restored(job["request"], index, entry, slot, keys, find, job["deliver"])
            slot.finish(report)
    return {"number": number, "report": report, "reused": reused}


def _restored(
    request_id: str,
    index: RequestIndex,
    entry: InputShard,
    slot: Slot,
    keys: "GrantedKeys",
    find_payload: FindPayload,
    deliver: bool,
) -> dict[str, Any]:
    """Fetch an input shard, restore it into the slot, deliver it; what became of its images."""
    kind = index.origin.kind
    public = open_store(settings(), "public") if kind == "published" else None
    private = open_store(settings(), "private") if kind == "upload" or deliver else None
    source = fetch_input(private, request_id, index, entry, slot.folder, public)  # type: ignore[arg-type]
    batch = restore_samples(wanted(index, read_shard(source)), keys, find_payload)
    if source.parent == slot.folder:
        source.unlink()
    info = write_shard(slot.shard, batch.samples)
    if deliver and private is not None and info.samples:
        put_result(private, request_id, slot.folder, info)
    return {
        "result": vars(info),
        "restored": [sample.key for sample in batch.samples],
        "refused": [{"name": r.key, "error": r.error, "reason": r.reason} for r in batch.refusals],
        "seconds": batch.seconds,
        "datasets": sorted(keys.datasets),
    }


_LOOKING = threading.Lock()


@lru_cache(maxsize=1)
def _published_payloads(lookup: str) -> PublishedPayloads:
    return PublishedPayloads(open_store(settings(), "public"))


def published_payloads(lookup: str) -> PublishedPayloads:
    """What is published, as one run of a request finds it: read once in a process, whichever shard asks first."""
    with _LOOKING:
        return _published_payloads(lookup)


MENDABLE = (NotAuthorised, KeyVaultError, PayloadMissing, CorruptManifest)
"""Refusals for want of a grant, a key or a payload: it may be there by now, on another try."""


def _mendable(report: dict[str, Any]) -> bool:
    """Whether an image was refused for a reason that another try may not meet."""
    kinds = (getattr(errors, entry["error"], Refused) for entry in report["refused"])
    return any(issubclass(kind, MENDABLE) for kind in kinds)


def _slot(work: Work, shard: ShardInfo, number: int) -> Slot:
    return work.slot(shard.sha256, result_name(number))


class GrantedKeys:
    """Gives a key by its id, when the request's user holds a grant for the key's data set at this moment."""

    def __init__(self, book: Registry, user_id: int, dataset: str | None) -> None:
        self.book = book
        self.user_id = user_id
        self.dataset = dataset
        self.datasets: set[str] = set()

    def __call__(self, key_id: str) -> DataKey:
        """The key.

        Raises:
            UnknownKey: the vault does not hold it.
            ForeignImage: it is another data set's than the request is about.
            NoGrant, GrantExpired, GrantRevoked: the user may not have its data set restored.
        """
        key = access.data_key(key_id)
        if self.dataset not in (None, key.dataset):
            raise ForeignImage(
                f"The image belongs to {key.dataset}; this request is about {self.dataset}.", "Request it separately."
            )
        self.book.check_grant(self.user_id, key.dataset)
        self.datasets.add(key.dataset)
        return key

    def still_granted(self, datasets: list[str]) -> bool:
        """Whether the user may still have all of these restored."""
        try:
            for dataset in datasets:
                self.book.check_grant(self.user_id, dataset)
        except NotAuthorised:
            return False
        return True


if __name__ == "__main__":
    stage_main(restore)
