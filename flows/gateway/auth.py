"""Who is calling: the user of a bearer token, or of the session cookie of the pages.

One query a call. A token in the address (`?token=`) is not taken: addresses end up in logs.
"""

import hmac
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from flows.gateway.state import Gateway, GatewayState
from storage.database import utc_now
from storage.errors import BadToken, Forbidden, UsageError
from storage.registry import User
from storage.registry_models import Token

SAFE = ("GET", "HEAD", "OPTIONS")
SHOWN_CHARACTERS = 40

bearer = HTTPBearer(
    scheme_name="token",
    description="The token that `dmcp access add-user` or an operator handed out.",
    auto_error=False,
)


def caller_token(
    request: Request,
    gateway: GatewayState,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
) -> Token:
    """The token that the call is made with, or that the session of the pages began with; with its user.

    Raises:
        BadToken: none, or one that is unknown, expired, revoked, or whose user is disabled.
        TooManyRequests: too many calls, or failed logins from this address.
    """
    session: Mapping[str, Any] = request.scope.get("session") or {}
    if credentials is not None:
        token = by_token(gateway, credentials.credentials, address(request))
    elif "sid" in session:
        if request.method not in SAFE:
            check_csrf(session, request.headers.get("x-csrf-token", ""))
        token = session_token(gateway, session)
        gateway.limiter.count(token.user_id)
    else:
        raise BadToken("No token is given.", "Send the header Authorization: Bearer dmcp_...")
    request.scope["dmcp_user"] = token.user.name
    check_query(request)
    return token


CallerToken = Annotated[Token, Depends(caller_token)]
"""What the caller is known by."""


async def caller(token: CallerToken) -> User:
    """The user who calls; async, since a plain function would be run in a thread of its own."""
    return token.user


def check_query(request: Request) -> None:
    """That the address has no argument that the route does not know: a slip, or a token where none belongs.

    Raises:
        UsageError: it has one.
    """
    route: APIRoute = request.scope["route"]
    unknown = set(request.query_params) - {field.alias for field in route.dependant.query_params}
    if unknown:
        shown = ascii(min(unknown)[:SHOWN_CHARACTERS])
        raise UsageError(f"The argument {shown} is not known here.", "See /openapi.json for what is taken.")


def by_token(gateway: Gateway, token: str, address: str) -> Token:
    """A token that is good, with its user, counted against the limits. Raises BadToken, TooManyRequests."""
    gateway.limiter.check_address(address, token)
    try:
        found = gateway.registry.authenticated(token)
    except BadToken:
        gateway.limiter.failed(address)
        raise
    gateway.limiter.remember(token)
    gateway.limiter.count(found.user_id)
    return found


def session_token(gateway: Gateway, session: Mapping[str, Any]) -> Token:
    """The token that a session of the pages began with, as long as it is good and nobody logged out; with its user.

    Raises:
        BadToken: the session ended, that token is gone, or its user disabled.
    """
    secret = session.get("sid")
    token = gateway.registry.session_token(secret) if isinstance(secret, str) else None
    now = utc_now()
    if token is None or token.revoked is not None or (token.expires is not None and token.expires <= now):
        raise BadToken("The session is over.", "Log in again.")
    if token.user.disabled:
        raise BadToken(f"The access of {token.user.name} was withdrawn.", "Ask the operator.")
    return token


def check_csrf(session: Mapping[str, Any], given: str) -> None:
    """That a call was made by a page of ours. Raises Forbidden."""
    expected = str(session.get("csrf") or "")
    if not expected or not hmac.compare_digest(expected.encode(), given.encode(errors="replace")):
        raise Forbidden("The call does not come from a page of this gateway.", "Load the page again.")


def address(request: Request) -> str:
    """Where a call comes from, for the limits."""
    return request.client.host if request.client else "unknown"


Caller = Annotated[User, Depends(caller)]
"""Whoever has a good token."""


def owner_role(user: Caller) -> User:
    """A user who may own data sets. Raises Forbidden."""
    if user.role not in ("owner", "operator"):
        raise Forbidden(f"{user.name} is no owner.", "Ask the operator for the role owner.")
    return user


def operator_role(user: Caller) -> User:
    """An operator. Raises Forbidden."""
    if user.role != "operator":
        raise Forbidden(f"{user.name} is no operator.", "Only an operator may do this.")
    return user


async def _owner(user: Caller) -> User:
    return owner_role(user)


async def _operator(user: Caller) -> User:
    return operator_role(user)


OwnerCaller = Annotated[User, Depends(_owner)]
OperatorCaller = Annotated[User, Depends(_operator)]
