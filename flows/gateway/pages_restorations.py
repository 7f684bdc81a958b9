"""A user's pages about restorations: start one by an upload or by naming a published version, follow it, fetch it."""

import secrets
from pathlib import Path
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from flows.gateway import datasets, restorations, results
from flows.gateway.idempotency import only_one, restoration_id, started_before
from flows.gateway.intake import start_file, too_large
from flows.gateway.pages_forms import Form, GivenForm
from flows.gateway.pages_session import Visitor
from flows.gateway.pages_upload import Upload, take_files
from flows.gateway.pages_user import granted_names
from flows.gateway.pages_views import render, say, see
from flows.gateway.parameters import RequestPath
from flows.gateway.queries import CURSOR
from flows.gateway.schemas import Dataset, Given, Line, PublishedSource, Report
from flows.gateway.state import Gateway, GatewayState
from flows.gateway.workspace import Desk
from storage.errors import Conflict, NotFound, Removed
from storage.names import DATASET_PATTERN
from storage.registry import User

router = APIRouter(prefix="/app")

UPLOAD_PATH = "/app/upload"
UPLOAD_SECONDS = 60.0
OVERHEAD = 1 << 20
"""What a form may have around its files."""

REFUSED_SHOWN = 200
PER_PAGE = 25

State = Annotated[str, Query(pattern="^(|pending|running|done|failed|cancelled)$")]
Name = Annotated[str, Query(pattern=f"^({DATASET_PATTERN})?$")]


class Handed(Given):
    """What a form says about the files in it."""

    filename: Line
    dataset: Dataset | None


# --- starting one ----------------------------------------------------------------------------------------------------


@router.get("/restore")
def new_restoration(request: Request, user: Visitor, gateway: GatewayState, dataset: Name = "") -> Response:
    """The two forms: an upload, or a published version."""
    mine = granted_names(gateway, user)
    versions = {name: _versions(gateway, user, name) for name in mine}
    return render(
        request,
        "restore.html",
        mine=mine,
        chosen=dataset,
        versions={name: found for name, found in versions.items() if found},
        limit=gateway.settings.upload_limit,
        keys=(secrets.token_urlsafe(18), secrets.token_urlsafe(18)),
    )


def _versions(gateway: Gateway, user: User, dataset: str) -> list[datasets.VersionInfo]:
    try:
        return list(datasets.list_dataset_versions(dataset, user, gateway).items)
    except NotFound:
        return []


@router.post("/restore")
def restore_published(request: Request, user: Visitor, gateway: GatewayState, form: GivenForm) -> Response:
    """Have a published version, or some of it, restored."""
    dataset, _, version = form.text("source").partition("@")
    source = form.into(PublishedSource, dataset=dataset, version=version or "latest", subset=form.lines("subset"))
    made = restorations.start_restoration(source, user, gateway, form.given("key"))
    say(request, f"The restoration of {made.source} was started.")
    return see(f"/app/restorations/{made.id}")


@router.post("/upload")
async def upload(request: Request, user: Visitor, gateway: GatewayState) -> Response:
    """Have the images in a zip or a tar, or some PNGs, restored. The form is read as it comes."""
    limit = gateway.settings.upload_limit
    length = request.headers.get("content-length", "")
    if length.isdigit() and (len(length) > 18 or int(length) > limit + OVERHEAD):
        raise too_large(limit)
    async with gateway.uploads.async_desk(user.id) as desk:
        incoming = Upload(request, UPLOAD_SECONDS)
        took = await take_files(incoming, desk, limit)
        made = await to_thread.run_sync(_start, gateway, user, desk, took, incoming.form)
    say(request, f"Handed in: {took[1]}.")
    return see(f"/app/restorations/{made}")


def _start(gateway: Gateway, user: User, desk: Desk, took: tuple[Path, str], form: Form) -> str:
    handed = form.into(Handed, filename=took[1], dataset=form.given("dataset"))
    identity = restoration_id(user, form.given("key"))
    if before := started_before(gateway.registry, user, identity):
        return before.id
    with only_one(gateway.registry, identity):
        if before := started_before(gateway.registry, user, identity):
            return before.id
        try:
            return start_file(gateway, user, desk, took[0], handed.filename, handed.dataset, identity)
        except Conflict:
            if before := started_before(gateway.registry, user, identity):
                return before.id
            raise


# --- following and fetching ------------------------------------------------------------------------------------------


@router.get("/restorations")
def list_restorations(
    request: Request,
    user: Visitor,
    gateway: GatewayState,
    state: State = "",
    after: Annotated[str, Query(pattern=f"{CURSOR}|^$")] = "",
) -> Response:
    """All restorations of the user, page by page."""
    found = restorations.list_restorations(user, gateway, state or None, PER_PAGE, after or None)  # type: ignore[arg-type]
    return render(request, "restorations.html", found=found, state=state, after=after)


@router.get("/restorations/{identity}")
def show_restoration(identity: RequestPath, request: Request, user: Visitor, gateway: GatewayState) -> Response:
    """One restoration: how far it is, what was refused and why, and the download."""
    found = restorations.get_restoration(identity, user, gateway)
    report = _report(gateway, user, identity) if found.state in ("done", "failed") else None
    return render(request, "restoration.html", found=found, report=report, most=REFUSED_SHOWN)


def _report(gateway: Gateway, user: User, identity: str) -> Report | None:
    try:
        return results.get_report(identity, user, gateway)
    except (Conflict, Removed):  # it left none, or left it too long ago
        return None


@router.post("/restorations/{identity}/cancel")
def cancel(identity: RequestPath, request: Request, user: Visitor, gateway: GatewayState, form: GivenForm) -> Response:
    """Stop it."""
    restorations.cancel_restoration(identity, user, gateway)
    say(request, "The restoration was cancelled.")
    return see(f"/app/restorations/{identity}")


@router.post("/restorations/{identity}/retry")
def retry(identity: RequestPath, request: Request, user: Visitor, gateway: GatewayState, form: GivenForm) -> Response:
    """Try it again."""
    restorations.retry_restoration(identity, user, gateway)
    say(request, "The restoration is tried again.")
    return see(f"/app/restorations/{identity}")


@router.get("/restorations/{identity}/archive")
def download(identity: RequestPath, user: Visitor, gateway: GatewayState) -> Response:
    """All that was restored in one zip; it is put on record."""
    return results.get_archive(identity, user, gateway)
