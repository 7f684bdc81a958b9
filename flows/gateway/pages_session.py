"""Who is logged in: a cookie, signed, that scripts can not read and that other sites' pages do not send.

It holds a secret that names the session (never the token), the CSRF token of its forms, and when it is over. Session
and token are looked up at every call: logging out ends every copy of the cookie, and whoever loses the token, or is
shut out, is out at once.
"""

import os
import secrets
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.middleware.sessions import SessionMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from flows.gateway.auth import address, by_token, operator_role, owner_role, session_token
from flows.gateway.pages_forms import GivenForm
from flows.gateway.pages_views import LoginNeeded, render, see
from flows.gateway.state import Gateway, GatewayState
from storage.errors import BadToken
from storage.files import write_atomic
from storage.registry import User
from storage.settings import Settings

router = APIRouter()

COOKIE = "dmcp_session"
SESSION_SECONDS = 12 * 3600
"""How long a session lasts, used or not."""


class Sessions:
    """The middleware. Over HTTPS the cookie is kept to it; a proxy says so in X-Forwarded-Proto."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.settings = settings
        self._lock = threading.Lock()
        self._ways: dict[bool, SessionMiddleware] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One call."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        await self._way(scope.get("scheme") == "https")(scope, receive, send)

    def _way(self, secure: bool) -> SessionMiddleware:
        with self._lock:
            if not self._ways:
                secret = session_secret(self.settings)
                for https in (False, True):
                    self._ways[https] = SessionMiddleware(
                        _unless_over(self.app),
                        secret,
                        session_cookie=COOKIE,
                        max_age=SESSION_SECONDS,
                        same_site="strict",
                        https_only=https,
                    )
        return self._ways[secure]


def _unless_over(app: ASGIApp) -> ASGIApp:
    """The cookie is signed anew with every word that is kept for the next page; the session's end stays."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        session = scope["session"]
        if session and "sid" in session and not time.time() < float(session.get("until", 0)):
            session.clear()
        await app(scope, receive, send)

    return call


def session_secret(settings: Settings) -> str:
    """What signs the sessions: DMCP_GATEWAY_SECRET, or HOME/gateway.secret, generated once."""
    if settings.gateway_secret is not None:
        return settings.gateway_secret.get_secret_value()
    path = settings.home_path("gateway.secret")
    with suppress(FileNotFoundError):
        return _read(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    write_atomic(aside, secrets.token_urlsafe(48).encode(), mode=0o600)
    with suppress(FileExistsError):  # another process was first
        os.link(aside, path)
    aside.unlink()
    return _read(path)


def _read(path: Path) -> str:
    return path.read_text(encoding="ascii").strip()


# --- who it is -------------------------------------------------------------------------------------------------------


def visitor(request: Request, gateway: GatewayState) -> User:
    """The user who is logged in. Raises LoginNeeded, TooManyRequests."""
    session = request.session
    if "sid" not in session:
        raise LoginNeeded()
    try:
        user = session_token(gateway, session).user
    except BadToken as error:
        session.clear()
        raise LoginNeeded(f"{error.what} {error.cure}") from None
    gateway.limiter.count(user.id)
    request.scope["dmcp_user"] = user.name
    request.state.user = user
    return user


Visitor = Annotated[User, Depends(visitor)]


def _owner(user: Visitor) -> User:
    return owner_role(user)


def _operator(user: Visitor) -> User:
    return operator_role(user)


OwnerVisitor = Annotated[User, Depends(_owner)]
OperatorVisitor = Annotated[User, Depends(_operator)]


# --- in and out ------------------------------------------------------------------------------------------------------


@router.get("/")
def start(request: Request, gateway: GatewayState, next: str = "") -> Response:
    """The form to log in; or on to the pages."""
    if "sid" in request.session:
        user = visitor(request, gateway)
        return see(next if is_ours(next) else home_of(user))
    return _login_page(request, next)


@router.post("/login")
def log_in(request: Request, gateway: GatewayState, form: GivenForm) -> Response:
    """Begin a session with a token."""
    target = form.text("next")
    try:
        token = by_token(gateway, form.text("token"), address(request))
    except BadToken as error:
        return _login_page(request, target, error, 401)
    _end(request, gateway)
    secret = gateway.registry.begin_session(token.id, SESSION_SECONDS)
    request.session.update(sid=secret, csrf=secrets.token_urlsafe(24), until=time.time() + SESSION_SECONDS)
    request.scope["dmcp_user"] = token.user.name
    return see(target if is_ours(target) else home_of(token.user))


@router.post("/logout")
def log_out(request: Request, gateway: GatewayState, form: GivenForm) -> Response:
    """End the session, wherever its cookie was copied to."""
    _end(request, gateway)
    return see("/")


def _end(request: Request, gateway: Gateway) -> None:
    secret = request.session.get("sid")
    if isinstance(secret, str):
        gateway.registry.end_session(secret)
    request.session.clear()


def _login_page(request: Request, target: str, error: BadToken | None = None, status: int = 200) -> Response:
    request.session.setdefault("csrf", secrets.token_urlsafe(24))
    return render(request, "login.html", status, target=target if is_ours(target) else "", error=error)


def home_of(user: User) -> str:
    """Where a user's pages begin."""
    return {"owner": "/owner", "operator": "/owner"}.get(user.role, "/app")


def is_ours(target: str) -> bool:
    """Whether it is the address of a page here, and of nowhere else."""
    return target.startswith(("/app", "/owner", "/operator")) and "\\" not in target and target.isprintable()
