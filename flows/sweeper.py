"""Removing what nobody needs any more: uploads, inputs and results of requests, and what workers left on disk.

    sweep(settings, registry, store)          # by the gateway every hour, and by `dmcp registry sweep`
    sweep_work(registry, settings)            # by every worker before it serves a request, in its own HOME

* An upload to a presigned address: when it was restored and the address is over, else DMCP_UPLOADS_DAYS after it was
  asked for.
* What was restored for a request that was cancelled: at once, whether a worker was at it or none.
* The input of a request that is done or cancelled: DMCP_UPLOADS_DAYS after its end.
* All of a request that ended, report and results too: DMCP_RESULTS_DAYS after its end.
* Files of no request and no upload (a gateway was killed): when they are older than DMCP_UPLOADS_DAYS.
* Parts of a file whose upload was cut off: when it was begun before that, and no worker has its request now.
* HOME/work/restore/REQUEST: when the request is done, cancelled or removed.
* What commands that were killed left on its way below HOME/work (`scratch_folder`): at once.

0 days keeps it for ever. What is pending or running is never touched: the registry says that a request is over and
marks it in one step (`storage/registry_queue.py`), and only then its files go. The row stays, with the day of removal;
so do charges and the audit log. Several sweepers at once, and one that is killed, do no harm.
"""

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from flows.access import PIPELINE_USER
from storage.database import utc_now
from storage.errors import NotFound
from storage.files import remove_abandoned
from storage.names import REQUEST_ID_PATTERN
from storage.objects import ObjectStore
from storage.registry import Registry, Request
from storage.settings import Settings
from tasks.request_index import UPLOADS_ROOT, attempt_of, request_key, upload_key

ACTOR = "sweeper"
SCRATCH = ("requests", "round-trip")
"""Below HOME/work: where commands and the trial after a run have images on their way."""
QUIET = timedelta(hours=1)
"""A worker may take so long to notice that its request was cancelled; its folder stays until then."""


@dataclass
class Swept:
    """How many of each were removed."""

    uploads: int = 0
    cancelled: int = 0
    inputs: int = 0
    requests: int = 0
    strays: int = 0
    unfinished: int = 0
    folders: int = 0

    @property
    def anything(self) -> bool:
        """Whether there was anything to do."""
        return any(vars(self).values())


def sweep(settings: Settings, registry: Registry, store: ObjectStore, now: datetime | None = None) -> Swept:
    """Remove everything whose time is over.

    Args:
        settings: say how long things are kept, and where HOME is.
        registry: says what is over.
        store: the private bucket.
        now: the moment that counts; this one by default.

    Raises:
        EnvironmentFault: registry or object store are out of reach; what was begun is finished by the next sweep.
    """
    moment = utc_now() if now is None else now
    unused, results = _before(moment, settings.uploads_days), _before(moment, settings.results_days)
    done = Swept()
    _uploads(registry, store, unused, done)
    for request in registry.cancelled_requests():  # before their inputs go, after which they are not looked at
        done.cancelled += remove_results(store, request.id)
    if unused is not None:
        _inputs(registry, store, unused, done)
    if results is not None:
        for request in _each(lambda: registry.results_over(results, in_place=PIPELINE_USER)):
            done.requests += registry.begin_removal(request.id, results, actor=ACTOR)
    for request in registry.half_removed():
        _remove(store, request_key(request.id, ""))
        registry.end_removal(request.id)
    if unused is not None:
        done.strays = _strays(registry, store, unused)
    done.folders = sweep_work(registry, settings, moment)
    registry.clear_submissions()
    if unused is not None:  # last: it takes a right in the bucket that nothing else here does
        done.unfinished = _unfinished(registry, store, unused)
    return done


def sweep_work(registry: Registry, settings: Settings, now: datetime | None = None) -> int:
    """Remove the work folders of requests that are over for good and of killed commands; how many there were.

    A failed request keeps its own until it is removed: tried again, it goes on from there.
    """
    quiet = (utc_now() if now is None else now) - QUIET
    root, removed = settings.home_path("work", "restore"), 0
    for folder in root.iterdir() if root.is_dir() else ():
        if not re.fullmatch(REQUEST_ID_PATTERN, folder.name):
            continue  # the stage's own: named by data set
        try:
            request = registry.get_request(folder.name)
        except NotFound:
            continue  # another registry's
        over = request.state in ("done", "cancelled") and (request.finished is None or request.finished < quiet)
        if over or request.removed is not None:
            shutil.rmtree(folder, ignore_errors=True)
            removed += 1
    return removed + sum(remove_abandoned(settings.home_path("work", name)) for name in SCRATCH)


def remove_results(store: ObjectStore, request_id: str) -> bool:
    """Remove what a cancelled request has left in the bucket besides its input; whether there was anything."""
    left = [info.key for info in store.list(request_key(request_id, ""))]
    results = [key for key in left if attempt_of(key) or "/result-" in key]
    for key in results:
        store.delete(key)
    return bool(results)


def _before(now: datetime, days: float) -> datetime | None:
    return now - timedelta(days=days) if days else None


def _uploads(registry: Registry, store: ObjectStore, before: datetime | None, done: Swept) -> None:
    for upload in registry.uploads_over(before):
        store.delete(upload_key(upload.user_id, upload.id))
        registry.forget_upload(upload.id)
        done.uploads += 1


def _inputs(registry: Registry, store: ObjectStore, before: datetime, done: Swept) -> None:
    for request in _each(lambda: registry.inputs_over(before)):
        _remove(store, request_key(request.id, "input-"))
        registry.mark_input_removed(request.id, actor=ACTOR)
        done.inputs += 1


def _each(page: Callable[[], Sequence[Request]]) -> Iterator[Request]:
    """What a query finds, asked again until it finds nothing new: what is dealt with is not found any more."""
    seen: set[str] = set()
    while fresh := [request for request in page() if request.id not in seen]:
        seen |= {request.id for request in fresh}
        yield from fresh


def _remove(store: ObjectStore, prefix: str) -> None:
    for info in list(store.list(prefix)):
        store.delete(info.key)


def _strays(registry: Registry, store: ObjectStore, before: datetime) -> int:
    """Remove old files that belong to nothing on record; how many there were."""
    uploads = {upload.id for upload in registry.list_uploads()}
    known: dict[str, bool] = {}
    removed = 0
    for root in ("requests", UPLOADS_ROOT):
        for info in store.list(f"{root}/"):
            parts = info.key.split("/")
            if info.modified >= before or len(parts) < 3:
                continue
            if root == UPLOADS_ROOT:
                stray = parts[-1] not in uploads
            else:
                if parts[1] not in known:
                    known[parts[1]] = _is_known(registry, parts[1])
                stray = not known[parts[1]]
            if stray:
                store.delete(info.key)
                removed += 1
    return removed


def _unfinished(registry: Registry, store: ObjectStore, before: datetime) -> int:
    """Remove what arrived of files whose upload was cut off; how many there were.

    What is pending or running is left alone: a worker may be sending a large result for longer than uploads are kept.
    """
    removed = 0
    for root in ("requests", UPLOADS_ROOT):
        for upload in list(store.unfinished(f"{root}/")):
            waits = root == "requests" and _state(registry, upload.key.split("/")[1]) in ("pending", "running")
            if upload.begun < before and not waits:
                store.give_up(upload)
                removed += 1
    return removed


def _is_known(registry: Registry, request_id: str) -> bool:
    return _state(registry, request_id) is not None


def _state(registry: Registry, request_id: str) -> str | None:
    try:
        return str(registry.get_request(request_id).state)
    except NotFound:
        return None
