"""The operator's side: users and their tokens, and the whole audit log."""

from typing import Annotated

from fastapi import APIRouter, Query, status
from sqlalchemy import select

from flows.gateway.auth import OperatorCaller
from flows.gateway.errors import WITH_BODY, as_conflict, problems
from flows.gateway.owner import audit_page
from flows.gateway.parameters import After, Limit, UserPath
from flows.gateway.queries import page
from flows.gateway.schemas import AuditInfo, Dataset, NewToken, NewUser, Page, UserInfo, UserName, Verdict
from flows.gateway.state import Gateway, GatewayState
from storage.errors import Conflict
from storage.registry_models import User

router = APIRouter(prefix="/operator", tags=["operator"])


@router.get("/users", responses=problems(403, 422))
def list_users(user: OperatorCaller, gateway: GatewayState, limit: Limit = 100, after: After = 0) -> Page[UserInfo]:
    """List all users, the oldest first."""
    return page(gateway.registry, select(User), User.id, after, limit, UserInfo.model_validate)


@router.post("/users", responses=problems(*WITH_BODY, 403, 409, 422), status_code=status.HTTP_201_CREATED)
def create_user(new: NewUser, user: OperatorCaller, gateway: GatewayState) -> NewToken:
    """Make a user and a token, which is shown this once; 409 when the name is taken."""
    with as_conflict():
        token = gateway.registry.add_user(new.name, new.role, expires=new.expires, actor=user.name)
    return NewToken(name=new.name, token=token)


@router.post("/users/{name}/disable", responses=problems(403, 404, 409, 422))
def disable_user(name: UserPath, user: OperatorCaller, gateway: GatewayState) -> UserInfo:
    """Shut a user out at once: no token and no session of theirs is good any more. Not oneself: 409."""
    if name == user.name:
        raise Conflict("You can not shut yourself out.", "Have another operator do it.")
    return _set_disabled(gateway, name, True, user.name)


@router.post("/users/{name}/enable", responses=problems(403, 404, 422))
def enable_user(name: UserPath, user: OperatorCaller, gateway: GatewayState) -> UserInfo:
    """Let a user in again."""
    return _set_disabled(gateway, name, False, user.name)


@router.post("/users/{name}/token", responses=problems(403, 404, 422), status_code=status.HTTP_201_CREATED)
def replace_token(name: UserPath, user: OperatorCaller, gateway: GatewayState) -> NewToken:
    """Make a new token for a user; all others of theirs are revoked."""
    return NewToken(name=name, token=gateway.registry.rotate_token(name, actor=user.name))


@router.get("/audit", responses=problems(403, 422))
def get_audit(
    user: OperatorCaller,
    gateway: GatewayState,
    dataset: Annotated[Dataset | None, Query(description="only about this data set")] = None,
    actor: Annotated[UserName | None, Query(description="only what this user did")] = None,
    action: Annotated[
        str | None,
        Query(
            pattern=r"^[a-z]{1,16}(\.[a-z-]{1,16})?$",
            description="only this action, or all of `grant`",
            examples=["grant"],
        ),
    ] = None,
    limit: Limit = 100,
    after: After = 0,
) -> Page[AuditInfo]:
    """Show the audit log, the oldest entries first."""
    found = gateway.audit.entries(after=after, limit=limit + 1, dataset=dataset, actor=actor, action=action)
    return audit_page(found, limit)


@router.get("/audit/verify", responses=problems(403))
def verify_audit(user: OperatorCaller, gateway: GatewayState) -> Verdict:
    """Check the whole audit log: its chain, and the signed checkpoints in the object store."""
    verdict = gateway.audit.verify(gateway.audit.anchors(gateway.private))
    return Verdict.model_validate(
        {
            "whole": verdict.ok,
            "entries": verdict.entries,
            "head": verdict.head,
            "anchored": verdict.anchored,
            "anchored_at": verdict.anchored_at,
            "fault": None if verdict.fault is None else verdict.fault.what,
            "notes": list(verdict.notes),
        }
    )


def _set_disabled(gateway: Gateway, name: str, disabled: bool, actor: str) -> UserInfo:
    gateway.registry.set_disabled(name, disabled, actor=actor)
    return UserInfo.model_validate(gateway.registry.get_user(name))
