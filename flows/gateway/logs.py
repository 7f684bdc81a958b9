"""The gateway's log: one JSON object a line on stderr, with the id of the call that it belongs to, and no secrets.

    {"time":"2026-01-31T12:00:00.123Z","level":"info","logger":"dmcp.gateway","message":"GET /readyz 200 2 ms",
     "request_id":"6f1c2a9b0d3e4f58","user":null,"method":"GET","route":"/readyz","status":200,"milliseconds":2.1,...}

Nothing that we log holds a token, a cookie, a query or a presigned address. Others' messages and tracebacks may, and so
may a path that a client made up: as a belt, whatever looks like a secret is blotted out of every finished line.
"""

import json
import logging
import re
import sys
from collections.abc import Iterable
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, TextIO

from pydantic import SecretStr
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError
from starlette.types import Scope

from storage.settings import Settings

call_id: ContextVar[str | None] = ContextVar("call_id", default=None)
"""Id of the call that is being answered, for what is logged meanwhile, in its threads too."""

SHORTEST = 8
"""A secret of fewer characters than this would blot out ordinary words."""

_BLOT = "[redacted]"
_VALUE = r"[^\s\"'\\,;&<>]+"
_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), replacement)
    for pattern, replacement in (
        (r"dmcp_[A-Za-z0-9_-]{24,}", _BLOT),  # our tokens
        (rf"\b(bearer|basic)(\s+|%20|\+){_VALUE}", rf"\1 {_BLOT}"),
        (r"\b(authorization|cookie|set-cookie|x-csrf-token)((?:\\?[\"'])?\s*[:=,]\s*)[^\r\n\\\"]+", rf"\1: {_BLOT}"),
        (r"\bsession=" + _VALUE, f"session={_BLOT}"),
        (r"\beyJ[A-Za-z0-9_-]{8,}(\.[A-Za-z0-9_-]+){1,2}", _BLOT),  # signed cookies, JWTs
        (r"(://)[^/\s\"'\\@]+@", rf"\1{_BLOT}@"),  # user and password in an address
        (r"\?[A-Za-z0-9_.%~+-]+=[^\s\"'\\<>]*", f"?{_BLOT}"),  # queries, so presigned addresses too
        (r"\b(x-amz-[a-z-]+|signature|awsaccesskeyid|token|password|passphrase|secret)=" + _VALUE, rf"\1={_BLOT}"),
    )
)


class Redactor:
    """Blots out what looks like a secret, and the secrets that it was told.

    Args:
        secrets: they are blotted out wherever they stand, unless they are too short to be told from words.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = {form for secret in secrets if len(secret) >= SHORTEST for form in (secret, json.dumps(secret)[1:-1])}
        longest_first = sorted(known, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, longest_first))) if known else None

    def __call__(self, text: str) -> str:
        """The text without them."""
        if self._known is not None:
            text = self._known.sub(_BLOT, text)
        for pattern, replacement in _PATTERNS:
            text = pattern.sub(replacement, text)
        return text


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON: `record.call` (a dict, see `frame.py`) is spread into it."""

    def __init__(self, redact: Redactor) -> None:
        super().__init__()
        self.redact = redact

    def format(self, record: logging.LogRecord) -> str:
        """The line, without a line break."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")[:-6] + "Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": self._blotted(_message(record)),
            "request_id": self._blotted(call_id.get()),  # it may be the caller's own
        }
        line |= {name: self._blotted(value) for name, value in getattr(record, "call", {}).items()}
        if record.exc_info:
            line["exception"] = self._blotted(self.formatException(record.exc_info))
        if record.stack_info:
            line["stack"] = self._blotted(record.stack_info)
        return json.dumps(line, ensure_ascii=True, default=str, separators=(",", ":"))

    def _blotted(self, value: Any) -> Any:
        return value if value is None or isinstance(value, bool | int | float) else self.redact(str(value))


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # arguments that do not fit: the line is worth more than an exception of its own
        return f"{record.msg} {record.args!r}"


def configure(settings: Settings, stream: TextIO | None = None, level: int = logging.INFO) -> None:
    """Have everything that this process logs written to stderr (or `stream`) in this form.

    Libraries that tell of each connection are kept to warnings.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(Redactor(secrets_of(settings))))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)
    logging.getLogger("uvicorn.access").disabled = True  # it shows queries
    for name in ("botocore", "boto3", "httpx", "httpcore", "urllib3", "s3transfer", "filelock", "alembic"):
        logging.getLogger(name).setLevel(max(level, logging.WARNING))


def secrets_of(settings: Settings) -> list[str]:
    """Everything in the settings that nobody is to read: what is declared as secret, and passwords in addresses."""
    values = [getattr(settings, name) for name in type(settings).model_fields]
    found = [value.get_secret_value() for value in values if isinstance(value, SecretStr)]
    for address in (settings.registry_url, settings.mlflow_uri, settings.gateway_rate_storage):
        try:
            password = make_url(address).password if address else None
        except ArgumentError:
            continue
        if password:
            found.append(password)
    return [secret for secret in found if secret]


def route_of(scope: Scope) -> str:
    """The template of the route that answered, such as `/api/v1/restorations/{restoration_id}`.

    Whatever matched none is `unmatched`: a client can make up any number of paths.
    """
    # A route knows the prefix of its own router only; FastAPI notes beside it which whole path matched.
    noted = scope.get("fastapi")
    whole = noted.get("effective_route_context") if isinstance(noted, dict) else None
    for matched in (whole, scope.get("route")):
        if isinstance(path := getattr(matched, "path_format", None), str):
            return path
    return "/static" if str(scope.get("path", "")).startswith("/static/") else "unmatched"
