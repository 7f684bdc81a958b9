"""A gateway's refusals as errors of our own tree, so that they mean the same and exit the same as on its machine.

What comes from a gateway is text of another's: it is cut, and what would move a terminal's cursor is taken out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from storage import errors
from storage.errors import (
    BadToken,
    Conflict,
    DmcpError,
    InputError,
    NotAuthorised,
    NotFound,
    ServiceError,
    TooLarge,
    TooManyRequests,
    UsageError,
    WrongMediaType,
)

LONGEST = 4000

_BY_STATUS: dict[int, type[DmcpError]] = {
    400: InputError,
    401: BadToken,
    403: NotAuthorised,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    415: WrongMediaType,
    422: UsageError,
    429: TooManyRequests,
}


def error_of(status: int, headers: Mapping[str, str], body: bytes, where: str) -> DmcpError:
    """The error that an answer tells of.

    Args:
        status: of the answer, 300 or more.
        headers: of the answer.
        body: JSON of a gateway; or anything, from something in between.
        where: the gateway's address, for people.
    """
    said = _json(body)
    kind = error_class(said.get("error")) or _BY_STATUS.get(status, ServiceError if status >= 500 else UsageError)
    what, cure = printable(said.get("what")), printable(said.get("cure"))
    if not what:
        what = f"{where} answered {status}{_phrase(status)}."
        cure = "Check the address: it should be a gateway's (dmcp remote login URL)." if status < 500 else ""
    if status >= 500 and said.get("request_id"):
        cure = f"{cure} (call {printable(said['request_id'])[:64]})".strip()
    error = kind(what, cure)
    if isinstance(error, TooManyRequests):
        error.retry_after = int(retry_after(headers) or error.retry_after)
    return error


def failure(message: str | None) -> DmcpError:
    """The error that a failed restoration's message tells of: `ClassName: what happened`."""
    name, colon, what = printable(message).partition(": ")
    kind = error_class(name) if colon else None
    if kind is not None:
        return kind(what)
    return DmcpError(
        f"The restoration failed: {printable(message) or 'no reason is on record'}.", "Tell whoever runs the gateway."
    )


def error_class(name: Any) -> type[DmcpError] | None:
    """The class of our tree that is called so."""
    kind = getattr(errors, name, None) if isinstance(name, str) else None
    return kind if isinstance(kind, type) and issubclass(kind, DmcpError) else None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """What the header Retry-After asks for, in seconds."""
    given = headers.get("retry-after", "").strip()
    if given.isdecimal() and len(given) < 9:
        return float(given)
    if not given:
        return None
    from datetime import UTC, datetime
    from email.utils import parsedate_to_datetime

    try:
        moment = parsedate_to_datetime(given)
    except ValueError:
        return None
    return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def printable(text: Any, longest: int = LONGEST) -> str:
    """A text of the gateway's, safe to print: no control characters but line ends, and of bounded length."""
    if not isinstance(text, str):
        return ""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text[:longest])


def _json(body: bytes) -> dict[str, Any]:
    try:
        said = json.loads(body)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _phrase(status: int) -> str:
    try:
        return f" ({HTTPStatus(status).phrase})"
    except ValueError:
        return ""
