"""Uploads of every bad kind: a clear answer of the 4xx, and nothing left on disk or in the bucket."""

import asyncio
import io
import json
import socket
import struct
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flows.gateway import restorations, uploads
from flows.gateway.idempotency import only_one, started_before
from flows.gateway.transfers import PACE_BYTES, Pace
from flows.sweeper import sweep
from storage.database import utc_now
from storage.errors import Conflict
from storage.registry import Upload
from storage.registry_models import Submission
from tasks.request import fetch_index
from tests.flows.gateway.conftest import API, Site, png, zipped
from tests.flows.waiting import LONGEST_SECONDS, wait_for


def tarred(files: dict[str, bytes], **attributes: object) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            for key, value in attributes.items():
                setattr(member, key, value)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def bomb() -> bytes:
    return zipped({f"{i}.png": b"\x89PNG\r\n\x1a\n" + bytes(20_000_000) for i in range(3)}, zipfile.ZIP_DEFLATED)


def overlapping() -> bytes:
    """Many directory entries for one and the same packed file, which unpacks to much each time."""
    data = zipped({"a.png": b"\x89PNG\r\n\x1a\n" + bytes(900_000)}, zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        start = archive.start_dir
    entry = data[start : data.index(b"PK\x05\x06")]
    count = 2000
    entries = b"".join(entry[:46] + b"%05d" % i + entry[51:] for i in range(count))
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, len(entries), start, 0)
    return data[:start] + entries + end


def liar() -> bytes:
    """A zip whose only member says that it has 4 GB."""
    data = bytearray(zipped({"a.png": png()}))
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = data.index(signature) + offset
        data[at : at + 4] = struct.pack("<L", 0xFFFFFFF0)
    return bytes(data)


def png_bomb() -> bytes:
    """A PNG that says it has 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))

    head = struct.pack(">LLBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes(100_000)))
        + chunk(b"IEND", b"")
    )


BAD: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "text": lambda: b"hello",
    "a JPEG": lambda: b"\xff\xd8\xff" + bytes(100),
    "the head of a zip": lambda: b"PK\x03\x04",
    "half a zip": lambda: zipped({f"{i}.png": png(i) for i in range(3)})[:500],
    "a zip of nothing": lambda: zipped({}),
    "a zip of text": lambda: zipped({"a.txt": b"hello", "b.png": b"no"}),
    "a zip bomb": bomb,
    "an overlapping zip": overlapping,
    "a zip that lies": liar,
    "only names that lead out": lambda: zipped({"../../a.png": png(), "/etc/b.png": png(), "..\\c.png": png()}),
    "a tar of names that lead out": lambda: tarred({"../a.png": png(), "/b.png": png()}),
    "a tar of links": lambda: tarred({"a.png": b""}, type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "half a tar": lambda: tarred({"a.png": png()})[:300],
    "a compressed tar": lambda: zlib.compress(tarred({"a.png": png()})),
    "the head of a PNG": lambda: b"\x89PNG",
    "a PNG bomb": png_bomb,
}


@pytest.mark.parametrize("kind", BAD)
def test_what_can_not_be_used_is_refused_and_leaves_nothing(site: Site, kind: str) -> None:
    data = BAD[kind]()
    assert len(data) < 4 << 20
    before = {info.key for info in site.private.list()}
    answer = site.upload(data)
    assert answer.status_code in (400, 413), answer.text
    assert answer.json()["error"] in ("InputError", "TooLarge", "UnsupportedImage")
    assert str(site.settings.home) not in answer.text
    assert site.left_behind() == []
    assert {info.key for info in site.private.list()} == before
    assert site.gateway.uploads.taken == 0


@given(data=st.binary(max_size=2000), head=st.sampled_from([b"", b"PK\x03\x04", b"\x89PNG\r\n\x1a\n"]))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes(site: Site, head: bytes, data: bytes) -> None:
    answer = site.upload(head + data)
    assert answer.status_code in (201, 400)  # only the worker reads a PNG further than its signature
    assert answer.status_code == 400 or head.startswith(b"\x89PNG")
    assert site.left_behind() == []


@given(where=st.integers(0, 10_000), value=st.integers(0, 255), cut=st.integers(1, 10_000))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_zips(site: Site, where: int, value: int, cut: int) -> None:
    data = bytearray(zipped({f"class/{i}.png": png(i) for i in range(2)}))
    data[where % len(data)] = value
    del data[max(len(data) - cut % len(data), 1) if cut % 3 == 0 else len(data) :]
    assert site.upload(bytes(data)).status_code in (201, 400)
    assert site.left_behind() == []


def test_bad_members_are_refused_one_by_one_and_the_rest_is_taken(site: Site) -> None:
    answer = site.upload(
        zipped({"good.png": png(), "../../evil.png": png(1), "a.txt": b"x"}), params={"filename": "my.zip"}
    )
    assert answer.status_code == 201
    made = answer.json()
    assert (made["source"], made["images"], made["state"]) == ("my.zip", 3, "pending")
    index = fetch_index(site.private, site.registry.get_request(made["id"]))
    assert list(index.names.values()) == ["good.png"]
    assert {refused.name for refused in index.refused} == {"../../evil.png", "a.txt"}


def test_a_single_png_keeps_its_name(site: Site) -> None:
    for name, kept in (("cat.png", "cat.png"), ("../cat.png", "cat.png"), ("", "upload")):
        made = site.upload(png(), "image/png", params={"filename": name}).json()
        index = fetch_index(site.private, site.registry.get_request(made["id"]))
        assert list(index.names.values()) == [kept]


@pytest.mark.parametrize("kind", ["text/html", "multipart/form-data; boundary=x", "application/json", "x", ""])
def test_other_content_types(site: Site, kind: str) -> None:
    answer = site.upload(zipped({"a.png": png()}), kind)
    assert (answer.status_code, answer.json()["error"]) == (415, "WrongMediaType")


def test_an_upload_beyond_the_limit(site: Site) -> None:
    """By what it says, and, where it says nothing, by what comes."""
    limit = site.settings.upload_limit
    said = site.upload(bytes(limit + 1))
    streamed = site.call(
        "POST",
        "restorations/upload",
        content=(bytes(1 << 20) for _ in range(limit // (1 << 20) + 2)),
        headers={"Content-Type": "application/zip"},
    )
    for answer in (said, streamed):
        assert (answer.status_code, answer.json()["error"]) == (413, "TooLarge")
    assert site.left_behind() == []


def raw(site: Site, head: str, body: bytes) -> tuple[socket.socket, bytes]:
    """Send a request by hand."""
    host, _, port = site.address.removeprefix("http://").partition(":")
    connection = socket.create_connection((host, int(port)), timeout=60)
    token = site.headers("user")["Authorization"]
    lines = f"POST {API}/restorations/upload HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\n{head}\r\n"
    connection.sendall(lines.encode() + body)
    return connection, body


def test_four_gigabytes_are_refused_before_they_come(site: Site) -> None:
    connection, _ = raw(site, "Content-Type: application/zip\r\nContent-Length: 4294967296\r\n", b"PK")
    assert connection.recv(100).startswith(b"HTTP/1.1 413")
    connection.close()


def test_a_client_that_leaves_half_way_leaves_nothing(site: Site) -> None:
    data = zipped({f"{i}.png": png(i) for i in range(100)})
    connection, _ = raw(site, f"Content-Type: application/zip\r\nContent-Length: {len(data)}\r\n", data[:-1000])
    wait_for(site.left_behind)
    connection.close()
    wait_for(site.left_behind, lambda left: not left)
    wait_for(lambda: site.gateway.uploads.taken, lambda taken: taken == 0)


def test_the_time_for_what_is_due_runs_on_while_a_byte_comes_now_and_then() -> None:
    assert asyncio.run(_trickled())


async def _trickled() -> bool:
    pace = Pace(0.05)
    for _ in range(PACE_BYTES - 1):
        try:
            async with pace.waiting():
                await asyncio.sleep(0.001)
        except TimeoutError:
            return True
        pace.came(1)
    return False


def test_who_trickles_is_not_waited_for(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some byte comes now and then, and never enough of them: the seat is given up all the same."""
    monkeypatch.setattr(restorations, "UPLOAD_SECONDS", 0.3)
    stop = threading.Event()
    connection, _ = raw(site, "Content-Type: application/zip\r\nContent-Length: 1000000\r\n", b"PK")
    connection.settimeout(LONGEST_SECONDS)

    def trickle() -> None:
        with suppress(OSError):
            while not stop.wait(0.02):
                connection.sendall(b"x")

    thread = threading.Thread(target=trickle)
    thread.start()
    try:
        assert connection.recv(100).startswith(b"HTTP/1.1 408")
    finally:
        stop.set()
        thread.join()
        connection.close()
    wait_for(site.left_behind, lambda left: not left)
    wait_for(site.gateway.uploads.seats.total, lambda seats: seats == 0)


def test_one_user_does_not_take_all_the_space(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    data = zipped({f"{i}.png": png(i) for i in range(3)})
    monkeypatch.setattr(site.gateway.uploads, "share", 1000)
    answer = site.upload(data)
    assert (answer.status_code, answer.json()["error"]) == (429, "TooManyRequests")
    assert "one user" in answer.json()["what"]
    assert site.left_behind() == []
    assert not site.gateway.uploads.taken_by


def test_no_space_is_told_at_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site.gateway.uploads, "most", 1000)
    answer = site.upload(zipped({f"{i}.png": png(i) for i in range(3)}))
    assert (answer.status_code, answer.json()["error"]) == (429, "TooManyRequests")
    assert int(answer.headers["retry-after"]) > 0
    assert site.left_behind() == []


def test_who_may_have_nothing_uploads_nothing(site: Site) -> None:
    answer = site.upload(zipped({"a.png": png()}), caller="other")
    assert (answer.status_code, answer.json()["error"]) == (403, "NoGrant")
    assert site.left_behind() == []


# --- presigned -------------------------------------------------------------------------------------------------------


def test_a_large_upload_goes_straight_to_the_bucket(site: Site) -> None:
    data = zipped({"a.png": png(5), "b.png": png(6)})
    made = site.call("POST", "uploads", json={"bytes": len(data)}).json()
    again = {"json": {"upload": made["id"], "filename": "big.zip"}}
    assert site.call("POST", "restorations", **again).status_code == 404  # nothing is there yet
    assert httpx.put(made["url"], content=data + b"x").status_code == 403  # another size than was asked for
    assert httpx.put(made["url"], content=data).status_code == 200
    assert site.call("POST", "restorations", "owner", **again).status_code == 404  # another's upload
    started = site.call("POST", "restorations", **again)
    assert started.status_code == 201
    assert (started.json()["images"], started.json()["source"]) == (2, "big.zip")
    assert list(site.private.list("uploads/")) == []
    assert site.left_behind() == []


def test_the_gateway_itself_removes_what_is_over(site: Site) -> None:
    made = site.call("POST", "uploads", json={"bytes": 3}).json()
    httpx.put(made["url"], content=b"abc").raise_for_status()
    background = site.gateway.background
    assert background is not None
    background._clean()
    assert site.private.exists(f"uploads/{site.id_of('user')}/{made['id']}")
    long_ago = utc_now() - timedelta(days=site.settings.uploads_days + 1)
    with site.registry.write() as session:
        row = session.get_one(Upload, made["id"])
        row.created = row.expires = long_ago
    background._clean()
    assert not site.private.exists(f"uploads/{site.id_of('user')}/{made['id']}")


def test_a_presigned_upload_beyond_the_limit(site: Site) -> None:
    answer = site.call("POST", "uploads", json={"bytes": site.settings.upload_limit_presigned + 1})
    assert (answer.status_code, answer.json()["error"]) == (413, "TooLarge")


def test_addresses_are_for_who_holds_a_grant_and_on_record(site: Site) -> None:
    refused = site.call("POST", "uploads", "other", json={"bytes": 10})
    assert (refused.status_code, refused.json()["error"]) == (403, "NoGrant")
    made = site.call("POST", "uploads", json={"bytes": 10}).json()
    (entry,) = [e for e in site.gateway.audit.entries(action="upload.create") if made["id"] in e.details]
    assert (entry.actor, entry.subject) == (site.names["user"], site.names["user"])
    assert json.loads(entry.details)["bytes"] == 10
    assert "X-Amz" not in entry.details


def test_addresses_are_counted_whether_anything_was_put_there_or_not(site: Site) -> None:
    """By number, and by what they would take together; those of others do not count."""
    site.registry.accept_terms(site.id_of("other"), "tiny", 1)
    grant = site.registry.grant(site.names["other"], "tiny")
    kept = []
    for _ in range(uploads.WAITING):
        answer = site.call("POST", "uploads", "other", json={"bytes": 10})
        assert answer.status_code == 201, answer.text
        kept.append(answer.json()["id"])
    one_more = site.call("POST", "uploads", "other", json={"bytes": 10})
    assert (one_more.status_code, one_more.json()["error"]) == (429, "TooManyRequests")
    for upload_id in kept:
        site.registry.forget_upload(upload_id)
    largest = {"json": {"bytes": site.settings.upload_limit_presigned}}
    codes = [site.call("POST", "uploads", "other", **largest).status_code for _ in range(uploads.WAITING_LARGEST + 1)]
    assert codes == [201] * uploads.WAITING_LARGEST + [429]
    assert site.call("POST", "uploads", json={"bytes": 10}).status_code == 201
    site.registry.revoke_grant(grant.id)


def test_an_upload_is_restored_once_and_its_address_counts_on(site: Site) -> None:
    data = zipped({"a.png": png(7)})
    made = site.call("POST", "uploads", json={"bytes": len(data)}).json()
    httpx.put(made["url"], content=data).raise_for_status()
    assert site.call("POST", "restorations", json={"upload": made["id"]}).status_code == 201
    httpx.put(made["url"], content=data).raise_for_status()  # the address is good still
    assert site.call("POST", "restorations", json={"upload": made["id"]}).status_code == 404
    assert made["id"] in {upload.id for upload in site.registry.list_uploads(site.id_of("user"))}
    later = utc_now() + timedelta(seconds=site.settings.presigned_seconds + 1)
    with site.registry.write() as session:
        session.get(Upload, made["id"]).expires = utc_now() - timedelta(seconds=1)  # type: ignore[union-attr]
    assert sweep(site.settings, site.registry, site.private, later).uploads >= 1
    assert [info.key for info in site.private.list("uploads/") if made["id"] in info.key] == []


# --- again -----------------------------------------------------------------------------------------------------------


def test_the_same_call_again_starts_nothing_new(site: Site) -> None:
    key = {"Content-Type": "image/png", "Idempotency-Key": "the-very-same"}
    made = [
        site.call("POST", "restorations/upload", content=png(9), headers=key),
        site.call("POST", "restorations/upload", content=png(9), headers=key),
        site.call("POST", "restorations", json={"dataset": "tiny"}, headers={"Idempotency-Key": "the-very-same"}),
    ]
    assert {answer.status_code for answer in made} == {201}
    assert len({answer.json()["id"] for answer in made}) == 1
    other = site.call("POST", "restorations", json={"dataset": "tiny"}, headers={"Idempotency-Key": "another-one"})
    assert other.json()["id"] != made[0].json()["id"]


@pytest.mark.parametrize("path", ["restorations/upload", "restorations"])
def test_a_second_try_that_comes_while_the_first_ends_gets_what_it_started(
    site: Site, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """It asked before the first was recorded, and was let in after the first had ended."""
    headers = {"Idempotency-Key": f"close-{path[-6:]}"}
    body: dict[str, Any] = {"json": {"dataset": "tiny"}, "headers": headers}
    if path.endswith("upload"):
        body = {"content": png(9), "headers": headers | {"Content-Type": "image/png"}}
    answers: list[httpx.Response] = []

    def asked_early(*args: Any) -> Any:
        found = started_before(*args)
        monkeypatch.setattr(restorations, "started_before", started_before)
        answers.append(site.call("POST", path, **body))
        return found

    monkeypatch.setattr(restorations, "started_before", asked_early)
    answers.append(site.call("POST", path, **body))
    assert [answer.status_code for answer in answers] == [201, 201]
    assert answers[0].json()["id"] == answers[1].json()["id"]


def test_another_gateways_try_is_waited_for_and_one_that_was_killed_is_not(site: Site) -> None:
    """What is under way stands in the registry, which all gateways share."""
    key = {"Idempotency-Key": "from-elsewhere"}
    request_id = restorations.restoration_id(site.registry.get_user(site.names["user"]), "from-elsewhere")
    assert request_id is not None
    with only_one(site.registry, request_id):  # as another gateway does
        answer = site.call("POST", "restorations", json={"dataset": "tiny"}, headers=key)
        assert (answer.status_code, answer.json()["error"]) == (409, "Conflict")
        with pytest.raises(Conflict), only_one(site.registry, request_id):
            pass
    assert site.registry.begin_submission(request_id, "killed", 0)
    made = site.call("POST", "restorations", json={"dataset": "tiny"}, headers=key)
    assert (made.status_code, made.json()["id"]) == (201, request_id)
    assert site.registry.begin_submission(request_id, "fresh", 60), "nothing of it is left"
    site.registry.end_submission(request_id, "other holder")
    assert not site.registry.begin_submission(request_id, "another", 60)
    site.registry.end_submission(request_id, "fresh")


def test_who_was_slower_gets_what_the_faster_started(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two were let in, because the first gateway stood still: the registry takes one request of an id."""
    headers = {"Idempotency-Key": "both-at-once"}
    user = site.registry.get_user(site.names["user"])
    request_id = restorations.restoration_id(user, "both-at-once")
    real = restorations.start_published

    def slow(*args: Any, **more: Any) -> str:
        with monkeypatch.context() as patch:
            patch.setattr(restorations, "start_published", real)
            site.registry.end_submission(str(request_id), _holder(site, str(request_id)))
            faster = site.call("POST", "restorations", json={"dataset": "tiny"}, headers=headers)
            assert faster.status_code == 201, faster.text
        return real(*args, **more)

    monkeypatch.setattr(restorations, "start_published", slow)
    answer = site.call("POST", "restorations", json={"dataset": "tiny"}, headers=headers)
    assert (answer.status_code, answer.json()["id"]) == (201, request_id)
    assert fetch_index(site.private, site.registry.get_request(str(request_id))).images > 0


def _holder(site: Site, request_id: str) -> str:
    with site.registry.read() as session:
        return session.get_one(Submission, request_id).holder
