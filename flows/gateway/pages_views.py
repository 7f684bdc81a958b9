"""Templates, times and numbers as people read them, and errors as pages.

    return render(request, "grants.html", grants=grants)

Everything that a template shows is escaped. Dates are given to the minute, in UTC, since people of several time zones
read them.
"""

import hashlib
import json
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from storage.database import utc_now
from storage.errors import DmcpError

log = logging.getLogger("dmcp.gateway")
STATIC = Path(__file__).parent / "static"
MACHINES = ("/api/", "/openapi.json", "/metrics", "/healthz", "/readyz", "/static/")
"""What these answer is for programs, whoever asks."""

CURES = {
    "NoGrant": "Ask its owner for access, on the data set's page.",
    "GrantExpired": "Ask for a renewal, on the data set's page.",
    "GrantRevoked": "Ask its owner for a new grant, on the data set's page.",
    "TermsNotAccepted": "Read and accept the terms of use, on the data set's page.",
}
"""What to do on these pages, where the message speaks of the command line."""

Handler = Callable[[Request, Exception], Awaitable[Response]]


class LoginNeeded(Exception):
    """Nobody is logged in (any more)."""

    def __init__(self, why: str = "") -> None:
        super().__init__(why)
        self.why = why


def render(request: Request, name: str, status: int = 200, **context: Any) -> HTMLResponse:
    """A page."""
    session = request.session
    shared = {
        "user": getattr(request.state, "user", None),
        "csrf": session.get("csrf", ""),
        "path": request.url.path,
        "said": session.pop("said", None) if "said" in session else None,
    }
    html = _environment().get_template(name).render(shared | context)
    return HTMLResponse(html.encode("utf-8", "backslashreplace"), status)


def see(address: str) -> RedirectResponse:
    """On to another page, after a form."""
    return RedirectResponse(address, 303)


def say(request: Request, what: str) -> None:
    """Have the next page begin with this."""
    request.session["said"] = what[:400]


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("flows.gateway"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(static=static, query=query)
    environment.filters.update(moment=moment, day=day, number=number, count=counted, ago=ago)
    environment.filters.update(scope=scope_of, standing=standing)
    return environment


@cache
def static(name: str) -> str:
    """The address of a file in static/, which changes when the file does."""
    digest = hashlib.sha256((STATIC / name).read_bytes()).hexdigest()
    return f"/static/{name}?v={digest[:10]}"


def query(**values: Any) -> str:
    """`?a=1&b=2`, of what is given."""
    given = {name: value for name, value in values.items() if value not in (None, "")}
    return f"?{urlencode(given)}" if given else "?"


# --- words -----------------------------------------------------------------------------------------------------------


def moment(when: datetime | str | None) -> Markup:
    """A time, to the minute."""
    if when is None:
        return Markup("—")
    parsed = datetime.fromisoformat(when) if isinstance(when, str) else when
    text = f"{parsed:%Y-%m-%d %H:%M}"
    return Markup('<time datetime="{}">{} UTC</time>').format(parsed.isoformat(), text)


def day(when: datetime | None) -> Markup:
    """A time, to the day."""
    if when is None:
        return Markup("—")
    return Markup('<time datetime="{}">{}</time>').format(when.isoformat(), f"{when:%Y-%m-%d}")


def ago(when: datetime | None) -> str:
    """How long ago, or how soon."""
    if when is None:
        return ""
    seconds = (utc_now() - when).total_seconds()
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if abs(seconds) >= size:
            amount = counted(round(abs(seconds) // size), unit)
            return f"{amount} ago" if seconds > 0 else f"in {amount}"
    return "just now"


def number(value: int) -> str:
    """12,345."""
    return f"{value:,}"


def counted(value: int, noun: str, plural: str = "") -> str:
    """1 image, 2 images."""
    return f"{value:,} {noun if value == 1 else plural or noun + 's'}"


def scope_of(bounds: Any) -> str:
    """What a grant covers, or a request for one asks for."""
    parts = [f"version {bounds.version}" if bounds.version else "every version"]
    if bounds.classes:
        shown = ", ".join(bounds.classes[:6])
        more = f" and {len(bounds.classes) - 6} more" if len(bounds.classes) > 6 else ""
        parts.append(f"{'class' if len(bounds.classes) == 1 else 'classes'} {shown}{more}")
    if getattr(bounds, "samples", None):
        parts.append(counted(len(bounds.samples), "sample"))
    return "; ".join(parts)


def standing(grant: Any) -> str:
    """What a grant is worth now."""
    if grant.in_force:
        return "in force"
    if grant.revoked:
        return "revoked"
    return "ended" if grant.expires and grant.expires <= utc_now() else "not begun"


# --- errors ----------------------------------------------------------------------------------------------------------


def install(app: FastAPI) -> None:
    """Have errors answered as pages to who asks for pages; programs get what `errors.py` answers."""
    for kind in (DmcpError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _as_page(app.exception_handlers[kind]))  # type: ignore[arg-type]
    app.add_exception_handler(LoginNeeded, _login)
    app.add_middleware(Faults)


def wants_page(request: Request) -> bool:
    """Whether a person is asking, by a browser."""
    return not request.url.path.startswith(MACHINES) and "text/html" in request.headers.get("accept", "")


def _as_page(original: Handler) -> Handler:
    async def handle(request: Request, error: Exception) -> Response:
        answer = await original(request, error)
        if not wants_page(request):
            return answer
        problem = json.loads(bytes(answer.body))
        page = problem_page(request, answer.status_code, problem, _cure(error, problem))
        for name in ("retry-after", "allow"):
            if name in answer.headers:
                page.headers[name] = answer.headers[name]
        return page

    return handle


def _cure(error: Exception, problem: dict[str, str]) -> str:
    if isinstance(error, HTTPException):
        return "Check the address, or begin at the start page."
    if isinstance(error, RequestValidationError):
        return "Go back and correct it."
    return CURES.get(problem["error"], problem["cure"])


def problem_page(request: Request, status: int, problem: dict[str, str], cure: str) -> HTMLResponse:
    """What happened and what to do."""
    return render(request, "problem.html", status, code=status, problem=problem, cure=cure)


async def _login(request: Request, error: Exception) -> Response:
    assert isinstance(error, LoginNeeded)
    if error.why:
        say(request, error.why)
    back = request.url.path if request.method == "GET" else ""
    if back and request.url.query:
        back += f"?{request.url.query}"
    return see("/" + query(next=back if back != "/" else "").rstrip("?"))


class Faults:
    """A page for what nobody foresaw; the log has the details."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One call."""
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception:
            if scope["type"] != "http" or begun or not wants_page(Request(scope)):
                raise
            identity = str(scope.get("dmcp_request_id", ""))
            log.exception("fault in call %s: a page", identity)
            problem = {"what": "The gateway met a fault of its own.", "request_id": identity}
            page = problem_page(Request(scope), 500, problem, "Try again; if it stays, tell the operator this number.")
            await page(scope, receive, send)
