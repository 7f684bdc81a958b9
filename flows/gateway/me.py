"""The caller: who it is, and the caller's tokens."""

from fastapi import APIRouter, status
from sqlalchemy import select

from flows.gateway.auth import Caller, CallerToken
from flows.gateway.errors import problems
from flows.gateway.parameters import After, IdPath, Limit
from flows.gateway.queries import page
from flows.gateway.schemas import Me, NewToken, Page, TokenInfo
from flows.gateway.state import GatewayState
from storage.errors import NotFound
from storage.registry_models import Token

router = APIRouter(prefix="/me", tags=["me"])


@router.get("", responses=problems())
def get_me(user: Caller, gateway: GatewayState) -> Me:
    """Who the caller is, what the caller may have restored, and how much may be uploaded at once."""
    return Me.model_validate(
        {
            "name": user.name,
            "role": user.role,
            "created": user.created,
            "datasets": gateway.registry.datasets_granted(user.id),
            "upload_limit": gateway.settings.upload_limit,
            "upload_limit_presigned": gateway.settings.upload_limit_presigned,
        }
    )


@router.post("/token", responses=problems(), status_code=status.HTTP_201_CREATED)
def rotate_token(token: CallerToken, gateway: GatewayState) -> NewToken:
    """Get a new token; all others of the caller are revoked at once. It ends when the one of this call would have."""
    name = token.user.name
    return NewToken(name=name, token=gateway.registry.rotate_token(name, expires=token.expires, actor=name))


@router.get("/tokens", responses=problems(422))
def list_tokens(user: Caller, gateway: GatewayState, limit: Limit = 100, after: After = 0) -> Page[TokenInfo]:
    """List the caller's tokens, of which only the beginning is known."""
    query = select(Token).where(Token.user_id == user.id)
    return page(gateway.registry, query, Token.id, after, limit, TokenInfo.model_validate)


@router.delete("/tokens/{token_id}", responses=problems(404, 422), status_code=status.HTTP_204_NO_CONTENT)
def revoke_token(token_id: IdPath, user: Caller, gateway: GatewayState) -> None:
    """Revoke one of the caller's tokens, also the one this call is made with."""
    mine = select(Token.id).where(Token.id == token_id, Token.user_id == user.id)
    if not gateway.registry.all(mine):
        raise NotFound(f"You have no token {token_id}.", "List them: GET /api/v1/me/tokens.")
    gateway.registry.revoke_token(token_id, actor=user.name)
