"""Asking for access, and what was granted."""

from typing import Annotated

from fastapi import APIRouter, Query, status
from sqlalchemy import select

from flows.gateway.auth import Caller
from flows.gateway.errors import WITH_BODY, as_conflict, problems
from flows.gateway.parameters import After, IdPath, Limit
from flows.gateway.queries import own_access_request, own_grant, page
from flows.gateway.schemas import AccessRequestInfo, AccessState, AskAccess, AskRenewal, GrantInfo, Page
from flows.gateway.state import GatewayState
from storage.registry_models import AccessRequest, Grant

router = APIRouter(tags=["access"])

StateFilter = Annotated[AccessState | None, Query(description="only those in this state")]


@router.get("/access-requests", responses=problems(422))
def list_access_requests(
    user: Caller, gateway: GatewayState, state: StateFilter = None, limit: Limit = 100, after: After = 0
) -> Page[AccessRequestInfo]:
    """List the caller's requests for access, the newest first."""
    query = select(AccessRequest).where(AccessRequest.user_id == user.id)
    if state is not None:
        query = query.where(AccessRequest.state == state)
    return page(gateway.registry, query, AccessRequest.id, after, limit, AccessRequestInfo.of, newest_first=True)


@router.post("/access-requests", responses=problems(*WITH_BODY, 404, 409, 422), status_code=status.HTTP_201_CREATED)
def ask_access(ask: AskAccess, user: Caller, gateway: GatewayState) -> AccessRequestInfo:
    """Ask the owner of a data set for access to it, or to a part of it."""
    gateway.registry.get_dataset(ask.dataset)
    with as_conflict():
        made = gateway.registry.ask_access(
            user.id,
            ask.dataset,
            ask.reason,
            version=ask.version,
            classes=ask.classes,
            images=ask.images,
            days=ask.days,
            actor=user.name,
        )
    return AccessRequestInfo.of(own_access_request(gateway.registry, user, made.id))


@router.get("/access-requests/{access_request_id}", responses=problems(404, 422))
def get_access_request(access_request_id: IdPath, user: Caller, gateway: GatewayState) -> AccessRequestInfo:
    """Show one of the caller's requests for access, and what was decided."""
    return AccessRequestInfo.of(own_access_request(gateway.registry, user, access_request_id))


@router.post("/access-requests/{access_request_id}/withdraw", responses=problems(404, 409, 422))
def withdraw_access_request(access_request_id: IdPath, user: Caller, gateway: GatewayState) -> AccessRequestInfo:
    """Take back a request that nobody decided yet; 409 when somebody did."""
    own_access_request(gateway.registry, user, access_request_id)
    with as_conflict():
        gateway.registry.withdraw_access_request(access_request_id, user.id, actor=user.name)
    return AccessRequestInfo.of(own_access_request(gateway.registry, user, access_request_id))


@router.get("/grants", responses=problems(422))
def list_grants(user: Caller, gateway: GatewayState, limit: Limit = 100, after: After = 0) -> Page[GrantInfo]:
    """List the caller's grants with their quotas, those that ended too, the newest first."""
    query = select(Grant).where(Grant.user_id == user.id)
    return page(gateway.registry, query, Grant.id, after, limit, GrantInfo.of, newest_first=True)


@router.get("/grants/{grant_id}", responses=problems(404, 422))
def get_grant(grant_id: IdPath, user: Caller, gateway: GatewayState) -> GrantInfo:
    """Show one of the caller's grants."""
    return GrantInfo.of(own_grant(gateway.registry, user, grant_id))


@router.post(
    "/grants/{grant_id}/renew", responses=problems(*WITH_BODY, 404, 409, 422), status_code=status.HTTP_201_CREATED
)
def ask_renewal(grant_id: IdPath, ask: AskRenewal, user: Caller, gateway: GatewayState) -> AccessRequestInfo:
    """Ask the owner to renew a grant: a request for access that names it."""
    grant = own_grant(gateway.registry, user, grant_id)
    gateway.registry.get_dataset(grant.dataset)
    with as_conflict():
        made = gateway.registry.ask_access(
            user.id,
            grant.dataset,
            ask.reason,
            images=ask.images,
            days=ask.days,
            renews=grant.id,
            actor=user.name,
        )
    return AccessRequestInfo.of(own_access_request(gateway.registry, user, made.id))
