"""The owner's side: data sets and their terms, requests to decide, grants, usage, audit.

For owners it is about their own data sets, for operators about all; another owner's are not found.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Query, status
from sqlalchemy import select

from flows.gateway import datasets
from flows.gateway.access import StateFilter
from flows.gateway.auth import OwnerCaller
from flows.gateway.errors import WITH_BODY, as_conflict, problems
from flows.gateway.parameters import After, DatasetPath, IdPath, Limit
from flows.gateway.queries import (
    in_use,
    owned_access_request,
    owned_access_requests,
    owned_dataset,
    owned_grant,
    owned_grants,
    page,
)
from flows.gateway.schemas import (
    AccessRequestInfo,
    Approval,
    AuditInfo,
    Dataset,
    DatasetInfo,
    Denial,
    GrantInfo,
    NewDataset,
    NewGrant,
    NewTerms,
    Page,
    Renewal,
    TermsInfo,
    TextPage,
    Usage,
    UsageInfo,
)
from flows.gateway.state import Gateway, GatewayState
from storage import registry_models as rows
from storage.audit import AuditEntry
from storage.errors import Conflict, Forbidden, NotFound, UsageError
from storage.registry import User
from storage.registry_models import AccessRequest, Grant
from storage.registry_usage import UsageRow

router = APIRouter(prefix="/owner", tags=["owner"])

DatasetFilter = Annotated[Dataset | None, Query(description="only this data set")]


# --- data sets -------------------------------------------------------------------------------------------------------


@router.get("/datasets", responses=problems(403, 422))
def list_owned_datasets(
    user: OwnerCaller, gateway: GatewayState, limit: Limit = 100, after: datasets.AfterName = None
) -> TextPage[DatasetInfo]:
    """List the caller's data sets by name."""
    query = select(rows.Dataset).order_by(rows.Dataset.name).limit(limit + 1)
    if user.role != "operator":
        query = query.where(rows.Dataset.owner_id == user.id)
    if after is not None:
        query = query.where(rows.Dataset.name > after)
    return datasets.dataset_page(gateway.registry, user, gateway.registry.all(query), limit)


@router.post("/datasets", responses=problems(*WITH_BODY, 403, 422), status_code=status.HTTP_201_CREATED)
def register_dataset(new: NewDataset, user: OwnerCaller, gateway: GatewayState) -> DatasetInfo:
    """Register a data set as the caller's, or describe it anew; 403 when it is another's, or is in use already."""
    known, owner = _owner_of(gateway, new.name), user.name
    if user.role == "operator":
        owner = known or owner
    elif known is None and in_use(gateway.registry, new.name):
        raise Forbidden(
            f"The data set {new.name} has no owner on record, and is in use.", "Ask the operator to register it."
        )
    gateway.registry.register_dataset(new.name, owner, new.title, new.description, actor=user.name)
    return datasets.get_dataset(new.name, user, gateway)


@router.put("/datasets/{dataset}/terms", responses=problems(*WITH_BODY, 403, 404, 422))
def set_terms(dataset: DatasetPath, terms: NewTerms, user: OwnerCaller, gateway: GatewayState) -> TermsInfo:
    """Set the terms of use. A new text is a new version, which has to be accepted before anything more is restored."""
    owned_dataset(gateway.registry, user, dataset)
    gateway.registry.set_terms(dataset, terms.text, actor=user.name)
    return datasets.get_terms(dataset, user, gateway)


# --- requests for access ---------------------------------------------------------------------------------------------


@router.get("/access-requests", responses=problems(403, 422))
def list_owned_access_requests(
    user: OwnerCaller, gateway: GatewayState, state: StateFilter = None, limit: Limit = 100, after: After = 0
) -> Page[AccessRequestInfo]:
    """List requests for access to the caller's data sets, the newest first."""
    query = owned_access_requests(user)
    if state is not None:
        query = query.where(AccessRequest.state == state)
    return page(gateway.registry, query, AccessRequest.id, after, limit, AccessRequestInfo.of, newest_first=True)


@router.post("/access-requests/{access_request_id}/approve", responses=problems(*WITH_BODY, 403, 404, 409, 422))
def approve_access_request(
    access_request_id: IdPath, approval: Approval, user: OwnerCaller, gateway: GatewayState
) -> GrantInfo:
    """Approve a request: grant what was asked for, or less; 409 when it was decided already."""
    asked = owned_access_request(gateway.registry, user, access_request_id)
    if asked.state != "open":
        raise Conflict(f"The request is {asked.state} already.", "Only an open one can be decided.")
    if asked.user.disabled:
        raise Conflict(f"{asked.user.name} was shut out.", "Deny the request, or have the operator let them in again.")
    if asked.renews is not None and (approval.version or approval.classes):
        raise UsageError("A renewal keeps the scope of its grant.", "Deny it, and make a new grant.")
    changes = approval.model_dump(exclude_none=True)
    made = gateway.registry.approve_access_request(access_request_id, **changes, actor=user.name)
    return GrantInfo.of(owned_grant(gateway.registry, user, made.id))


@router.post("/access-requests/{access_request_id}/deny", responses=problems(*WITH_BODY, 403, 404, 409, 422))
def deny_access_request(
    access_request_id: IdPath, denial: Denial, user: OwnerCaller, gateway: GatewayState
) -> AccessRequestInfo:
    """Deny a request, with the reason; 409 when it was decided already."""
    owned_access_request(gateway.registry, user, access_request_id)
    with as_conflict():
        gateway.registry.deny_access_request(access_request_id, denial.note, actor=user.name)
    return AccessRequestInfo.of(owned_access_request(gateway.registry, user, access_request_id))


# --- grants ----------------------------------------------------------------------------------------------------------


@router.get("/grants", responses=problems(403, 422))
def list_owned_grants(
    user: OwnerCaller,
    gateway: GatewayState,
    dataset: DatasetFilter = None,
    limit: Limit = 100,
    after: After = 0,
) -> Page[GrantInfo]:
    """List grants for the caller's data sets, those that ended too, the newest first."""
    query = owned_grants(user)
    if dataset is not None:
        query = query.where(Grant.dataset == dataset)
    return page(gateway.registry, query, Grant.id, after, limit, GrantInfo.of, newest_first=True)


@router.post("/grants", responses=problems(*WITH_BODY, 403, 404, 422), status_code=status.HTTP_201_CREATED)
def create_grant(new: NewGrant, user: OwnerCaller, gateway: GatewayState) -> GrantInfo:
    """Grant without being asked. Again for the same user and scope: it extends the grant in force.

    Where it ends later and is for fewer images, or the other way round, it is another grant beside that one.
    """
    owned_dataset(gateway.registry, user, new.dataset)
    made = gateway.registry.grant(
        new.user,
        new.dataset,
        new.expires,
        version=new.version,
        classes=new.classes,
        samples=new.samples,
        quota=new.quota,
        starts=new.starts,
        note=new.note,
        actor=user.name,
    )
    return GrantInfo.of(owned_grant(gateway.registry, user, made.id))


@router.post("/grants/{grant_id}/revoke", responses=problems(403, 404, 422))
def revoke_grant(grant_id: IdPath, user: OwnerCaller, gateway: GatewayState) -> GrantInfo:
    """End a grant now; what runs under it stops at its next shard. Done again, nothing changes."""
    owned_grant(gateway.registry, user, grant_id)
    gateway.registry.revoke_grant(grant_id, actor=user.name)
    return GrantInfo.of(owned_grant(gateway.registry, user, grant_id))


@router.post("/grants/{grant_id}/renew", responses=problems(*WITH_BODY, 403, 404, 409, 422))
def renew_grant(grant_id: IdPath, renewal: Renewal, user: OwnerCaller, gateway: GatewayState) -> GrantInfo:
    """Give a grant another end and, if given, another quota; 409 when it was revoked."""
    grant = owned_grant(gateway.registry, user, grant_id)
    if grant.revoked is not None:
        raise Conflict("The grant was revoked.", "Make a new one.")
    gateway.registry.renew_grant(grant_id, renewal.expires, quota=renewal.quota, actor=user.name)
    return GrantInfo.of(owned_grant(gateway.registry, user, grant_id))


# --- what was done ---------------------------------------------------------------------------------------------------


@router.get("/usage", responses=problems(403, 404, 422))
def get_usage(
    user: OwnerCaller,
    gateway: GatewayState,
    dataset: DatasetFilter = None,
    days: Annotated[int, Query(ge=1, le=3660, description="how far to look back")] = 90,
) -> Usage:
    """Show how many images who had restored, by day."""
    if dataset is not None:
        owned_dataset(gateway.registry, user, dataset)
    owner = None if user.role == "operator" else user.name
    since = datetime.now(UTC) - timedelta(days=days)
    found = gateway.registry.usage(owner=owner, dataset=dataset, since=since)
    return Usage(items=[_usage(row) for row in found])


def _usage(row: UsageRow) -> UsageInfo:
    return UsageInfo(day=str(row.day), dataset=row.dataset, user=row.user, requests=row.requests, images=row.images)


@router.get("/audit", responses=problems(403, 404, 422))
def get_owner_audit(
    user: OwnerCaller, gateway: GatewayState, dataset: DatasetFilter = None, limit: Limit = 100, after: After = 0
) -> Page[AuditInfo]:
    """Show the audit log's entries about the caller's data sets, the oldest first."""
    if dataset is not None:
        names = [owned_dataset(gateway.registry, user, dataset).name]
    else:
        names = _owned_names(gateway, user)
    found = gateway.audit.entries(after=after, limit=limit + 1, dataset=names)
    return audit_page(found, limit)


def audit_page(found: Sequence[AuditEntry], limit: int) -> Page[AuditInfo]:
    """One page of the log, of which one entry more than `limit` was read when there are more."""
    entries = [AuditInfo.of(entry) for entry in found[:limit]]
    return Page(items=entries, next=entries[-1].seq if len(found) > limit else None)


def _owned_names(gateway: Gateway, user: User) -> list[str]:
    query = select(rows.Dataset.name)
    return list(
        gateway.registry.all(query if user.role == "operator" else query.where(rows.Dataset.owner_id == user.id))
    )


def _owner_of(gateway: Gateway, dataset: str) -> str | None:
    try:
        return gateway.registry.get_dataset(dataset).owner.name
    except NotFound:
        return None
