"""What protects the gateway itself: rates, bodies, headers, and a log without secrets."""

import logging
from collections.abc import Callable, Iterator

import pytest

from storage.errors import DmcpError
from storage.settings import Settings
from tests.flows.gateway.conftest import API, Site, people, png, running
from tests.flows.waiting import wait_for


@pytest.fixture(scope="module")
def strict(make_settings: Callable[..., Settings]) -> Iterator[Site]:
    """A gateway that allows little."""
    with running(make_settings(gateway_rate="5/minute", gateway_login_rate="3/minute")) as site:
        people(site)
        yield site


def test_calls_are_counted_for_each_user(strict: Site) -> None:
    answers = [strict.call("GET", "me", "user") for _ in range(7)]
    assert [answer.status_code for answer in answers] == [200] * 5 + [429] * 2
    assert answers[-1].json()["error"] == "TooManyRequests"
    assert 0 < int(answers[-1].headers["retry-after"]) <= 61
    assert strict.call("GET", "me", "other").status_code == 200
    strict.tokens["renewed"] = strict.registry.add_token(strict.names["user"], "renewed")
    assert strict.call("GET", "me", "renewed").status_code == 429, "another token is no fresh budget"


def test_failed_logins_are_counted_for_the_address_and_known_tokens_go_on(strict: Site) -> None:
    assert strict.call("GET", "me", "owner").status_code == 200
    answers = [strict.call("GET", "me", "malformed") for _ in range(5)]
    assert [answer.status_code for answer in answers] == [401] * 3 + [429] * 2
    assert strict.call("GET", "me", "operator").status_code == 429  # never seen before: it could be guessed
    assert strict.call("GET", "me", "owner").status_code == 200
    assert strict.call("GET", "/healthz", "none").status_code == 200


def test_bodies_are_bounded(site: Site) -> None:
    """By what they say, and by what comes."""
    headers = {"Content-Type": "application/json"}
    for content in (b" " * 2_000_000, iter([b" " * 500_000] * 4)):
        answer = site.call("POST", "access-requests", content=content, headers=headers)  # type: ignore[arg-type]
        assert (answer.status_code, answer.json()["error"]) == (413, "TooLarge")


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff", b"[" * 100_000, b'{"dataset": NaN}', b'{"dataset": "tiny", "reason": "\\ud800"}', b"9" * 5000,
     b'{"dataset": "tiny", "reason": "a\\u0000b"}', b'{"dataset": "tiny", "reason": "x", "days": 99999999999999999999}',
     b'{"dataset": "tiny", "reason": "x", "more": 1}', b'{"dataset": "tiny", "reason": 5}', b'"x"', b"null"],
)  # fmt: skip
def test_bodies_that_make_no_sense(site: Site, body: bytes) -> None:
    answer = site.call("POST", "access-requests", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
    assert set(answer.json()) == {"error", "what", "cure", "request_id"}


@pytest.mark.parametrize("path", ["grants/0", "grants/-1", "grants/99999999999999999999", "grants/x", "datasets/A%00b",
                                  "datasets/..%2f..", "restorations/xyz", "grants?limit=0", "grants?after=1e3",
                                  "restorations?after=%00", "datasets?limit=1001"])  # fmt: skip
def test_paths_and_queries_that_make_no_sense(site: Site, path: str) -> None:
    answer = site.call("GET", path)
    assert answer.status_code in (404, 422)
    assert "error" in answer.json()


def test_other_methods_and_paths_are_answered_alike(site: Site) -> None:
    for method, path, status in (("PUT", "me", 405), ("GET", "nothing", 404), ("OPTIONS", "me", 405)):
        answer = site.call(method, path)
        assert answer.status_code == status
        assert set(answer.json()) == {"error", "what", "cure", "request_id"}
        assert "access-control-allow-origin" not in answer.headers
    assert site.call("PUT", "me").headers["allow"] == "GET"


def test_headers_of_every_answer(site: Site) -> None:
    for path in ("/healthz", "/docs", f"{API}/me", f"{API}/nothing"):
        answer = site.call("GET", path, "none", headers={"Origin": "http://evil.example"})
        assert answer.headers["content-security-policy"].startswith("default-src 'self'")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-request-id"]
        assert "server" not in answer.headers
        assert not [name for name in answer.headers if name.startswith("access-control")]
    given = site.call("GET", "/healthz", "none", headers={"X-Request-ID": "my-own-request-id"})
    assert given.headers["x-request-id"] == "my-own-request-id"
    forged = site.call("GET", "/healthz", "none", headers={"X-Request-ID": "no spaces, please"})
    assert forged.headers["x-request-id"] != "no spaces, please"


def test_the_docs_load_nothing_from_anywhere(site: Site) -> None:
    page = site.call("GET", "/docs", "none").text
    assert "/api/v1/restorations/upload" in page
    assert "http://" not in page
    assert "https://" not in page
    assert "<script" not in page


def test_a_fault_is_told_without_its_inside(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("dmcp_secret")

    monkeypatch.setattr(site.registry, "datasets_granted", broken)
    with caplog.at_level(logging.INFO, "dmcp.gateway"):
        answer = site.call("GET", "me")
    assert (answer.status_code, answer.json()["error"]) == (500, DmcpError.__name__)
    assert "secret" not in answer.text
    assert answer.json()["request_id"] in caplog.text


def test_the_log_holds_no_secret(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        made = site.upload(png(), "image/png", params={"filename": "private name.png"}).json()
        site.serve(made["id"])
        page = site.call("GET", f"restorations/{made['id']}/results").json()
        upload = site.call("POST", "uploads", json={"bytes": 1}).json()
        site.call("GET", "me", "malformed")
        fresh = site.call("POST", f"operator/users/{site.names['other_owner']}/token", "operator").json()["token"]
        site.tokens["other_owner"] = fresh

        def lines() -> list[str]:
            return [record.getMessage() for record in caplog.records if record.name.startswith("dmcp")]

        wait_for(lines, lambda found: len(found) >= 5)  # the server logs a call once it has answered it
    said = "\n".join(lines()) + "".join(str(getattr(record, "call", "")) for record in caplog.records)
    assert f"/restorations/{made['id']}/results" in said
    for secret in (*site.tokens.values(), fresh, page["items"][0]["url"], upload["url"], "private name"):
        assert secret not in said
    assert "X-Amz-Signature" not in said
