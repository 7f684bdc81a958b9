"""Downloads: what came back, by address, stream and archive; only under a grant, and never without an audit entry."""

import hashlib
import io
import json
import socket
import tarfile
import tracemalloc
import zipfile
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.gateway import transfers
from flows.gateway.transfers import OutOfRange, part_of
from flows.gateway.workspace import PER_USER
from storage.database import utc_now
from storage.errors import EnvironmentFault, WorkspaceBusy
from storage.registry import Request
from tasks.request_index import RefusedFile, parse_report
from tests.flows.gateway.conftest import Site, png, zipped
from tests.flows.waiting import wait_for

FILES = {"a/one.png": png(1), "a/two.png": png(2), "three.png": png(3)}


@pytest.fixture
def done(site: Site) -> str:
    request_id = site.upload(zipped({**FILES, "notes.txt": b"x"})).json()["id"]
    site.serve(request_id)
    return str(request_id)


def test_the_archive_holds_own_names_and_the_report(site: Site, done: str) -> None:
    answer = site.call("GET", f"restorations/{done}/archive")
    assert answer.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        found = {name: archive.read(name) for name in archive.namelist()}
    assert {name: found[name] for name in FILES} == FILES
    assert set(found) == {*FILES, "report.json", "refused.csv"}
    assert b"notes.txt" in found["refused.csv"]
    report = site.call("GET", f"restorations/{done}/report").json()
    assert (report["images"], report["restored"]) == (4, 3)
    assert [refused["name"] for refused in report["refused"]] == ["notes.txt"]
    assert site.left_behind() == []


def test_of_very_many_refusals_the_first_are_named_and_all_are_counted(site: Site, done: str) -> None:
    key = str(site.registry.get_request(done).result)
    refusal = RefusedFile(name="00000000", error="OutOfScope", reason="00000000 is of another class.")
    report = parse_report(site.private.get_bytes(key))
    report = report.model_copy(update={"refused": [refusal], "unnamed": {"OutOfScope": 41, "AlteredImage": 1}})
    site.private.put_bytes(key, report.model_dump_json().encode())
    told = site.call("GET", f"restorations/{done}/report").json()
    assert [one["name"] for one in told["refused"]] == ["notes.txt", "a/one.png"]
    assert told["images"] - told["restored"] == 44
    assert told["kinds"] == {"OutOfScope": 42, "InputError": 1, "AlteredImage": 1}
    assert told["unnamed"] == {"OutOfScope": 41, "AlteredImage": 1}
    with zipfile.ZipFile(io.BytesIO(site.call("GET", f"restorations/{done}/archive").content)) as archive:
        assert json.loads(archive.read("report.json"))["unnamed"] == told["unnamed"]
        assert b',OutOfScope,"and 41 more' in archive.read("refused.csv")


def test_a_published_version_comes_back_as_shards_with_a_manifest(site: Site) -> None:
    made = site.call("POST", "restorations", json={"dataset": "tiny", "subset": 3 * ["train-000001.tar"]})
    if made.status_code == 404:
        pytest.skip(made.text)
    request_id = made.json()["id"]
    assert site.call("GET", "restorations").json()["items"][0] == made.json()
    with site.registry.read() as session:
        assert session.get_one(Request, request_id).subset == ["train-000001.tar"]
    site.serve(request_id)
    with zipfile.ZipFile(io.BytesIO(site.call("GET", f"restorations/{request_id}/archive").content)) as archive:
        names = archive.namelist()
        assert "manifest.json" in names
        shard = next(name for name in names if name.endswith(".tar"))
        with tarfile.open(fileobj=io.BytesIO(archive.read(shard))) as tar:
            assert sum(name.endswith(".png") for name in tar.getnames()) == 4


def test_shards_by_address_and_by_stream(site: Site, done: str) -> None:
    page = site.call("GET", f"restorations/{done}/results").json()
    assert [entry["name"] for entry in page["items"]] == ["result-000000.tar"]
    entry = page["items"][0]
    by_address = httpx.get(entry["url"]).content
    streamed = site.call("GET", f"restorations/{done}/results/{entry['name']}").content
    assert by_address == streamed
    assert hashlib.sha256(streamed).hexdigest() == entry["sha256"]
    assert len(streamed) == entry["bytes"]
    assert site.call("GET", f"restorations/{done}/results/result-000001.tar").status_code == 404


@pytest.mark.parametrize("what", ["results", "results/result-000000.tar", "archive"])
def test_every_way_is_on_record_before(site: Site, done: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And without a record there is no data."""
    answer = site.call("GET", f"restorations/{done}/{what}")
    assert answer.status_code == 200
    entry = site.gateway.audit.entries(request_id=done, action="download")[-1]
    assert entry.actor == site.names["user"]
    assert "X-Amz" not in entry.details

    def broken(*_: object, **__: object) -> None:
        raise EnvironmentFault("the disk is full")

    monkeypatch.setattr(site.gateway.audit, "record", broken)
    answer = site.call("GET", f"restorations/{done}/{what}")
    assert (answer.status_code, answer.json()["error"]) == (503, "EnvironmentFault")
    assert "url" not in answer.text


@pytest.mark.parametrize("what", ["results", "results/result-000000.tar", "archive"])
def test_a_revoked_grant_ends_downloads_and_another_one_opens_them(site: Site, what: str) -> None:
    """The images were restored under a grant; what counts is whether one holds when they leave."""
    site.registry.accept_terms(site.id_of("other"), "tiny", 1)
    grant = site.registry.grant(site.names["other"], "tiny")
    request_id = site.upload(zipped(FILES), caller="other").json()["id"]
    site.serve(request_id)
    where = f"restorations/{request_id}/{what}"
    assert site.call("GET", where, "other").status_code == 200
    site.registry.revoke_grant(grant.id)
    answer = site.call("GET", where, "other")
    assert (answer.status_code, answer.json()["error"]) == (403, "GrantRevoked")
    site.registry.grant(site.names["other"], "tiny", classes=["cat"])  # covers less than the one that is gone
    assert site.call("GET", where, "other").status_code == 403
    again = site.registry.grant(site.names["other"], "tiny")
    assert site.call("GET", where, "other").status_code == 200
    site.registry.revoke_grant(again.id)


def test_nothing_is_there_before_it_is_done(site: Site) -> None:
    request_id = site.upload(png(), "image/png").json()["id"]
    for what in ("results", "results/result-000000.tar", "archive", "report"):
        answer = site.call("GET", f"restorations/{request_id}/{what}")
        assert (answer.status_code, answer.json()["error"]) == (409, "Conflict")


def test_a_result_that_is_gone_is_a_fault_and_no_empty_download(site: Site, done: str) -> None:
    site.private.delete(f"requests/{done}/attempt-1/result-000000.tar")
    for what in ("results/result-000000.tar", "archive"):
        answer = site.call("GET", f"restorations/{done}/{what}")
        assert (answer.status_code, answer.json()["error"]) == (503, "ServiceError")
    assert site.left_behind() == []


def test_an_archive_takes_two_files_on_disk_at_most_and_no_more_space_than_it_reserved(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    request_id = site.call("POST", "restorations", json={"dataset": "tiny"}).json()["id"]
    site.serve(request_id)
    shards = site.call("GET", f"restorations/{request_id}/results").json()["items"]
    assert len(shards) == 3
    lying: list[int] = []
    get_file = site.private.get_file

    def seen_before(key: str, path: Path, *more: Any) -> None:
        lying.append(sum(file.stat().st_size for file in path.parent.iterdir()))
        get_file(key, path, *more)

    monkeypatch.setattr(site.private, "get_file", seen_before)
    answer = site.call("GET", f"restorations/{request_id}/archive")
    assert answer.status_code == 200
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        assert sum(name.endswith(".tar") for name in archive.namelist()) == 3
    assert lying == [0, 0, 0], "what was handed out is gone before the next is fetched"


def test_an_archive_holds_one_image_at_a_time_in_memory(site: Site) -> None:
    files = {f"{i}.png": png(i, 1024) for i in range(8)}
    data = zipped(files)
    address = site.call("POST", "uploads", json={"bytes": len(data)}).json()
    httpx.put(address["url"], content=data).raise_for_status()
    request_id = site.call("POST", "restorations", json={"upload": address["id"]}).json()["id"]
    site.serve(request_id)
    where = f"{site.address}/api/v1/restorations/{request_id}/archive"
    tracemalloc.start()
    try:
        with site.client.stream("GET", where, headers=site.headers("user")) as answer:
            size = sum(len(piece) for piece in answer.iter_raw())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size > len(data) > 24_000_000
    assert peak < len(data) / 1.5


# --- in parts --------------------------------------------------------------------------------------------------------


def test_a_part_of_a_shard(site: Site, done: str) -> None:
    where = f"restorations/{done}/results/result-000000.tar"
    whole = site.call("GET", where)
    content, etag = whole.content, whole.headers["etag"]
    assert etag == f'"{hashlib.sha256(content).hexdigest()}"'
    assert whole.headers["accept-ranges"] == "bytes"
    size = len(content)
    for wanted, first, last in (
        ("bytes=0-0", 0, 0),
        ("bytes=100-", 100, size - 1),
        (f"bytes=512-{10 * size}", 512, size - 1),
        ("bytes=-1000", size - 1000, size - 1),
    ):
        for unless in ({}, {"If-Range": etag}):
            answer = site.call("GET", where, headers={"Range": wanted, **unless})
            assert (answer.status_code, answer.content) == (206, content[first : last + 1]), wanted
            assert answer.headers["content-range"] == f"bytes {first}-{last}/{size}"
            assert answer.headers["content-length"] == str(last - first + 1)
    assert json.loads(site.gateway.audit.entries(request_id=done, action="download")[-1].details)["bytes"] == 1000
    changed = site.call("GET", where, headers={"Range": "bytes=100-", "If-Range": '"another"'})
    assert (changed.status_code, changed.content) == (200, content)
    behind = site.call("GET", where, headers={"Range": f"bytes={size}-"})
    assert (behind.status_code, behind.headers["content-range"], behind.content) == (416, f"bytes */{size}", b"")


@given(text=st.text(st.sampled_from("bytes=-,0123456789 x"), max_size=20))
def test_any_range_is_a_part_or_all_or_none(text: str) -> None:
    for wanted in (text, f"bytes={text}"):
        try:
            part = part_of(100, wanted, None, '"x"')
        except OutOfRange:
            continue
        assert part is None or 0 <= part.first <= part.last < 100
    assert part_of(100, f"bytes={text}", '"y"', '"x"') is None


# --- slowly ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["archive", "results/result-000000.tar"])
def test_a_download_that_nobody_takes_ends(site: Site, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """More than the buffers on the way hold; its seat and its space are free afterwards."""
    data = zipped({f"{i}.png": png(i, 1024) for i in range(8)})
    address = site.call("POST", "uploads", json={"bytes": len(data)}).json()
    httpx.put(address["url"], content=data).raise_for_status()
    request_id = site.call("POST", "restorations", json={"upload": address["id"]}).json()["id"]
    site.serve(request_id)
    monkeypatch.setattr(transfers, "IDLE_SECONDS", 0.2)
    host, _, port = site.address.removeprefix("http://").partition(":")
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((host, int(port)))
        token = site.headers("user")["Authorization"]
        path = f"/api/v1/restorations/{request_id}/{what}"
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\n\r\n".encode())
        assert connection.recv(12) == b"HTTP/1.1 200"
        wait_for(site.gateway.uploads.seats.total, lambda seats: seats == 0)
        wait_for(site.left_behind, lambda left: not left)
        assert site.gateway.uploads.taken == 0


def test_downloads_at_once_are_counted(site: Site, done: str) -> None:
    with ExitStack() as stack:
        for _ in range(PER_USER):
            stack.enter_context(site.gateway.uploads.seat(site.id_of("user")))
        for what in ("archive", "results/result-000000.tar", "report", "index"):
            answer = site.call("GET", f"restorations/{done}/{what}")
            assert (answer.status_code, answer.json()["error"]) == (429, "TooManyRequests")
    for what in ("archive", "report", "index"):
        assert site.call("GET", f"restorations/{done}/{what}").status_code == 200


# --- over, and again -------------------------------------------------------------------------------------------------


def test_what_was_removed_says_so_and_what_to_do(site: Site, done: str) -> None:
    assert site.registry.begin_removal(done, utc_now() + timedelta(days=1))
    shown = site.call("GET", f"restorations/{done}").json()
    assert shown["state"] == "done" and shown["removed"] is not None
    for what in ("results", "results/result-000000.tar", "archive", "report", "index"):
        answer = site.call("GET", f"restorations/{done}/{what}")
        assert (answer.status_code, answer.json()["error"]) == (410, "Removed"), what
        assert "removed on 2" in answer.json()["what"] and "Hand the images in again" in answer.json()["cure"]


def test_a_failed_restoration_is_tried_again(site: Site) -> None:
    request_id = site.upload(png(4), "image/png").json()["id"]
    again = f"restorations/{request_id}/retry"
    assert site.call("POST", again).json()["state"] == "pending", "one that waits goes on waiting"
    attempt = site.registry.claim_request(request_id).attempt
    assert site.call("POST", again).json()["state"] == "running"
    site.registry.set_request_state(request_id, "failed", message="ServiceError: x", attempt=attempt)
    made = site.call("POST", again)
    assert (made.status_code, made.json()["state"], made.json()["message"]) == (200, "pending", None)
    with pytest.raises(WorkspaceBusy):
        site.registry.claim_request(request_id)
        site.registry.set_request_state(request_id, "done", attempt=attempt)
    site.registry.set_request_state(request_id, "failed", message="ServiceError: x")
    site.call("POST", again)
    site.serve(request_id)
    assert site.call("GET", f"restorations/{request_id}/archive").status_code == 200
    assert site.actions(request_id).count("request.retry") == 2
    refused = site.call("POST", again)
    assert (refused.status_code, refused.json()["error"]) == (409, "Conflict")


def test_what_can_not_be_tried_again(site: Site) -> None:
    cancelled, removed, revoked = (site.upload(png(i), "image/png").json()["id"] for i in range(3))
    site.registry.cancel_request(cancelled)
    for request_id in (removed, revoked):
        site.registry.set_request_state(request_id, "failed")
    site.registry.begin_removal(removed, utc_now() + timedelta(days=1))
    assert site.call("POST", f"restorations/{cancelled}/retry").status_code == 409
    assert site.call("POST", f"restorations/{removed}/retry").status_code == 410
    (grant,) = [g for g in site.registry.list_grants(site.names["user"], "tiny") if g.revoked is None]
    site.registry.revoke_grant(grant.id)
    answer = site.call("POST", f"restorations/{revoked}/retry")
    assert (answer.status_code, answer.json()["error"]) == (403, "GrantRevoked")
    site.registry.grant(site.names["user"], "tiny")
    assert site.call("POST", f"restorations/{revoked}/retry").status_code == 200
