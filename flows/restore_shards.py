"""A request's shards, restored side by side: what both the flow for requests and the stage `restore` map over.

Each shard is a Prefect task. It asks whether the attempt is still wanted and what the user may have, restores, and
releases what is left (`flows/release.py` has the order). Its report stays beside its result, so that the next attempt
takes it over as it is, under the same grants.
"""

import threading
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from flows import access
from flows.attempt import Attempt
from flows.console import note
from flows.engine import over_shards, task
from flows.meter import meter
from flows.release import Asker, GrantedKeys, admit, record
from flows.runners import check_home
from flows.work import Slot, Work, read_job
from storage import errors
from storage.audit import open_audit_log
from storage.errors import CorruptManifest, KeyVaultError, NotAuthorised, NotFound, PayloadMissing, Refused
from storage.objects import ObjectStore, open_store
from storage.registry import Registry, Request
from storage.settings import settings
from storage.shards import ShardInfo, read_shard, write_shard
from tasks.payloads import PublishedPayloads
from tasks.request import fetch_input, put_result, version_of, wanted
from tasks.request_index import RefusedFile, RequestIndex, attempt_key, result_name
from tasks.request_scope import ClassLists, authorise_images, published_classes
from tasks.restore import nothing_published, restore_samples


@dataclass
class Served:
    """What became of a request's shards, in the order of the input.

    `attempts` are those that put the results into the bucket; `grants` are the grants that each shard was restored
    under, `released` the data sets of which any image was, and `barred` those that the user could not have at some
    time, with the error. `fresh` are the images that no earlier attempt had done.
    """

    results: dict[int, ShardInfo] = field(default_factory=dict)
    attempts: dict[int, int] = field(default_factory=dict)
    grants: dict[int, dict[str, dict[str, int]]] = field(default_factory=dict)
    released: set[str] = field(default_factory=set)
    barred: dict[str, str] = field(default_factory=dict)
    restored: list[str] = field(default_factory=list)
    refused: list[RefusedFile] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    fresh: int = 0

    def add(self, number: int, report: dict[str, Any]) -> None:
        """One more shard."""
        self.results[number] = ShardInfo(**report["result"])
        self.attempts[number] = report.get("attempt", 0)
        self.grants[number] = report["grants"]
        self.released |= report["grants"].keys()
        self.barred |= report["barred"]
        self.restored += report["restored"]
        self.refused += [RefusedFile(**entry) for entry in report["refused"]]
        for step, seconds in report["seconds"].items():
            self.seconds[step] = self.seconds.get(step, 0.0) + seconds


def asker_of(request: Request, index: RequestIndex) -> Asker:
    """Who asks for what in a request."""
    return Asker(request.id, request.user_id, request.user.name, request.dataset, version_of(index))


def serve_shards(
    book: Registry, request: Request, attempt: Attempt, index: RequestIndex, work: Work, deliver: bool
) -> Served:
    """Restore all shards of a request, side by side; `deliver`: put the results into the private bucket."""
    asker = asker_of(request, index)
    if request.dataset is not None:
        images = max(0, index.images - book.charged(request.id, request.dataset))  # by an earlier attempt
        authorise_images(book, asker.user_id, request.dataset, asker.version, images)
    needed = index.model_copy(update={"names": {}, "refused": []})  # names are not a task's business
    folder = work.write_job(
        {
            "asker": vars(asker),
            "deliver": deliver,
            "run": uuid4().hex,
            "index": needed.model_dump(mode="json"),
        }
    )
    reports: dict[int, dict[str, Any]] = {}
    counts = {"restored": 0, "refused": len(index.refused)}
    with meter("restore", len(index.shards), index.images) as progress:

        def finished(result: dict[str, Any]) -> None:
            report = reports[result["number"]] = result["report"]
            for what in counts:
                counts[what] += len(report[what])
            progress.advance(len(report["restored"]) + len(report["refused"]), result["reused"])
            attempt.progress(**counts)

        over_shards(restore_one, ((number, folder, attempt.number) for number in range(len(index.shards))), finished)
    served = Served(fresh=progress.fresh)
    for number in sorted(reports):
        served.add(number, reports[number])
    return served


@task("restore shard", "restore {number}")
def restore_one(number: int, work: str, attempt: int) -> dict[str, Any]:
    """Restore one input shard, unless an earlier attempt did and the grants it was restored under still hold."""
    check_home(work)
    job = read_job(work)
    index = RequestIndex.model_validate(job["index"])
    slot = slot_of(Work(Path(work)), index.shards[number].shard, number)
    with access.registry() as book:
        asker = Asker(**job["asker"])
        mine = Attempt(book, asker.request_id, attempt)
        mine.check()
        keys = GrantedKeys(book, asker)
        report = slot.finished()
        reused = (
            report is not None
            and _still_there(report, asker.request_id, job["run"])
            and keys.still_granted(report["grants"])
            and not _mendable(report)
        )
        if not reused:
            keys.stop_if_barred()
            slot.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            report = _restored(number, index, slot, keys, mine, job["deliver"], job["run"])
            slot.finish(report)
        if job["deliver"]:  # no more than the shards under way lie here, however many a request has
            slot.shard.unlink(missing_ok=True)
    return {"number": number, "report": report, "reused": reused}


def _restored(
    number: int,
    index: RequestIndex,
    slot: Slot,
    keys: GrantedKeys,
    attempt: Attempt,
    deliver: bool,
    run: str,
) -> dict[str, Any]:
    """Fetch an input shard, restore it, release into the slot and the bucket what may be; what became of its images."""
    request_id = keys.asker.request_id
    kind = index.origin.kind
    private = _store(run, "private") if kind == "upload" or deliver else None
    public = _store(run, "public") if kind == "published" else None
    source = fetch_input(private, request_id, index, index.shards[number], slot.folder, public)  # type: ignore[arg-type]
    find_payload = published_payloads(run) if deliver else nothing_published  # the stage's shards hold their payloads
    batch = restore_samples(wanted(index, read_shard(source)), keys, find_payload)
    if source.parent == slot.folder:
        source.unlink()
    keys.stop_if_barred()
    attempt.check()
    admitted = admit(batch, keys, _class_lists(run, keys.asker.version), number if deliver else None)
    keys.stop_if_barred()
    for error, detail in sorted({(r.error, r.detail) for r in batch.refusals if r.detail != r.reason}):
        note(f"Request {request_id}, shard {number}: refused, {error}: {detail}")
    info = write_shard(slot.shard, admitted.samples)
    if deliver and private is not None and info.samples:
        with open_audit_log(settings()) as log:
            record(log, keys.asker, number, info, admitted.grants, attempt.number)
        put_result(private, request_id, slot.folder, info, attempt.number)
    return {
        "result": vars(info),
        "delivered": deliver,
        "attempt": attempt.number,
        "restored": [sample.key for sample in admitted.samples],
        "refused": [
            {"name": r.key, "error": r.error, "reason": r.reason} for r in (*batch.refusals, *admitted.refusals)
        ],
        "seconds": batch.seconds,
        "grants": admitted.grants,
        "barred": {dataset: f"{type(error).__name__}: {error}" for dataset, error in keys.barred.items()},
    }


# What a run of a request opens and looks up once in a process, whichever shard asks first.


@lru_cache(maxsize=4)
def _store(run: str, kind: Literal["public", "private"]) -> ObjectStore:
    return open_store(settings(), kind)


_LOOKING = threading.Lock()


@lru_cache(maxsize=1)
def _published_payloads(run: str) -> PublishedPayloads:
    return PublishedPayloads(_store(run, "public"))


def published_payloads(run: str) -> PublishedPayloads:
    """Payloads in the published versions; they are read once."""
    with _LOOKING:
        return _published_payloads(run)


@lru_cache(maxsize=4)
def _class_lists(run: str, version: str | None) -> ClassLists:
    """What classes are called; nothing is read before a grant asks for it."""
    return published_classes(
        lambda: _store(run, "public"), version, lambda dataset: settings().data_path(dataset, "protected")
    )


MENDABLE = (NotAuthorised, KeyVaultError, PayloadMissing, CorruptManifest)
"""Refusals for want of a grant, a key or a payload: it may be there by now, on another try."""


def _mendable(report: dict[str, Any]) -> bool:
    """Whether an image was refused for a reason that another try may not meet."""
    kinds = (getattr(errors, entry["error"], Refused) for entry in report["refused"])
    return any(issubclass(kind, MENDABLE) for kind in kinds)


def _still_there(report: dict[str, Any], request_id: str, run: str) -> bool:
    """Whether the bucket holds a result that was delivered to it; its digest is checked by whoever fetches it."""
    info = ShardInfo(**report["result"])
    if not report.get("delivered") or not info.samples:
        return True
    try:
        return _store(run, "private").size(attempt_key(request_id, info.name, report["attempt"])) == info.bytes
    except NotFound:
        return False


def slot_of(work: Work, shard: ShardInfo, number: int) -> Slot:
    """Where the result of input shard `number` is built."""
    return work.slot(shard.sha256, result_name(number))
