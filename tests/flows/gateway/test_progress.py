"""Following a restoration by server-sent events, and cancelling it."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import httpx
import pytest
from sqlalchemy import text

from flows.gateway import events
from storage.errors import RequestCancelled, WorkspaceBusy
from storage.settings import Settings
from tests.flows.gateway.conftest import API, Site, people, png, running
from tests.flows.waiting import wait_for


@pytest.fixture
def pending(site: Site) -> str:
    return str(site.upload(png(2), "image/png").json()["id"])


@contextmanager
def listening(
    site: Site, request_id: str, caller: str = "user", cookies: httpx.Cookies | None = None
) -> Iterator[Iterator[tuple[str, dict[str, object]]]]:
    """Events as they come: name and data."""

    def read(answer: httpx.Response) -> Iterator[tuple[str, dict[str, object]]]:
        name = ""
        for line in answer.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            if line.startswith("data: "):
                yield name, json.loads(line.removeprefix("data: "))

    with (
        httpx.Client(timeout=120, cookies=cookies) as client,
        client.stream(
            "GET", f"{site.address}{API}/restorations/{request_id}/events", headers=site.headers(caller)
        ) as answer,
    ):
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield read(answer)


def test_events_tell_each_change_and_end(site: Site, pending: str) -> None:
    with listening(site, pending) as told:
        assert next(told)[1]["state"] == "pending"
        request = site.registry.claim_request(pending)
        assert next(told)[1]["state"] == "running"
        site.registry.set_request_state(pending, "running", restored=1, attempt=request.attempt)
        name, data = next(told)
        assert (name, data["restored"]) == ("progress", 1)
        site.registry.set_request_state(pending, "failed", message="NoGrant: none.", attempt=request.attempt)
        name, data = next(told)
        assert (name, data["state"], data["message"]) == ("done", "failed", "NoGrant: none.")
        assert list(told) == []
    assert site.app.state.progress.watches == {}


def test_many_listeners_hold_no_thread_and_ask_with_one_query(site: Site, pending: str) -> None:
    before = threading.active_count()
    with ExitStack() as stack:
        all_told = [stack.enter_context(listening(site, pending)) for _ in range(10)]
        assert {next(told)[0] for told in all_told} == {"progress"}
        time.sleep(2 * events.LOOK_SECONDS)
        assert threading.active_count() < before + 10  # workers of the pool come and go
        assert len(site.app.state.progress.watches) == 1
        site.call("POST", f"restorations/{pending}/cancel")
        assert {next(told)[1]["state"] for told in all_told} == {"cancelled"}


def test_too_many_listeners_are_told_so(site: Site, pending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "PER_USER", 1)
    with listening(site, pending) as told:
        next(told)
        answer = site.call("GET", f"restorations/{pending}/events")
        assert (answer.status_code, answer.json()["error"]) == (429, "TooManyRequests")
    deadline = time.monotonic() + 60
    while site.app.state.progress.listeners and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not site.app.state.progress.listeners


def test_a_revoked_token_ends_the_stream(site: Site, pending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "CHECK_SECONDS", 0.2)
    site.tokens["leaving"] = site.registry.add_token(site.names["user"], "leaving")
    with listening(site, pending, "leaving") as told:
        next(told)
        token = next(t for t in site.registry.list_tokens(site.names["user"]) if t.label == "leaving")
        site.registry.revoke_token(token.id)
        assert next(told) == ("error", {"error": "BadToken"})
        assert list(told) == []


def test_a_revoked_token_ends_the_stream_though_there_is_progress(
    site: Site, pending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "CHECK_SECONDS", 0.5)
    monkeypatch.setattr(events, "LOOK_SECONDS", 0.05)
    site.tokens["going"] = site.registry.add_token(site.names["user"], "going")
    with listening(site, pending, "going") as told:
        next(told)
        token = next(t for t in site.registry.list_tokens(site.names["user"]) if t.label == "going")
        site.registry.revoke_token(token.id)
        request = site.registry.claim_request(pending)
        for restored in range(1, 50):  # each look finds something new, sooner than a check is due
            site.registry.set_request_state(pending, "running", restored=restored, attempt=request.attempt)
            name, data = next(told)
            if name == "error":
                break
        assert (name, data) == ("error", {"error": "BadToken"})


@pytest.fixture
def strict(make_settings: Callable[..., Settings]) -> Iterator[Site]:
    """A gateway that takes ten calls a minute of each user."""
    with running(make_settings(gateway_rate="10/minute")) as site:
        people(site)
        yield site


def log_in(site: Site) -> None:
    """The client gets the cookie of a session of the pages."""
    csrf = re.search(r'name="csrf"[^>]*value="([^"]+)"', site.client.get(f"{site.address}/").text)
    assert csrf is not None
    answer = site.client.post(f"{site.address}/login", data={"token": site.tokens["user"], "csrf": csrf[1]})
    assert answer.status_code == 303


def checked(site: Site, found: list[bool], times: int) -> None:
    """Wait until a listener was checked more often than that, or listens no longer."""
    listeners = site.app.state.progress.listeners
    wait_for(lambda: (len(found), listeners.total()), lambda seen: seen[0] > times or not seen[1])


def checks(monkeypatch: pytest.MonkeyPatch, seconds: float) -> list[bool]:
    """Check listeners so often; what was found, as it is found."""
    found: list[bool] = []
    still_good = events._still_good
    monkeypatch.setattr(events, "CHECK_SECONDS", seconds)
    monkeypatch.setattr(events, "_still_good", lambda *given: found.append(still_good(*given)) or found[-1])
    return found


def test_a_page_that_listens_is_looked_at_again_and_again_without_a_call_of_its_users_being_counted(
    strict: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    request_id = str(strict.upload(png(2), "image/png").json()["id"])
    log_in(strict)
    found = checks(monkeypatch, 0.05)
    with listening(strict, request_id, "none", strict.client.cookies) as told:
        assert next(told)[1]["state"] == "pending"
        checked(strict, found, 20)
        strict.registry.cancel_request(request_id)
        assert next(told)[1]["state"] == "cancelled"
    assert all(found)
    assert strict.call("GET", "me").status_code == 200


def test_a_session_that_ended_ends_the_stream(strict: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    request_id = str(strict.upload(png(2), "image/png").json()["id"])
    log_in(strict)
    checks(monkeypatch, 0.2)
    with listening(strict, request_id, "none", strict.client.cookies) as told:
        next(told)
        strict.registry.set_disabled(strict.names["user"], True)
        assert next(told) == ("error", {"error": "BadToken"})


@pytest.mark.parametrize("how", ["token", "session"])
def test_a_stream_outlasts_a_registry_that_is_away(strict: Site, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    request_id = str(strict.upload(png(2), "image/png").json()["id"])
    log_in(strict)
    found = checks(monkeypatch, 0.1)
    with listening(
        strict, request_id, *(("user", None) if how == "token" else ("none", strict.client.cookies))
    ) as told:
        next(told)
        with strict.registry.write() as session:
            session.execute(text("ALTER TABLE tokens RENAME TO away"))
        found.clear()
        checked(strict, found, 2)
        with strict.registry.write() as session:
            session.execute(text("ALTER TABLE away RENAME TO tokens"))
        strict.registry.cancel_request(request_id)
        assert next(told)[1]["state"] == "cancelled"


def test_cancelling(site: Site, pending: str) -> None:
    """A pending one is not begun any more, a running one is stopped, one that is over stays as it is."""
    assert site.call("POST", f"restorations/{pending}/cancel").json()["state"] == "cancelled"
    assert site.call("POST", f"restorations/{pending}/cancel").status_code == 200
    with pytest.raises(RequestCancelled):
        site.registry.claim_request(pending)

    running = site.upload(png(3), "image/png").json()["id"]
    request = site.registry.claim_request(running)
    assert site.call("POST", f"restorations/{running}/cancel").json()["state"] == "cancelled"
    with pytest.raises((WorkspaceBusy, RequestCancelled)):
        site.registry.heartbeat(running, request.attempt)
    assert "request.cancel" in site.actions(running)

    done = site.upload(png(4), "image/png").json()["id"]
    site.serve(done)
    answer = site.call("POST", f"restorations/{done}/cancel")
    assert (answer.status_code, answer.json()["error"]) == (409, "Conflict")


def test_polling_and_paging(site: Site) -> None:
    made = [site.upload(png(i), "image/png", "owner").json() for i in range(3)]
    if made[0].get("error"):  # an owner needs a grant like everybody else
        site.registry.grant(site.names["owner"], "tiny")
        site.registry.accept_terms(site.id_of("owner"), "tiny", 1)
        made = [site.upload(png(i), "image/png", "owner").json() for i in range(3)]
    found, after = [], {}
    while True:
        page = site.call("GET", "restorations", "owner", params={"limit": 2, **after}).json()
        found += [entry["id"] for entry in page["items"]]
        if page["next"] is None:
            break
        after = {"after": page["next"]}
    assert found == [entry["id"] for entry in reversed(made)]
    assert site.call("GET", "restorations", "owner", params={"state": "running"}).json()["items"] == []
