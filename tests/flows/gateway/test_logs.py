"""The gateway's log: JSON lines with the id of the call, and nothing that is secret, wherever it was sent."""

import io
import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import Request
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from flows.gateway.logs import JsonFormatter, Redactor, configure, route_of, secrets_of
from storage.registry_users import TOKEN_PATTERN
from storage.settings import Settings
from tests.flows.gateway.conftest import Site, png, running

SIGNED = "http://127.0.0.1:1/private/x?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature=0123456789abcdef"


@contextmanager
def logged(settings: Settings) -> Iterator[io.StringIO]:
    """What the root logger writes, as `configure` sets it up; pytest's own handlers are put back."""
    root, stream = logging.getLogger(), io.StringIO()
    before, level = root.handlers[:], root.level
    root.handlers[:] = []
    try:
        configure(settings, stream)
        yield stream
    finally:
        logging.captureWarnings(False)
        logging.getLogger("uvicorn.access").disabled = False
        root.handlers[:] = before
        root.setLevel(level)


def of_call(stream: io.StringIO, identity: str, number: int = 1) -> list[dict[str, Any]]:
    """The lines of one call. The last is written after its answer was sent."""
    deadline = time.monotonic() + 60
    while True:
        found = [line for line in lines(stream) if line["request_id"] == identity]
        if len(found) >= number or time.monotonic() > deadline:
            return found
        time.sleep(0.01)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    whole, _, _ = stream.getvalue().rpartition("\n")
    return [json.loads(line) for line in whole.split("\n")] if whole else []


@pytest.fixture(scope="module")
def talkative(make_settings: Callable[..., Settings]) -> Iterator[tuple[Site, io.StringIO]]:
    """A gateway that logs into memory, with one operator, and a route that fails with secrets in its error."""
    settings = make_settings(
        vault_passphrase=SecretStr("passphrase of the vault"), gateway_secret=SecretStr("x" * 40 + "secret of cookies")
    )
    with logged(settings) as stream, running(settings) as site:
        site.names["user"] = "ann@lab.example"
        site.tokens["user"] = site.registry.add_user("ann@lab.example", "operator")
        site.tokens["unknown"] = "dmcp_" + "u" * 43

        def fail(request: Request) -> None:
            logging.getLogger("dmcp.test").info("about to fail with %s", SIGNED)
            secret = settings.s3_secret_key.get_secret_value() if settings.s3_secret_key else ""
            raise RuntimeError(f"{dict(request.headers)} {request.url} {SIGNED} {secret} passphrase of the vault")

        site.app.add_api_route("/fail", fail)
        yield site, stream


def test_a_call_is_one_line_with_what_one_looks_for(talkative: tuple[Site, io.StringIO]) -> None:
    site, stream = talkative
    answer = site.call("GET", "grants/77", headers={"X-Request-ID": "mine-0123456789"})
    assert answer.status_code == 404
    assert answer.headers["X-Request-ID"] == answer.json()["request_id"] == "mine-0123456789"
    (line,) = of_call(stream, "mine-0123456789")
    assert line["level"] == "info"
    assert line["logger"] == "dmcp.gateway"
    assert (line["method"], line["status"], line["user"]) == ("GET", 404, "ann@lab.example")
    assert (line["route"], line["path"]) == ("/api/v1/grants/{grant_id}", "/api/v1/grants/77")
    assert line["error"] == "NotFound"
    assert 0 < line["milliseconds"] < 30_000
    assert line["time"].endswith("Z")


@pytest.mark.parametrize("given", ["short", "a" * 65, "new\tline-and-more", "{'json': 'injected'}", "é" * 10])
def test_an_id_that_is_not_sane_is_replaced(talkative: tuple[Site, io.StringIO], given: str) -> None:
    site, stream = talkative
    answer = site.client.get(f"{site.address}/healthz", headers={"X-Request-ID": given.encode()})  # type: ignore[dict-item]
    made = answer.headers["X-Request-ID"]
    assert made != given
    assert [line["route"] for line in of_call(stream, made)] == ["/healthz"]


def test_what_is_logged_during_a_call_has_its_id_and_faults_their_traceback(
    talkative: tuple[Site, io.StringIO],
) -> None:
    site, stream = talkative
    identity = site.call("GET", "/fail").headers["X-Request-ID"]
    told = of_call(stream, identity, 3)
    assert [line["logger"] for line in told] == ["dmcp.test", "dmcp.gateway", "dmcp.gateway"]
    assert "RuntimeError" in told[1]["exception"]
    assert "[redacted]" in told[1]["exception"]
    assert told[2]["status"] == 500


def test_secrets_sent_everywhere_are_nowhere_in_the_log(talkative: tuple[Site, io.StringIO]) -> None:
    site, stream = talkative
    token, unknown = site.tokens["user"], site.tokens["unknown"]
    made = [site.call("POST", "operator/users", json={"name": f"new-{i}"}).json()["token"] for i in range(2)]
    site.registry.grant("ann@lab.example", "secrets")
    upload = site.call("POST", "uploads", json={"bytes": 10}).json()
    site.upload(png(1), "image/png")
    csrf = re.search(r'name="csrf"[^>]*value="([^"]+)"', site.client.get(f"{site.address}/").text)
    assert csrf is not None
    logged_in = site.client.post(f"{site.address}/login", data={"token": token, "csrf": csrf[1]})
    cookies = [cookie for cookie in site.client.cookies.jar if cookie.value]
    site.client.get(f"{site.address}/app")
    for secret in (token, unknown, *made):
        for send in (
            {"headers": {"Authorization": f"Bearer {secret}"}},
            {"headers": {"Authorization": f"Basic {secret}"}},
            {"headers": {"Cookie": f"session={secret}; other={secret}"}},
            {"headers": {"X-CSRF-Token": secret, "Referer": f"http://x/?token={secret}", "User-Agent": secret}},
            {"headers": {"X-Request-ID": secret}},
            {"params": {"token": secret, secret: secret}},
        ):
            for path in (
                "/healthz",
                f"/nope/{secret}",
                "/api/v1/me",
                "/fail",
                f"/api/v1/operator/users/{secret}/token",
            ):
                site.client.request("POST" if "users" in path else "GET", site.address + path, **send)  # type: ignore[arg-type]
        site.call("POST", "restorations", json={"upload": secret, "dataset": secret})
        site.call("POST", "restorations", content=b'{"broken": "' + secret.encode())
    of_call(stream, site.call("GET", "me").headers["X-Request-ID"])
    text = stream.getvalue()
    site.client.cookies.clear()
    assert text.count("\n") > 100
    settings = site.settings
    assert settings.s3_secret_key is not None
    secrets = [token, unknown, *made, "passphrase of the vault", "secret of cookies", "X-Amz-Signature", upload["url"]]
    secrets += [settings.s3_secret_key.get_secret_value(), urlsplit(upload["url"]).query, "AWS4-HMAC-SHA256"]
    secrets += [cookie.value or "" for cookie in cookies]
    assert cookies
    assert logged_in.status_code == 303, logged_in.text
    for secret in secrets:
        assert secret not in text, secret
    assert "uvicorn.access" not in text
    assert all(set(line) >= {"time", "level", "logger", "message", "request_id"} for line in lines(stream))


def test_calls_at_once_keep_their_ids(talkative: tuple[Site, io.StringIO]) -> None:
    site, stream = talkative
    ids = [f"parallel-{i:04d}" for i in range(40)]
    calls = [
        threading.Thread(target=lambda i=i: httpx.get(f"{site.address}/fail", headers={"X-Request-ID": i})) for i in ids
    ]
    for call in calls:
        call.start()
    for call in calls:
        call.join()
    for identity in ids:
        assert len(of_call(stream, identity, 3)) == 3


# --- the line itself -------------------------------------------------------------------------------------------------


def formatted(message: object, *args: object, redact: Redactor | None = None, **more: Any) -> dict[str, Any]:
    record = logging.LogRecord("x", logging.WARNING, "f.py", 1, message, args, None)
    record.__dict__.update(more)
    line = JsonFormatter(redact or Redactor()).format(record)
    assert "\n" not in line
    found: dict[str, Any] = json.loads(line)
    return found


texts = st.text(max_size=60)


@given(before=texts, token=st.from_regex(TOKEN_PATTERN, fullmatch=True), after=texts)
def test_a_token_never_gets_through(before: str, token: str, after: str) -> None:
    line = formatted("%s", before + token + after, call={"path": before + token, "status": 200})
    assert token not in json.dumps(line, ensure_ascii=False)
    assert line["status"] == 200


@given(secret=st.text(min_size=8, max_size=40), around=texts)
def test_a_secret_of_the_settings_never_gets_through(secret: str, around: str) -> None:
    redact = Redactor([secret])
    assert secret not in redact(f"{around}{secret}{around}").replace("[redacted]", "\0")


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer TOPSECRET",
        "{'authorization': 'Bearer TOPSECRET', 'x': 1}",
        "(b'authorization', b'Bearer TOPSECRET')",
        "(b'cookie', b'a=TOPSECRET; session=TOPSECRET')",
        "Cookie: a=1; session=TOPSECRET",
        "Set-Cookie: session=TOPSECRET; HttpOnly",
        "postgresql+psycopg://dmcp:TOPSECRET@db/dmcp",
        "GET /x?token=TOPSECRET HTTP/1.1",
        "https://s3.example/b/k?X-Amz-Signature=TOPSECRET&X-Amz-Credential=TOPSECRET",
        "body: token=TOPSECRET&csrf=1",
        "eyJ0b2tlbiI6MX0TOPSECRET.aTOPSECRET.bTOPSECRET",
        "dmcp_AAAAAAAAAAAAAAAAAAAAAAAAAAAATOPSECRETA",
    ],
)
def test_what_looks_like_a_secret_is_blotted_out(text: str) -> None:
    assert "TOPSECRET" not in formatted(text)["message"]
    assert "[redacted]" in formatted(text)["message"]


@pytest.mark.parametrize(
    "text",
    [
        "GET /api/v1/restorations/0123456789abcdef0123456789abcdef/results 200 12 ms",
        "could not anchor the audit log: The bucket dmcp-private does not answer.",
        "What now? Nothing.",
        "http://127.0.0.1:4200/api does not answer",
        "dmcp_http_requests_total",
    ],
)
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert formatted(text)["message"] == text


def test_odd_records_are_lines_too() -> None:
    assert "%d" in formatted("%d images", "no number")["message"]
    assert formatted("a\nb\u2028c")["message"] == "a\nb\u2028c"
    assert formatted("x", call={"client": Path("/tmp"), "user": None}) | {"time": ""} == {
        "time": "",
        "level": "warning",
        "logger": "x",
        "message": "x",
        "request_id": None,
        "client": "/tmp",
        "user": None,
    }


def test_the_settings_own_secrets_are_known(tmp_path: Path) -> None:
    settings = Settings(
        home=tmp_path,
        s3_secret_key=SecretStr("secret key"),
        registry_url="postgresql+psycopg://u:pass%40word@h/d",
        gateway_rate_storage="redis://:redispass@h:6379",
        mlflow_uri="file:relative",
    )
    assert set(secrets_of(settings)) == {"secret key", "pass@word", "redispass"}


def test_routes_are_templates() -> None:
    assert route_of({"path": "/static/style.css"}) == "/static"
    assert route_of({"path": "/anything/else"}) == "unmatched"
