"""Errors as the gateway answers them: always the same JSON, with a status by group of the one tree.

    {"error": "GrantExpired", "what": "The grant of ann for cifar10 expired on ...", "cure": "...", "request_id": "..."}

`error` is the class's name, which `flows/client.py` makes the same class of again; `request_id` is the call's own id
(header X-Request-ID), to be found in the gateway's log. What was sent is never repeated in an answer.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from storage.errors import (
    BadToken,
    Conflict,
    DmcpError,
    EnvironmentFault,
    InputError,
    KeyVaultError,
    NotAuthorised,
    NotFound,
    Refused,
    Removed,
    ServiceError,
    TooLarge,
    TooManyRequests,
    UsageError,
    WrongMediaType,
)

STATUS: tuple[tuple[type[DmcpError], int], ...] = (
    (BadToken, 401),
    (TooManyRequests, 429),
    (TooLarge, 413),
    (WrongMediaType, 415),
    (Conflict, 409),
    (NotAuthorised, 403),
    (Removed, 410),
    (NotFound, 404),
    (UsageError, 422),
    (InputError, 400),
    (Refused, 400),
    (EnvironmentFault, 503),
    (KeyVaultError, 503),
)
"""Which status a class has: that of the first one it is."""

RETRY_SECONDS = 60
log = logging.getLogger("dmcp.gateway")


class Problem(BaseModel):
    """Why a call was refused, and what to do next."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "error": "NoGrant",
                    "what": "ann holds no grant for cifar10.",
                    "cure": "Ask for access.",
                    "request_id": "6f1c2a9b0d3e4f58",
                }
            ]
        }
    )

    error: str = Field(description="class of the error")
    what: str = Field(description="what happened")
    cure: str = Field(description="what to do next; may be empty")
    request_id: str = Field(description="id of this call, as in the header X-Request-ID")


_MEANING = {
    400: "What was sent can not be read or used.",
    401: "No token, or one that is unknown, expired, revoked or whose user is disabled.",
    403: "The caller may not do this.",
    404: "There is nothing of this name or id, or it is another user's.",
    408: "The body came too slowly.",
    409: "It is in a state in which this can not be done.",
    410: "It was there, and was removed when its time was over.",
    413: "The body is too large.",
    415: "The body's content type is not taken.",
    422: "An argument is not known, or has a form that is not allowed.",
    429: "Too many calls; try again after so many seconds as the header Retry-After says.",
    500: "A fault of the gateway; its log has the details under this request_id.",
    503: "A service that the gateway needs (registry, object store) is out of reach or full.",
}
_HEADERS: dict[int, dict[str, Any]] = {
    401: {"WWW-Authenticate": {"description": "the scheme: Bearer", "schema": {"type": "string"}}},
    429: {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}},
}
EVERYWHERE = (401, 422, 429, 500, 503)
WITH_BODY = (400, 413)


def problems(*codes: int, open_route: bool = False) -> dict[int | str, dict[str, Any]]:
    """What a route's OpenAPI entry says about errors: these, and those that any call may meet."""
    wanted = sorted({*codes, *((500, 503) if open_route else EVERYWHERE)})
    return {
        code: {"model": Problem, "description": _MEANING[code]}
        | ({"headers": _HEADERS[code]} if code in _HEADERS else {})
        for code in wanted
    }


def status_of(error: DmcpError) -> int:
    """The status that this error is answered with."""
    return next((status for kind, status in STATUS if isinstance(error, kind)), 500)


@contextmanager
def as_conflict() -> Iterator[None]:
    """For changes of state: what the registry takes for a wrong call is a conflict here, since the form was checked."""
    try:
        yield
    except (Conflict, TooManyRequests):
        raise
    except UsageError as error:
        raise Conflict(error.what, error.cure) from error


def answer(
    request: Request, status: int, error: str, what: str, cure: str = "", headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """An error as JSON."""
    extra = dict(headers or {})
    if status == 401:
        extra.setdefault("WWW-Authenticate", "Bearer")
    if status == 429:
        extra.setdefault("Retry-After", str(RETRY_SECONDS))
    identity = str(request.scope.get("dmcp_request_id", ""))
    request.scope["dmcp_error"] = error
    return _Plain({"error": error, "what": what, "cure": cure, "request_id": identity}, status, extra)


class _Plain(JSONResponse):
    """JSON in ASCII: a message may hold anything that a name held, lone surrogates too."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode()


def install(app: FastAPI) -> None:
    """Have every error of the application answered in this shape."""
    app.add_exception_handler(DmcpError, _ours)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)


async def _ours(request: Request, error: Exception) -> Response:
    assert isinstance(error, DmcpError)
    status = status_of(error)
    headers = {"Retry-After": str(error.retry_after)} if isinstance(error, TooManyRequests) else None
    if status == 500:
        raise error  # unforeseen: `frame.py` logs it and says no more than that
    what, cure = error.what, error.cure
    if status == 503 and not _for_callers(error):
        log.error("a service is away: %s", error)
        what, cure = _MEANING[503], "Try again in a minute."
    return answer(request, status, type(error).__name__, what, cure, headers)


def _for_callers(error: DmcpError) -> bool:
    """Whether the gateway made this error for its callers: what storage says holds addresses, which are for the log."""
    return isinstance(error, ServiceError) or isinstance(error.__cause__, DmcpError)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = []
    for entry in error.errors()[:5]:
        where = ".".join(str(part) for part in entry["loc"] if not isinstance(part, bytes))
        found.append(f"{where[:200]!a}: {entry['msg'][:300]}")
    what = f"The call is not valid: {'; '.join(found) or 'its body'}."
    return answer(request, 422, "UsageError", what, "See /openapi.json for what is taken.")


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = {404: "NotFound", 413: "TooLarge", 408: "EnvironmentFault"}.get(error.status_code, "UsageError")
    what = HTTPStatus(error.status_code).phrase if error.status_code in (404, 405) else str(error.detail)
    return answer(request, error.status_code, kind, f"{what.rstrip('.')}.", "See /openapi.json.", error.headers)
