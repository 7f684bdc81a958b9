"""Restoring: the flow that serves a request, and the stage `restore`, which is a request of the pipeline's own user.

The grant is checked here, in the flow: at the start where the request names its data set, and again in every shard for
the data set of every key that its images ask for, before they are restored and before they are released
(`flows/release.py`: scope, quota, audit log, and what a revoked grant does to a running request). Images that may not
be restored, or can not be, are refused one by one with their reason; the rest is served. A user may hand in PNGs that
were saved anew and so lost the payloads that travelled beside their pixels: those are looked up in the published
versions of the key's data set. Finished shards survive a killed run, and count only after the grant was checked again
(`flows/attempt.py`: who works on a request, and how it goes on after a kill or stops when it is cancelled).
"""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from flows import access
from flows.attempt import Attempt, attempt_at
from flows.console import note
from flows.dispatch import failure
from flows.engine import flow
from flows.meter import took
from flows.release import GrantedKeys, charge, record
from flows.restore_shards import MENDABLE, Served, asker_of, serve_shards, slot_of
from flows.services import object_store
from flows.stage import stage_main
from flows.sweeper import remove_results, sweep_work
from flows.work import Work, place, work_for
from storage import errors
from storage.audit import open_audit_log
from storage.errors import (
    DmcpError,
    Refused,
    RequestCancelled,
    WorkspaceBusy,
)
from storage.files import replace_directory, write_atomic
from storage.manifest import MANIFEST_NAME, read_manifest, write_manifest
from storage.objects import ObjectStore, open_store
from storage.registry import Registry, Request
from storage.settings import settings
from storage.shards import ShardInfo
from tasks.digests import code_digest
from tasks.request import fetch_index, make_report, put_report
from tasks.request_index import RequestIndex, RequestReport
from tasks.request_variants import local_index

CODE = (
    "tasks/method",
    "tasks/restore.py",
    "tasks/payloads.py",
    "tasks/batches.py",
    "storage/png.py",
    "storage/shards.py",
)

TAKEOVER_SECONDS = 60.0
"""How long to wait for the shards in flight of an attempt that this one takes over."""


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
        RequestCancelled: it was cancelled, beforehand or meanwhile.
        NotAuthorised, KeyVaultError: nothing of it may (or may any longer), or can, be restored; the request failed and
            may be tried again.
    """
    with object_store(), access.registry() as book:
        store = open_store(settings(), "private")
        with suppress(DmcpError):  # what is wrong with the vault shows when a key is asked for
            access.adopt_datasets(book)
        sweep_work(book, settings())
        with attempt_at(book, request_id, force) as (request, attempt):
            try:
                report, refused = _serve_request(book, request, attempt, store)
            except RequestCancelled:
                with suppress(DmcpError):
                    remove_results(store, request_id)
                raise
    note(f"Request {request_id}: {report.restored:,} images restored, {refused:,} refused.")
    return {"images": report.restored + refused, "restored": report.restored, "refused": refused}


def _serve_request(book: Registry, request: Request, attempt: Attempt, store: ObjectStore) -> tuple[RequestReport, int]:
    """The report of a request, and how many files were refused, those on the way in too."""
    index = fetch_index(store, request)
    facts = {"code": code_digest(*CODE)}
    with _work(request, facts, attempt) as work:
        try:
            served = serve_shards(book, request, attempt, index, work, deliver=True)
        except RequestCancelled:
            work.discard()
            raise
        _raise_if_lapsed(served)
        results = [served.results[number] for number in sorted(served.results)]
        attempts = {served.results[number].name: by for number, by in served.attempts.items()}
        report = make_report(request.id, index, results, served.restored, served.refused, attempts)
        attempt.check()
        key = attempt.report = put_report(store, report, attempt.number)
        _raise_if_barred(report)
        refused = report.refusals + len(index.refused)
        work.discard()  # before the request is done: restored images are left nowhere but in the bucket
        attempt.done(report.restored, refused, key)
    return report, refused


@contextmanager
def _work(request: Request, facts: dict[str, Any], attempt: Attempt) -> Iterator[Work]:
    """Where the shards are built. A worker that stalled may never leave the folder: then this attempt has its own."""
    with ExitStack() as stack:
        try:
            work = stack.enter_context(work_for("restore", request.id, facts, patience=TAKEOVER_SECONDS))
        except WorkspaceBusy:
            note(f"Request {request.id}: an earlier attempt does not let go; attempt {attempt.number} begins anew.")
            work = stack.enter_context(work_for("restore", request.id, {**facts, "attempt": attempt.number}))
        yield work


def _raise_if_lapsed(served: Served) -> None:
    """When all that was restored is of data sets that were barred on the way, the request failed."""
    lapsed = [dataset for dataset in served.barred if dataset in served.released]
    if lapsed and not served.released - served.barred.keys():
        raise failure(served.barred[lapsed[0]])


def _raise_if_barred(report: RequestReport) -> None:
    """When nothing was restored, and all for one reason that owner or requester can mend, the request failed."""
    kinds = report.kinds
    kind = getattr(errors, next(iter(kinds)), Refused) if len(kinds) == 1 else Refused
    if report.restored or not issubclass(kind, MENDABLE):
        return
    raise kind(f"None of {report.refusals:,} images was restored. {report.refused[0].reason}", "")


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
        with attempt_at(book, request_id) as (request, attempt):
            with work_for("restore", dataset, {"code": code_digest(*CODE)}) as work:
                served = serve_shards(book, request, attempt, index, work, deliver=False)
                _check_all_restored(dataset, index, served)
                _place(folder, work, served, GrantedKeys(book, asker_of(request, index)), attempt)
                work.keep_only_this({entry.shard.sha256 for entry in index.shards})
            attempt.done(index.images, 0, str(folder / "recovered"))
    metrics = {
        "images": index.images,
        "restored": index.images,
        "refused": [],
        "seconds": {step: round(value, 3) for step, value in served.seconds.items()},
        "wall_seconds": round(time.monotonic() - started, 3),
        "fresh": served.fresh,
        "workers": settings().workers,
    }
    write_atomic(folder / "metrics" / "restore.json", json.dumps(metrics, indent=2).encode() + b"\n")
    note(f"Restored all {index.images:,} images in {took(metrics)}.")


def _check_all_restored(dataset: str, index: RequestIndex, served: Served) -> None:
    if len(served.restored) == index.images:
        return
    first = served.refused[0]
    raise Refused(
        f"{index.images - len(served.restored):,} of {index.images:,} images of {dataset} were not restored; "
        f"the first, {first.name}: {first.error}: {first.reason}",
        f"Protect again: dvc repro --force protect@{dataset}",
    )


def _place(folder: Path, work: Work, served: Served, keys: GrantedKeys, attempt: Attempt) -> None:
    """Charge and record every shard, then give it its place; the variant appears when all have theirs."""
    manifest = read_manifest(folder / "protected")
    with replace_directory(folder / "recovered", MANIFEST_NAME) as out, open_audit_log(settings()) as log:
        shards = []
        for number, shard in enumerate(manifest.shards):
            result = served.results[number]
            grants = {}
            for dataset, before in served.grants[number].items():
                grant = keys.grant(dataset, before["images"], number)
                charge(keys, number, grant, before["images"])
                grants[dataset] = {"id": grant.id, "images": before["images"]}
            attempt.check()
            record(log, keys.asker, number, result, grants, attempt.number)
            place(slot_of(work, shard, number).shard, out / shard.name)
            shards.append(ShardInfo(shard.name, result.samples, result.bytes, result.sha256))
        write_manifest(out, manifest.model_copy(update={"shards": shards}))


if __name__ == "__main__":
    stage_main(restore)
