"""Who is calling: what is taken for a token, and the sessions of the pages."""

import base64
import json
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from fastapi import Request
from itsdangerous import TimestampSigner

from flows.gateway.auth import caller_token
from flows.gateway.pages_session import COOKIE, session_secret
from storage.errors import BadToken, Forbidden
from storage.settings import Settings
from tests.flows.gateway.conftest import Site, people, png, running

NO_TOKENS = ("", "Bearer", "Basic dXNlcjpwYXNz", "dmcp_x", "Bearer dmcp_x y", "Bearer \x7f", f"Bearer {'x' * 5000}")


@pytest.mark.parametrize("header", NO_TOKENS)
def test_what_is_no_token(site: Site, header: str) -> None:
    answer = site.client.get(f"{site.address}/api/v1/me", headers={"Authorization": header})
    assert (answer.status_code, answer.json()["error"]) == (401, "BadToken")


def test_a_token_in_the_address_is_not_taken_and_not_repeated(site: Site) -> None:
    token = site.tokens["user"]
    answer = site.call("GET", "me", "none", params={"token": token})
    assert answer.status_code == 401
    answer = site.call("GET", "me", "user", params={"token": token})
    assert (answer.status_code, answer.json()["error"]) == (422, "UsageError")
    assert token not in answer.text


def test_a_token_is_worth_nothing_from_the_moment_it_is_revoked(site: Site) -> None:
    site.tokens["second"] = site.registry.add_token(site.names["user"], "second")
    assert site.call("GET", "me", "second").status_code == 200
    listed = site.call("GET", "me/tokens", "second").json()["items"]
    mine = next(token for token in listed if token["label"] == "second")
    assert site.tokens["second"].startswith(mine["prefix"])
    assert "hash" not in mine
    assert site.call("DELETE", f"me/tokens/{mine['id']}", "second").status_code == 204
    assert site.call("GET", "me", "second").status_code == 401


def by_session(site: Site, method: str = "GET", headers: dict[str, str] | None = None, **session: Any) -> str:
    """The name of whom a call with this session of the pages is taken for."""
    given = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    route = next(route for route in site.app.routes if getattr(route, "path", "") == "/docs")
    scope = {
        "type": "http", "method": method, "path": "/", "query_string": b"", "headers": given, "session": session,
        "route": route, "client": ("127.0.0.1", 1),
    }  # fmt: skip
    return caller_token(Request(scope), site.gateway, None).user.name


def test_sessions_of_the_pages(site: Site) -> None:
    """They last as long as the token they began with, and may change nothing without the page's own token."""
    token = site.registry.add_token(site.names["user"], "pages")
    identity = next(t.id for t in site.registry.list_tokens(site.names["user"]) if t.label == "pages")
    assert token
    session = {"sid": site.registry.begin_session(identity, 3600), "csrf": "abc"}
    assert by_session(site, **session) == site.names["user"]
    assert by_session(site, "POST", {"x-csrf-token": "abc"}, **session) == site.names["user"]
    for wrong in ({}, {"x-csrf-token": "abd"}, {"x-csrf-token": "ä"}):
        with pytest.raises(Forbidden):
            by_session(site, "POST", wrong, **session)
    with pytest.raises(Forbidden):
        by_session(site, "POST", {"x-csrf-token": ""}, sid=session["sid"])
    over = {"sid": site.registry.begin_session(identity, 0)}
    ended = {"sid": site.registry.begin_session(identity, 3600)}
    site.registry.end_session(ended["sid"])
    assert by_session(site, **session) == site.names["user"]
    site.registry.revoke_token(identity)
    for gone in (
        session,
        over,
        ended,
        {"sid": "x" * 43},
        {"sid": "\ud800"},
        {"sid": identity},
        {"token": identity},
        {},
    ):
        with pytest.raises(BadToken):
            by_session(site, **gone)


def test_a_token_with_an_end_gets_none_that_ends_later(site: Site) -> None:
    """Neither by itself nor by a session that it began, also where its user holds one without an end."""
    end = datetime.now(UTC) + timedelta(days=7)
    name = f"guest-{uuid4().hex[:6]}@lab.example"
    site.registry.add_user(name)
    site.tokens["guest"] = site.registry.add_token(name, "guest", end)
    made = site.call("POST", "me/token", "guest")
    assert made.status_code == 201
    site.tokens["guest"] = made.json()["token"]
    rotated = site.registry.authenticated(site.tokens["guest"])
    assert rotated.expires == end

    session = {"sid": site.registry.begin_session(rotated.id, 3600), "csrf": "abc", "until": time.time() + 3600}
    signed = TimestampSigner(session_secret(site.settings)).sign(base64.b64encode(json.dumps(session).encode()))
    headers = {"X-CSRF-Token": "abc", "Cookie": f"{COOKIE}={signed.decode()}"}
    made = site.call("POST", "me/token", "none", headers=headers)
    assert made.status_code == 201
    assert site.registry.authenticated(made.json()["token"]).expires == end


def test_the_gateway_starts_and_stops_while_there_is_no_prefect(make_settings: Callable[..., Settings]) -> None:
    """What is handed in meanwhile waits."""
    with running(make_settings(), dispatch=True) as site:
        people(site)
        made = site.upload(png(), "image/png").json()
        assert "gateway-dispatch" in {thread.name for thread in threading.enumerate()}
        assert site.call("GET", f"restorations/{made['id']}").json()["state"] == "pending"
    assert "gateway-dispatch" not in {thread.name for thread in threading.enumerate()}
