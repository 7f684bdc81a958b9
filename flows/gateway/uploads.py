"""Large uploads go straight to the object store: the gateway gives an address that takes exactly one file.

An address is given to who holds a grant, is on record before it is handed out, and is counted as long as it is good or
its file waits: an address is worth as much as the file that it takes.
"""

from datetime import timedelta

from fastapi import APIRouter, status

from flows.gateway.auth import Caller
from flows.gateway.errors import WITH_BODY, problems
from flows.gateway.intake import too_large
from flows.gateway.schemas import NewUpload, UploadAddress
from flows.gateway.state import GatewayState
from storage.database import utc_now
from storage.registry import new_request_id
from tasks.request_index import upload_key
from tasks.request_submit import check_grants

router = APIRouter(prefix="/uploads", tags=["restorations"])

WAITING = 20
"""Addresses of one user that may be good, or hold a file that waits to be restored."""

WAITING_LARGEST = 4
"""So many of the largest uploads: what one user's addresses may take together."""


@router.post("", responses=problems(*WITH_BODY, 403, 422), status_code=status.HTTP_201_CREATED)
def create_upload(new: NewUpload, user: Caller, gateway: GatewayState) -> UploadAddress:
    """Get an address to PUT a zip, a tar or a PNG to; then start the restoration with the upload's id."""
    limit = gateway.settings.upload_limit_presigned
    if new.bytes > limit:
        raise too_large(limit)
    check_grants(gateway.registry, user, None)
    upload_id, seconds = new_request_id(), gateway.settings.presigned_seconds
    expires = utc_now() + timedelta(seconds=seconds)
    gateway.registry.create_upload(
        user.id, upload_id, new.bytes, expires, most=WAITING, most_bytes=WAITING_LARGEST * limit, actor=user.name
    )
    url = gateway.private.presigned_put(upload_key(user.id, upload_id), new.bytes, seconds)
    return UploadAddress(
        id=upload_id,
        url=url,
        bytes=new.bytes,
        headers={"Content-Length": str(new.bytes)},
        expires=expires,
    )
