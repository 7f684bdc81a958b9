"""Restorations: started by an upload or by naming a published version, followed, cancelled, tried again."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, HTTPException, Query, Request, status
from starlette.requests import ClientDisconnect

from flows.gateway.auth import Caller
from flows.gateway.errors import WITH_BODY, as_conflict, problems
from flows.gateway.idempotency import KEY, IdempotencyKey, only_one, only_one_of, restoration_id, started_before
from flows.gateway.intake import (
    check_open,
    fetch_upload,
    receive,
    start_file,
    start_published,
    too_large,
)
from flows.gateway.parameters import Limit, RequestPath
from flows.gateway.queries import CURSOR, cursor, own_restoration, requests_page
from flows.gateway.schemas import (
    Dataset,
    Line,
    PublishedSource,
    RequestState,
    RestorationInfo,
    RestorationPage,
    UploadedSource,
)
from flows.gateway.state import Gateway, GatewayState
from flows.gateway.workspace import Desk
from storage.errors import Conflict, InputError, NotFound, WrongMediaType
from storage.registry import User
from tasks.request_index import upload_key
from tasks.request_submit import check_grants

router = APIRouter(prefix="/restorations", tags=["restorations"])

UPLOAD_PATH = "/restorations/upload"
"""Where bodies are streamed to disk, with limits of their own."""

UPLOAD_SECONDS = 60.0
"""How long `transfers.PACE_BYTES` of an upload may take to come."""

MEDIA = (
    "application/zip",
    "application/x-zip-compressed",
    "application/x-tar",
    "image/png",
    "application/octet-stream",
)
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "A zip, an uncompressed tar, or one PNG; what it is shows in its first bytes.",
        "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in MEDIA},
    }
}


@router.get("", responses=problems(422))
def list_restorations(
    user: Caller,
    gateway: GatewayState,
    state: Annotated[RequestState | None, Query(description="only those in this state")] = None,
    limit: Limit = 100,
    after: Annotated[str | None, Query(pattern=CURSOR, description="`next` of the page before")] = None,
    key: Annotated[
        str | None, Query(pattern=KEY, description="only what a call with this idempotency key started")
    ] = None,
) -> RestorationPage:
    """List the caller's restorations, the newest first."""
    if key is not None:
        started = started_before(gateway.registry, user, restoration_id(user, key))
        return RestorationPage(items=[RestorationInfo.of(started)] if started else [], next=None)
    found = requests_page(gateway.registry, user, state, after, limit)
    items = [RestorationInfo.of(row) for row in found[:limit]]
    return RestorationPage(items=items, next=cursor(found[limit - 1]) if len(found) > limit else None)


@router.post("", responses=problems(*WITH_BODY, 403, 404, 409, 422), status_code=status.HTTP_201_CREATED)
def start_restoration(
    source: PublishedSource | UploadedSource, user: Caller, gateway: GatewayState, key: IdempotencyKey = None
) -> RestorationInfo:
    """Have a published version, some of its samples or shards, or an upload restored."""
    request_id = restoration_id(user, key)
    if before := started_before(gateway.registry, user, request_id):
        return RestorationInfo.of(before)
    with only_one(gateway.registry, request_id), gateway.uploads.desk(user.id) as desk:
        if before := started_before(gateway.registry, user, request_id):
            return RestorationInfo.of(before)
        return _started(gateway, user, request_id, partial(_start, gateway, user, desk, source, request_id))


def _start(
    gateway: Gateway, user: User, desk: Desk, source: PublishedSource | UploadedSource, request_id: str | None
) -> str:
    if isinstance(source, PublishedSource):
        return start_published(
            gateway, user, desk, source.dataset, source.version, source.subset, request_id=request_id
        )
    return _start_uploaded(gateway, user, desk, source, request_id)


def _start_uploaded(gateway: Gateway, user: User, desk: Desk, source: UploadedSource, request_id: str | None) -> str:
    key, path = upload_key(user.id, source.upload), desk.folder / "upload"
    gateway.registry.get_upload(user.id, source.upload)
    try:
        fetch_upload(gateway.private, key, desk, path, gateway.settings.upload_limit_presigned)
    except NotFound:
        raise NotFound("There is no such upload.", "PUT the file to its address first.") from None
    made = start_file(gateway, user, desk, path, source.filename or "upload", source.dataset, request_id)
    gateway.registry.use_upload(source.upload)
    gateway.private.delete(key)  # the address is good for a while yet: what is put there later, the sweeper removes
    return made


@router.post(
    "/upload",
    responses=problems(*WITH_BODY, 403, 408, 409, 415, 422),
    status_code=status.HTTP_201_CREATED,
    openapi_extra=_BODY,
)
async def upload_restoration(
    request: Request,
    user: Caller,
    gateway: GatewayState,
    filename: Annotated[Line, Query(description="what it is called in lists")] = "upload",
    dataset: Annotated[Dataset | None, Query(description="the data set the images belong to, if known")] = None,
    key: IdempotencyKey = None,
) -> RestorationInfo:
    """Upload a zip, a tar or a PNG as the body, and have the images in it restored."""
    limit = gateway.settings.upload_limit
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in MEDIA:
        raise WrongMediaType(f"{kind[:100]!a} is not taken here.", f"One of: {', '.join(MEDIA)}.")
    length = request.headers.get("content-length", "")
    if length.isdigit() and (len(length) > 18 or int(length) > limit):
        raise too_large(limit)
    request_id = restoration_id(user, key)
    if before := await to_thread.run_sync(started_before, gateway.registry, user, request_id):
        return RestorationInfo.of(before)
    async with only_one_of(gateway.registry, request_id):
        if before := await to_thread.run_sync(started_before, gateway.registry, user, request_id):
            return RestorationInfo.of(before)
        async with gateway.uploads.async_desk(user.id) as desk:
            path = desk.folder / "upload"
            try:
                await receive(request.stream(), desk, path, limit, UPLOAD_SECONDS)
            except TimeoutError:
                late = f"Too little came for {UPLOAD_SECONDS:.0f} s"
                raise HTTPException(status.HTTP_408_REQUEST_TIMEOUT, late) from None
            except ClientDisconnect:
                raise InputError("The upload broke off.", "Send it again.") from None
            shown = filename or "upload"
            start = partial(start_file, gateway, user, desk, path, shown, dataset, request_id)
            return await to_thread.run_sync(_started, gateway, user, request_id, start)


def _started(gateway: Gateway, user: User, request_id: str | None, start: Callable[[], str]) -> RestorationInfo:
    """What was started, by this call or, just now, by another try of it."""
    try:
        return RestorationInfo.of(own_restoration(gateway.registry, user, start()))
    except Conflict:
        if before := started_before(gateway.registry, user, request_id):
            return RestorationInfo.of(before)
        raise


@router.get("/{restoration_id}", responses=problems(404, 422))
def get_restoration(restoration_id: RequestPath, user: Caller, gateway: GatewayState) -> RestorationInfo:
    """Show how far a restoration is."""
    return RestorationInfo.of(own_restoration(gateway.registry, user, restoration_id))


@router.post("/{restoration_id}/cancel", responses=problems(404, 409, 422))
def cancel_restoration(restoration_id: RequestPath, user: Caller, gateway: GatewayState) -> RestorationInfo:
    """Cancel a restoration that is not over; a running one stops at its next shard. 409 when it is over."""
    own_restoration(gateway.registry, user, restoration_id)
    with as_conflict():
        gateway.registry.cancel_request(restoration_id, actor=user.name)
    return RestorationInfo.of(own_restoration(gateway.registry, user, restoration_id))


@router.post("/{restoration_id}/retry", responses=problems(403, 404, 409, 410, 422))
def retry_restoration(restoration_id: RequestPath, user: Caller, gateway: GatewayState) -> RestorationInfo:
    """Try again what failed, or now what waits to be tried again; no image is charged twice. 409: done or cancelled."""
    request = own_restoration(gateway.registry, user, restoration_id)
    if request.state == "failed":
        check_open(gateway, user)
        check_grants(gateway.registry, user, request.dataset)
    with as_conflict():
        gateway.registry.retry_request(restoration_id, actor=user.name)
    gateway.wake()
    return RestorationInfo.of(own_restoration(gateway.registry, user, restoration_id))
