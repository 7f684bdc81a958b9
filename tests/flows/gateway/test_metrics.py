"""Metrics, as Prometheus reads them: who may, what is counted, and that no label grows with what users send."""

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import event

from flows.console import version
from flows.gateway import health
from flows.gateway.metrics import metrics_of
from storage.database import utc_now
from storage.objects import ObjectStore
from storage.registry_models import STATES, Request
from storage.settings import Settings
from tests.flows.gateway.conftest import API, STRANGERS, Site, peopled, png, running, zipped
from tests.flows.waiting import wait_for


@pytest.fixture(scope="module")
def site(make_settings: Callable[..., Settings], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with peopled(make_settings(), tmp_path_factory.mktemp("metrics")) as site:
        yield site


Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(site: Site) -> Samples:
    answer = site.call("GET", "/metrics", "operator")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: Any) -> float:
    return samples.get((name, frozenset((key, str(of)) for key, of in labels.items())), 0.0)


def test_only_an_operator_may_read_them(site: Site) -> None:
    for caller, status in {
        **dict.fromkeys(STRANGERS, 401),
        "user": 403,
        "owner": 403,
        "operator": 200,
    }.items():
        assert site.call("GET", "/metrics", caller).status_code == status, caller


def test_calls_are_counted_by_template_method_and_status(site: Site) -> None:
    before = scrape(site)
    for number in range(5):
        site.call("GET", f"grants/{1000 + number}")
    site.call("GET", "me")
    site.call("GET", "me", "none")
    site.upload(png(), "image/png")
    after = scrape(site)

    def more(name: str, **labels: Any) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    def counted(route: str, method: str, status: int) -> float:
        return more("dmcp_http_requests_total", route=f"{API}{route}", method=method, status=status)

    assert counted("/grants/{grant_id}", "GET", 404) == 5
    assert counted("/me", "GET", 200) == 1
    assert counted("/me", "GET", 401) == 1
    assert counted("/restorations/upload", "POST", 201) == 1
    labels = {"route": f"{API}/grants/{{grant_id}}", "method": "GET"}
    assert more("dmcp_http_request_seconds_count", **labels) == 5
    assert more("dmcp_http_request_seconds_bucket", **labels, le="+Inf") == 5
    assert more("dmcp_http_request_seconds_sum", **labels) > 0


def test_nothing_that_a_client_sends_becomes_a_label(site: Site) -> None:
    for path in ("/nope", "/static/nope.css", f"{API}/nope"):
        site.client.get(site.address + path)
    site.client.request("FIRST", f"{site.address}/healthz")
    before = scrape(site)
    for number in range(20):
        site.client.get(f"{site.address}/nope/{number}?x={number}")
        site.client.get(f"{site.address}/static/{number}.css")
        site.client.get(f"{site.address}{API}/restorations/{number:032x}/nope")
        site.client.request(f"ODD{number}", f"{site.address}/healthz")
    after = scrape(site)
    grown = {name for name, _ in after.keys() - before.keys()}
    assert not grown, grown
    assert value(after, "dmcp_http_requests_total", route="/healthz", method="other", status=405) == 21
    known = {*site.names.values(), *site.tokens.values(), "tiny", "else"}
    shown = {of for _, labels in after for _, of in labels}
    assert not known & shown


def test_restorations_by_state_with_one_query(site: Site) -> None:
    before = scrape(site)
    done, pending, stale = (site.upload(zipped({"a.png": png(i)})).json()["id"] for i in range(3))
    site.serve(done)
    site.registry.claim_request(stale)
    old = utc_now() - timedelta(hours=2)
    with site.registry.write() as session:
        session.get(Request, stale).heartbeat = old  # type: ignore[union-attr]
        session.get(Request, pending).created = old  # type: ignore[union-attr]
    asked = []

    def note(_: Any, __: Any, statement: str, *___: Any) -> None:
        if "FROM requests" in statement:
            asked.append(statement)

    engine = site.registry._engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        after = scrape(site)
    finally:
        event.remove(engine, "before_cursor_execute", note)
    assert len(asked) == 1
    grown = {
        s: value(after, "dmcp_restorations", state=s) - value(before, "dmcp_restorations", state=s) for s in STATES
    }
    assert grown == {"pending": 1, "running": 1, "done": 1, "failed": 0, "cancelled": 0}
    images = [value(samples, "dmcp_images", outcome="restored") for samples in (before, after)]
    assert images[1] - images[0] == 1
    assert value(after, "dmcp_stale_restorations") - value(before, "dmcp_stale_restorations") == 1
    assert 7200 <= value(after, "dmcp_queue_age_seconds") < 7300


def test_the_audit_log_and_its_anchor(site: Site) -> None:
    site.registry.add_user("one-more-entry")
    before = scrape(site)
    head = site.gateway.audit.head()
    assert value(before, "dmcp_audit_head") == head
    assert value(before, "dmcp_audit_unanchored_entries") == head
    assert value(before, "dmcp_audit_anchor_timestamp_seconds") == 0
    site.gateway.audit.checkpoint(site.private)
    site.registry.add_user("and-one-more")
    after = scrape(site)
    assert value(after, "dmcp_audit_unanchored_entries") == 1
    assert abs(value(after, "dmcp_audit_anchor_timestamp_seconds") - time.time()) < 60
    anchor = site.gateway.audit.home.anchor
    kept = anchor.read_bytes()
    anchor.write_bytes(b"{}")
    try:
        altered = scrape(site)
    finally:
        anchor.write_bytes(kept)
    assert value(altered, "dmcp_audit_anchor_readable") == 0
    assert value(scrape(site), "dmcp_audit_anchor_readable") == 1


def test_what_goes_on_in_the_process(site: Site) -> None:
    started = scrape(site)
    assert value(started, "dmcp_uploads_in_flight") == 0
    seen: list[Samples] = []

    def slowly() -> Iterator[bytes]:
        yield b"x" * 10
        time.sleep(0.2)
        seen.append(scrape(site))
        yield b"x" * 10

    with httpx.Client(timeout=120) as other:
        other.post(
            f"{site.address}{API}/restorations/upload",
            content=slowly(),
            headers=site.headers("user") | {"Content-Type": "application/zip"},
        )
    assert value(seen[0], "dmcp_uploads_in_flight") == 1
    now = scrape(site)
    assert value(now, "dmcp_uploads_in_flight") == 0
    assert value(now, "dmcp_workspace_bytes") == 0
    assert value(now, "dmcp_workspace_limit_bytes") == site.settings.gateway_space
    assert value(now, "dmcp_background_alive", thread="care") == 1
    assert value(now, "process_resident_memory_bytes") > 0
    build = {name: labels for name, labels in now if name == "dmcp_build_info"}
    assert ("version", version()) in build["dmcp_build_info"]


def test_each_application_counts_for_itself(site: Site, make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    from flows.gateway.app import create_app

    other = create_app(make_settings(), dispatch=False)
    assert metrics_of(other).registry is not metrics_of(site.app).registry
    assert metrics_of(other) is metrics_of(other)
    families = {metric.name for metric in metrics_of(other).registry.collect()}  # before it has started
    assert "dmcp_build_info" in families
    assert "dmcp_restorations" not in families


def test_not_ready_says_what_is_away_but_not_where_it_is(make_settings: Callable[..., Settings]) -> None:
    with running(make_settings()) as site:
        assert site.call("GET", "/readyz", "none").json() == {"status": "ok"}
        site.gateway.readiness.looked = None
        store = site.gateway.private
        site.gateway.private = ObjectStore("http://127.0.0.1:9", "us-east-1", "key", "secret", "b", attempts=1)
        answer = site.call("GET", "/readyz", "none")
        assert (answer.status_code, answer.json()["what"]) == (503, "The object store does not answer.")
        assert "127.0.0.1" not in answer.text
        assert site.call("GET", "/healthz", "none").status_code == 200
        site.gateway.private = store


def test_while_a_service_hangs_one_call_looks_and_the_others_are_told_what_was_found_last(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        running(make_settings()) as site,
        socket.create_server(("127.0.0.1", 0)) as silent,
        ThreadPoolExecutor(1) as pool,
    ):

        def ask() -> tuple[int, str]:
            answer = httpx.get(f"{site.address}/readyz", timeout=60)
            return answer.status_code, answer.json().get("what", "")

        assert ask() == (200, "")
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"  # it takes connections and never answers
        monkeypatch.setattr(
            site.gateway, "private", ObjectStore(endpoint, "us-east-1", "k", "s", "b", attempts=1, read_timeout=10)
        )
        monkeypatch.setattr(health, "FRESH_SECONDS", 0.0)
        first = pool.submit(ask)
        wait_for(site.gateway.readiness.looking.locked, bool)
        monkeypatch.setattr(health, "PATIENCE_SECONDS", 60.0)
        assert [ask() for _ in range(20)] == 20 * [(200, "")]
        monkeypatch.setattr(health, "PATIENCE_SECONDS", 0.0)
        assert ask() == (503, "A service does not answer.")
        assert not first.done()
        monkeypatch.setattr(health, "FRESH_SECONDS", 60.0)
        assert first.result() == (503, "The object store does not answer.")
        began = time.monotonic()
        assert ask() == (503, "The object store does not answer.")
        assert time.monotonic() - began < 9, "what went wrong is remembered as well"


def test_the_first_look_is_not_waited_for(make_settings: Callable[..., Settings]) -> None:
    with running(make_settings()) as site:
        with site.gateway.readiness.looking:
            answer = site.call("GET", "/readyz", "none")
            assert (answer.status_code, answer.json()["error"]) == (503, "ServiceError")
        assert site.call("GET", "/readyz", "none").status_code == 200


def test_a_call_that_needs_what_is_away_is_not_told_where_it_is(make_settings: Callable[..., Settings]) -> None:
    with running(make_settings()) as site:
        site.gateway.public = ObjectStore("http://127.0.0.1:9", "us-east-1", "key", "secret", "b", attempts=1)
        site.tokens["ann"] = site.registry.add_user("ann")
        site.registry.add_user("olga", "owner")
        site.registry.register_dataset("tiny", "olga")
        site.registry.grant("ann", "tiny")
        answer = site.call("GET", "datasets/tiny/versions", "ann")
        assert (answer.status_code, answer.json()["error"]) == (503, "ObjectStoreError")
        assert "127.0.0.1" not in answer.text and "minute" in answer.json()["cure"]
        assert site.call("GET", "/readyz", "none").status_code == 200
