"""What was restored: the report, the result shards by presigned address or as a stream, and all of it as one zip.

Before any image leaves (or an address from which it could be fetched), the grants under which it was restored are
looked at again, and the download is put on record. No grant in force, or no entry in the audit log: no data.

A download holds one of the seats that its user has (`workspace.py`), and ends when nobody takes it (`transfers.py`).
Report and index take one too: they are read as a whole, and of a large request fill much memory.
"""

import logging
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Response
from fastapi import Path as InPath
from fastapi import Request as Call
from starlette.responses import StreamingResponse
from zipstream import ZipStream

from flows.gateway.auth import Caller
from flows.gateway.errors import problems
from flows.gateway.parameters import After, Limit, RequestPath
from flows.gateway.queries import own_restoration
from flows.gateway.schemas import Page, Report, ResultFile
from flows.gateway.state import Gateway, GatewayState
from flows.gateway.transfers import Download, OutOfRange, part_of
from flows.handout import check_grants, record_download
from storage.database import utc_now
from storage.errors import Conflict, CorruptManifest, CorruptShard, NotFound, ServiceError
from storage.objects import ObjectStore
from storage.registry import Request, User
from storage.registry_queue import check_kept
from storage.shards import ShardInfo
from tasks.request import fetch_index
from tasks.request_archive import own_report, result_files
from tasks.request_index import REPORT_NAME, RequestIndex, RequestReport, parse_report, request_key, result_key

router = APIRouter(prefix="/restorations", tags=["results"])

BLOCK = 1 << 20
log = logging.getLogger("dmcp.gateway")
ResultName = Annotated[str, InPath(pattern=r"^result-[0-9]{6}\.tar$", examples=["result-000000.tar"])]


def _binary(kind: str, what: str) -> dict[int | str, dict[str, Any]]:
    return {200: {"description": what, "content": {kind: {"schema": {"type": "string", "format": "binary"}}}}}


@router.get("/{restoration_id}/report", responses=problems(404, 409, 410, 422))
def get_report(restoration_id: RequestPath, user: Caller, gateway: GatewayState) -> Report:
    """Show what became of the images, under the requester's own names; 409 as long as it is not known.

    Of very many refused images the first are named, all are counted.
    """
    request = own_restoration(gateway.registry, user, restoration_id)
    with gateway.uploads.seat(user.id):
        report = _report(gateway.private, request)
        return Report.model_validate(own_report(_index(gateway, request), report), from_attributes=True)


@router.get("/{restoration_id}/index", responses=problems(404, 409, 410, 422))
def get_index(restoration_id: RequestPath, user: Caller, gateway: GatewayState) -> RequestIndex:
    """Show under which name which sample of the result shards was handed in: what a client needs to unpack them."""
    request = own_restoration(gateway.registry, user, restoration_id)
    with gateway.uploads.seat(user.id):
        return _index(gateway, request)


@router.get("/{restoration_id}/results", responses=problems(403, 404, 409, 410, 422))
def list_results(
    restoration_id: RequestPath, user: Caller, gateway: GatewayState, limit: Limit = 100, after: After = 0
) -> Page[ResultFile]:
    """List the result shards with addresses to fetch them from; 409 as long as there are none."""
    download = _released(gateway, user, restoration_id)
    report = download.report
    shards = report.results[after : after + limit]
    seconds = gateway.settings.presigned_seconds
    expires = utc_now() + timedelta(seconds=seconds)
    details = {"names": [shard.name for shard in shards], "expires": expires}
    _record(gateway, download, "presigned addresses", details)
    items = [
        ResultFile(
            name=shard.name,
            samples=shard.samples,
            bytes=shard.bytes,
            sha256=shard.sha256,
            url=gateway.private.presigned_get(result_key(report, shard), seconds),
            expires=expires,
        )
        for shard in shards
    ]
    end = after + len(items)
    return Page(items=items, next=end if items and end < len(report.results) else None)


@router.get(
    "/{restoration_id}/results/{name}",
    response_class=StreamingResponse,
    responses={
        **_binary("application/x-tar", "The shard."),
        206: _binary("application/x-tar", "The part of it that was asked for.")[200],
        416: {
            "description": "The part that was asked for begins behind the end; the header Content-Range has the size."
        },
        **problems(403, 404, 409, 410, 422),
    },
)
def get_result(
    restoration_id: RequestPath, name: ResultName, call: Call, user: Caller, gateway: GatewayState
) -> Response:
    """Fetch one result shard, or (header Range) a part of it; its SHA-256, in the list of results, is its ETag."""
    download = _released(gateway, user, restoration_id)
    report = download.report
    shard = next((shard for shard in report.results if shard.name == name), None)
    if shard is None:
        raise NotFound(f"The restoration has no result {name}.", "List its results.")
    etag = f'"{shard.sha256}"'
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Accept-Ranges": "bytes", "ETag": etag}
    try:
        part = part_of(shard.bytes, call.headers.get("range"), call.headers.get("if-range"), etag)
    except OutOfRange:
        return Response(status_code=416, headers={"Content-Range": f"bytes */{shard.bytes}"})
    details: dict[str, Any] = {"sha256": shard.sha256, "bytes": shard.bytes if part is None else part.size}
    status, wanted, size = 200, None, shard.bytes
    if part is not None:
        status, wanted, size = 206, (part.first, part.last), part.size
        headers["Content-Range"] = f"bytes {part.first}-{part.last}/{shard.bytes}"
        details["first"] = part.first
    _record(gateway, download, name, details)
    content = _begun(_seated(gateway, user, gateway.private.stream(result_key(report, shard), part=wanted)))
    headers["Content-Length"] = str(size)
    return Download(content, status_code=status, media_type="application/x-tar", headers=headers)


def _seated(gateway: Gateway, user: User, content: Iterator[bytes]) -> Iterator[bytes]:
    with gateway.uploads.seat(user.id), closing(content):  # type: ignore[type-var]
        yield from content


@router.get(
    "/{restoration_id}/archive",
    response_class=StreamingResponse,
    responses={**_binary("application/zip", "A zip of all of it."), **problems(403, 404, 409, 410, 422)},
)
def get_archive(restoration_id: RequestPath, user: Caller, gateway: GatewayState) -> StreamingResponse:
    """Fetch all restored images in one zip, under the requester's own names, with the report."""
    download = _released(gateway, user, restoration_id)
    request, report = download.request, download.report
    _record(gateway, download, "archive", {"images": report.restored, "shards": len(report.results)})
    content = _begun(_zipped(gateway, request, report))
    headers = {"Content-Disposition": f'attachment; filename="restored-{request.id[:8]}.zip"'}
    return Download(content, media_type="application/zip", headers=headers)


def _zipped(gateway: Gateway, request: Request, report: RequestReport) -> Iterator[bytes]:
    """The archive, piece by piece. A grant that is revoked meanwhile ends it at the next shard."""
    with gateway.uploads.desk(request.user_id) as desk:
        desk.take(2 * max((shard.bytes for shard in report.results), default=0))
        path = desk.folder / "result.tar"

        def fetch(shard: ShardInfo) -> Path:
            check_grants(gateway.registry, request)
            path.unlink(missing_ok=True)  # it was read: two files lie here at most, for which space is taken
            gateway.private.get_file(result_key(report, shard), path, shard.sha256, shard.bytes)
            return path

        archive = ZipStream()
        for name, content in result_files(_index(gateway, request), report, fetch):
            archive.add(content if isinstance(content, bytes) else _blocks(content), name)
            yield from archive.all_files()
            if isinstance(content, Path):
                content.unlink()
        yield from archive.finalize()


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            yield block


def _begun(content: Iterator[bytes]) -> Iterator[bytes]:
    """The same content, of which the first piece is there: what is wrong from the start is answered by a status."""
    try:
        first = next(content, b"")
    except (NotFound, CorruptShard) as error:
        log.error("a result can not be read: %s", error)
        raise _spoilt("A result is not there any more, or is not what it was.") from error

    def rest() -> Iterator[bytes]:
        try:
            yield first
            yield from content
        finally:
            content.close()  # type: ignore[attr-defined]

    return rest()


# --- who may have it -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Handout:
    """What may be handed out now: of which request, what there is, and of which data sets it is."""

    request: Request
    report: RequestReport
    datasets: list[str]


def _released(gateway: Gateway, user: User, restoration_id: str) -> Handout:
    """A restoration of this user that is done, and that the user may have still.

    Raises:
        NotFound: no such restoration of this user.
        Conflict: it is not done.
        NotAuthorised: the grants under which it was restored do not hold any more.
    """
    request = own_restoration(gateway.registry, user, restoration_id)
    if request.state != "done":
        raise Conflict(f"The restoration is {request.state}.", "Wait until it is done.")
    report = _report(gateway.private, request)
    datasets = check_grants(gateway.registry, request) if report.results else []
    return Handout(request, report, datasets)


def _report_key(request: Request) -> str:
    """Where the attempt that counts left its report; requests of an earlier release have it in one place."""
    mine = request.result is not None and request.result.startswith(request_key(request.id, ""))
    return str(request.result) if mine else request_key(request.id, REPORT_NAME)


def _report(store: ObjectStore, request: Request) -> RequestReport:
    check_kept(request)
    if request.state not in ("done", "failed"):
        raise Conflict(f"The restoration is {request.state}.", "Wait until it is done.")
    try:
        report = parse_report(store.get_bytes(_report_key(request)))
    except NotFound:
        raise Conflict("The restoration left no report.", "Its message says why it failed.") from None
    except CorruptManifest as error:
        raise _spoilt(error.what) from error
    if report.request_id != request.id:
        raise _spoilt("The report is another request's.")
    return report


def _index(gateway: Gateway, request: Request) -> RequestIndex:
    check_kept(request)
    try:
        return fetch_index(gateway.private, request)
    except CorruptManifest as error:
        raise _spoilt(error.what) from error


def _spoilt(what: str) -> ServiceError:
    return ServiceError(what, "Make the request again, and tell the operator.")


def _record(gateway: Gateway, download: Handout, subject: str, details: dict[str, Any]) -> None:
    """Put a download on record, in the name of the user whose it is."""
    request = download.request
    record_download(gateway.audit, request, download.datasets, request.user.name, subject, details)
