"""Restoring in one call: pack, hand in, follow, download, write. Broken off anywhere, the same call again goes on.

What was begun is remembered beside OUT (`job.py`): nothing is handed in twice, and only missing shards are downloaded.
Images are written by the same code as those of `dmcp restore` (`tasks/request_results.py`): under the requester's own
names, each checked, whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from flows.client.api import Client
from flows.client.job import Job, Left, State, job_folder, opened
from flows.client.packing import Parcel, fingerprint, pack
from flows.client.problems import failure
from flows.client.transfer import Results, Source, put
from flows.gateway.schemas import RestorationInfo
from storage.errors import Conflict, DmcpError, EnvironmentFault, NotFound, RequestCancelled, ServiceError, UsageError
from storage.files import Progress
from storage.names import check_request_id
from storage.transfer import Meter

if TYPE_CHECKING:
    from tasks.request_index import RequestIndex, RequestReport
    from tasks.request_results import Unpacked

STREAMED_BYTES = 64 << 20
"""What is larger goes straight to the object store, where that can be reached."""


def restore(
    client: Client,
    source: str | Path,
    out: Path,
    *,
    subset: Sequence[str] | None = None,
    dataset: str | None = None,
    progress: Progress | None = None,
) -> Unpacked:
    """Have protected images restored and written to `out`.

    Args:
        client: the gateway.
        source: a folder of PNGs or of shards, a tar, a zip, a PNG; or a published DATASET[@VERSION].
        out: a folder that does not exist yet, or is empty. Called again with the same, it goes on.
        subset: of a published version, the sample keys or shard names that are wanted.
        dataset: the data set that uploaded images belong to, if known.
        progress: told what is done: packed files, sent bytes, restored images, fetched bytes, written images.

    A restoration that failed is tried again by the same call, where it lies and with what it got done: nothing is
    handed in, and no image charged, twice. Where it can not be (it was removed, or cancelled) a new one begins; so it
    does when the source is another one now.

    Raises:
        NotProtected: not one image is protected; nothing was sent.
        DmcpError: why nothing came of it, as the gateway says.
        ServiceError: the gateway could not be reached for as long as the client is patient; call again.
        UsageError: `out` holds something, or the beginning of another restoration.
    """
    published = _published(source, subset)
    named = "@".join(published) if published else str(Path(source).resolve())
    asked = State(gateway=client.url, source=named, wanted=_wanted(subset, dataset))
    if done := _done_before(out, asked):
        return done
    _check_out(out)
    with opened(out, asked) as job:
        parcel = None if published else _parcel(client, job, Path(source), progress)
        begun = job.state.restoration
        if begun is not None and not _goes_on(client, job, begun) and published is None:
            parcel = _parcel(client, job, Path(source), progress)
        if job.state.restoration is None:
            job.state.restoration = _start(client, job, parcel, published, subset, dataset, progress).id
            job.save()
        if parcel is not None and parcel.path.parent == job.folder:
            parcel.path.unlink(missing_ok=True)
        return _finish(client, job, out, progress)


def fetch(client: Client, restoration_id: str, out: Path, *, progress: Progress | None = None) -> Unpacked:
    """Wait for a restoration that was started already, and write what came of it to `out`; goes on like `restore`.

    Raises:
        DmcpError: as `restore`.
    """
    identity = check_request_id(restoration_id)
    asked = State(gateway=client.url, source=identity, restoration=identity)
    if done := _done_before(out, asked):
        return done
    _check_out(out)
    client.restoration(identity)  # before anything is made here: it may not exist
    with opened(out, asked) as job:
        return _finish(client, job, out, progress)


def hand_in(
    client: Client,
    source: str | Path,
    *,
    subset: Sequence[str] | None = None,
    dataset: str | None = None,
    progress: Progress | None = None,
) -> RestorationInfo:
    """Hand images in (or name a published version) and no more; `fetch` gets what came of it.

    Raises:
        DmcpError: as `restore`.
    """
    published = _published(source, subset)
    with tempfile.TemporaryDirectory(prefix="dmcp-") as folder:
        job = Job(Path(folder), State(gateway=client.url, source=str(source)))
        parcel = None if published else _parcel(client, job, Path(source), progress)
        return _start(client, job, parcel, published, subset, dataset, progress)


def check_over(info: RestorationInfo) -> None:
    """Raises what a restoration failed with, or RequestCancelled; nothing when it is done."""
    if info.state == "cancelled":
        raise RequestCancelled(f"Restoration {info.id} was cancelled.", "Run it again to begin anew.")
    if info.state != "done":
        raise failure(info.message)


# --- handing in ------------------------------------------------------------------------------------------------------


def _published(source: str | Path, subset: Sequence[str] | None) -> tuple[str, str] | None:
    from tasks.request_variants import parse_published

    published = parse_published(source)
    if subset is not None and published is None:
        raise UsageError("A subset of loose files can not be named.", "Hand in only the files that are wanted.")
    return published


def _parcel(client: Client, job: Job, source: Path, progress: Progress | None) -> Parcel | None:
    """What is to be sent; None: it was sent, and the source is as it was."""
    from tasks.request_pack import check_protected

    state, mark = job.state, fingerprint(source)
    if state.sha256 is not None and state.fingerprint == mark:
        if state.restoration is not None:
            return None
        if source.is_file():
            return _described(source, source.name, state)
        if (tar := job.folder / "upload.tar").is_file():
            return _described(tar, f"{source.resolve().name}.tar", state)
    try:
        check_protected(source)
        parcel = pack(source, job.folder, lambda done: progress("packing", done, None) if progress else None)
    except DmcpError:
        if state.sha256 is None:
            job.remove()
        raise
    if state.sha256 not in (None, parcel.sha256) and (begun := client.started(state.key)):
        if begun.state not in ("failed", "cancelled"):
            raise UsageError(
                f"{source} is not what it was when this restoration began.",
                f"Name another OUT, or remove {job.folder}.",
            )
        job.begin_anew()
        state = job.state
    state.fingerprint, state.sha256 = mark, parcel.sha256
    state.left = [Left(name=r.name, error=r.error, reason=r.reason) for r in parcel.refused]
    job.save()
    return parcel


def _goes_on(client: Client, job: Job, identity: str) -> bool:
    """Whether the restoration that an earlier run started goes on; one that failed is tried again.

    One that can not be any more, or was cancelled, is forgotten.
    """
    try:
        info = client.restoration(identity)
        if info.state == "failed":
            info = client.retry(identity)
    except Conflict:  # just now it was cancelled, or came to its end all the same
        info = client.restoration(identity)
    except NotFound:  # what was handed in is not kept any more
        info = None
    if info is not None and info.state != "cancelled":
        return True
    job.begin_anew()
    return False


def _described(path: Path, name: str, state: State) -> Parcel:
    """A file whose digest is known; that it is still the same shows while it is sent."""
    from flows.client.packing import media_of

    return Parcel(path, path.stat().st_size, state.sha256 or "", media_of(path), name)


def _start(
    client: Client,
    job: Job,
    parcel: Parcel | None,
    published: tuple[str, str] | None,
    subset: Sequence[str] | None,
    dataset: str | None,
    progress: Progress | None,
) -> RestorationInfo:
    """Start the restoration, unless an earlier run did."""
    try:
        if published is not None:
            return client.start(*published, subset, key=job.state.key)
        assert parcel is not None
        return client.started(job.state.key) or _send(client, job, parcel, dataset, progress)
    except EnvironmentFault:
        raise
    except DmcpError:
        with suppress(DmcpError):
            if client.started(job.state.key) is None:  # refused: nothing is left to go on with
                job.remove()
        raise


def _send(client: Client, job: Job, parcel: Parcel, dataset: str | None, progress: Progress | None) -> RestorationInfo:
    """Send a parcel: a large one to the object store, a small one (or where the store can not be reached) as a body."""
    source = Source(parcel.path, parcel.size, parcel.sha256, Meter("sending", parcel.size, progress).add)
    limit = client.me().upload_limit
    if parcel.size > min(STREAMED_BYTES, limit):
        started = _send_to_store(client, job, parcel, source, dataset, must=parcel.size > limit)
        if started is not None:
            return started
    return client.send(source.body, parcel.size, parcel.media, _line(parcel.name), dataset, key=job.state.key)


def _send_to_store(
    client: Client, job: Job, parcel: Parcel, source: Source, dataset: str | None, must: bool
) -> RestorationInfo | None:
    """By presigned address; None when the store can not be reached (and nothing says that it must be)."""
    if job.state.upload is not None:
        with suppress(NotFound):  # what lies there for too long is removed
            return client.start_upload(job.state.upload, _line(parcel.name), dataset, key=job.state.key)
    address = client.new_upload(parcel.size)
    try:
        put(client, address, source)
    except ServiceError:
        if must:
            raise
        return None
    job.state.upload = address.id
    job.save()
    return client.start_upload(address.id, _line(parcel.name), dataset, key=job.state.key)


def _line(name: str) -> str:
    """A file's name, as the gateway takes it."""
    return "".join(c for c in name if c.isprintable())[:200] or "upload"


# --- what came of it -------------------------------------------------------------------------------------------------


def _finish(client: Client, job: Job, out: Path, progress: Progress | None) -> Unpacked:
    """Wait until the restoration is done, fetch what came of it, and write it."""
    from tasks.request_results import unpack_results

    identity = str(job.state.restoration)
    _wait(client, job, identity, progress)
    index, report = _described_results(client, job, identity)
    results = Results(client, identity, job.results)
    results.fetch_all(Meter("fetching", sum(file.bytes for file in results.files), progress).add)
    report = _with_results(report, results)
    write = None if progress is None else lambda label, done, total: progress("writing", done, total)
    done = unpack_results(index, report, lambda info: job.results / info.name, out, write)
    job.remove()
    return done


def _wait(client: Client, job: Job, identity: str, progress: Progress | None) -> None:
    """Raises what the restoration failed with."""

    def tell(info: RestorationInfo) -> None:
        if progress is not None:
            progress("restoring", info.restored + info.refused, info.images or None)

    info = client.wait(identity, tell)
    if info.state == "cancelled" or (info.state == "failed" and job.state.source == identity):
        job.remove()  # there is nothing to go on with
    check_over(info)


def _described_results(client: Client, job: Job, identity: str) -> tuple[RequestIndex, RequestReport]:
    """What was handed in and what became of it; refusals under own names, with what never left this machine."""
    from tasks.request_index import RefusedFile, RequestReport, parse_index

    own = client.report(identity)
    refused = [RefusedFile(name=r.name, error=r.error, reason=r.reason) for r in own.refused]
    refused += [RefusedFile(name=r.name, error=r.error, reason=r.reason) for r in job.state.left]
    index = parse_index(client.index(identity)).model_copy(update={"refused": refused})
    report = RequestReport(
        request_id=identity, images=own.images, restored=own.restored, refused=[], unnamed=own.unnamed
    )
    return index, report


def _with_results(report: RequestReport, results: Results) -> RequestReport:
    from storage.shards import ShardInfo

    shards = [ShardInfo(file.name, file.samples, file.bytes, file.sha256) for file in results.files]
    return report.model_copy(update={"results": shards})


def _done_before(out: Path, asked: State) -> Unpacked | None:
    """What an earlier run wrote that was killed before it cleaned up."""
    from tasks.request_index import REPORT_NAME, parse_report
    from tasks.request_results import Unpacked

    if not (out / REPORT_NAME).is_file() or not job_folder(out).is_dir():
        return None
    with suppress(DmcpError), opened(out, asked) as job:
        report = parse_report((out / REPORT_NAME).read_bytes())
        if report.request_id == job.state.restoration:
            job.remove()
            return Unpacked(out, report)
    return None


def _check_out(out: Path) -> None:
    from tasks.request_results import check_out

    check_out(out)


def _wanted(subset: Sequence[str] | None, dataset: str | None) -> str:
    if subset is None and dataset is None:
        return ""
    return hashlib.sha256(json.dumps([None if subset is None else list(subset), dataset]).encode()).hexdigest()
