"""Requests, from a requester's files to the object store and back, over the real server and the real registry."""

import csv
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from storage.errors import (
    BadToken,
    CorruptManifest,
    CorruptShard,
    GrantExpired,
    GrantRevoked,
    InputError,
    NoGrant,
    NotFound,
    UsageError,
)
from storage.manifest import verify_variant
from storage.objects import MAX_IN_MEMORY, ObjectStore
from storage.png import decode_png, encode_png
from storage.publication import publish
from storage.registry import Grant, Registry
from storage.shards import Sample, read_shard, write_shard
from tasks.request import (
    RefusedFile,
    fetch_index,
    fetch_input,
    fetch_results,
    make_report,
    put_report,
    put_result,
    result_name,
    submit_request,
    wanted,
)
from tasks.request_index import NAMED_REFUSALS, RequestIndex, parse_report
from tests.services import make_variant

RANDOM = np.random.default_rng(7)


def png() -> bytes:
    return encode_png(RANDOM.integers(0, 256, (16, 16, 3), dtype=np.uint8))


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with Registry(f"sqlite:///{tmp_path / 'registry.db'}") as registry:
        yield registry


@pytest.fixture
def token(registry: Registry) -> str:
    token = registry.add_user("ann")
    registry.grant("ann", "tiny")
    return token


def invert(sample: Sample) -> Sample:
    """Stands where restoration is in these tests: another image under the same key."""
    return Sample(sample.key, encode_png(255 - decode_png(sample.png, sample.key)), sample.label)


def serve(
    registry: Registry,
    store: ObjectStore,
    request_id: str,
    work: Path,
    public: ObjectStore | None = None,
    refuse: int = 0,
    change: Callable[[Sample], Sample] = invert,
) -> None:
    """Serve a request as a flow does; the first `refuse` samples are refused."""
    request = registry.claim_request(request_id)
    index = fetch_index(store, request)
    infos, keys, refused = [], [], []
    for number, entry in enumerate(index.shards):
        samples = wanted(index, read_shard(fetch_input(store, request_id, index, entry, work, public)))
        bad = samples[: max(0, refuse - len(refused))]
        refused += [RefusedFile(name=s.key, error="AlteredImage", reason=f"{s.key} was altered.") for s in bad]
        done = [change(sample) for sample in samples[len(bad) :]]
        infos.append(write_shard(work / result_name(number), done))
        keys += [sample.key for sample in done]
        if done:
            put_result(store, request_id, work, infos[-1])
    report = make_report(request_id, index, infos, keys, refused)
    result = put_report(store, report)
    registry.set_request_state(request_id, "done", restored=report.restored, refused=report.refusals, result=result)


def test_a_folder_goes_there_and_back(tmp_path: Path, registry: Registry, store: ObjectStore, token: str) -> None:
    images = {f"{n % 3}/my.image.{n}.png": png() for n in range(25)}
    for name, data in images.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(data)
    (tmp_path / "in" / "notes.txt").write_text("hello")
    request_id = submit_request(registry, store, token, tmp_path / "in", work=tmp_path / "work", shard_size=10)
    assert not list((tmp_path / "work").iterdir())
    request = registry.get_request(request_id)
    assert (request.kind, request.state, request.images, request.dataset) == ("upload", "pending", 26, None)
    with pytest.raises(NotFound, match="no result"):
        fetch_results(store, request_id, tmp_path / "out", tmp_path / "work")

    serve(registry, store, request_id, tmp_path / "work", refuse=2)
    names = {o.key.removeprefix(f"requests/{request_id}/") for o in store.list(f"requests/{request_id}/")}
    assert names == {"input.json", "report.json", *(f"{k}-00000{n}.tar" for k in ("input", "result") for n in range(3))}
    unpacked = fetch_results(store, request_id, tmp_path / "out", tmp_path / "work")
    gone = {refused.name: refused for refused in unpacked.refused}
    lost = sorted(images)[:2]
    assert unpacked.restored == 23 and set(gone) == {"notes.txt", *lost}
    assert gone[lost[0]].error == "AlteredImage" and gone[lost[0]].reason == f"{lost[0]} was altered."
    for name, data in images.items():
        if name not in gone:
            restored = decode_png((tmp_path / "out" / name).read_bytes(), name)
            assert np.array_equal(restored, 255 - decode_png(data, name))
    with (tmp_path / "out" / "refused.csv").open(newline="") as file:
        assert {row["name"]: row["error"] for row in csv.DictReader(file)} == {n: r.error for n, r in gone.items()}
    summary = json.loads((tmp_path / "out" / "report.json").read_bytes())
    assert (summary["images"], summary["restored"], len(summary["refused"])) == (26, 23, 3)
    files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert files == {*images, "refused.csv", "report.json"} - set(lost)


def test_a_variant_comes_back_as_a_variant(tmp_path: Path, registry: Registry, store: ObjectStore, token: str) -> None:
    before = make_variant(tmp_path / "in", shards=3)
    request_id = submit_request(registry, store, token, tmp_path / "in", work=tmp_path / "work")
    serve(registry, store, request_id, tmp_path / "work", refuse=5)
    unpacked = fetch_results(store, request_id, tmp_path / "out", tmp_path / "work")
    after = verify_variant(tmp_path / "out")
    assert after.classes == before.classes
    assert [(s.name, s.samples) for s in after.shards] == [("train-000001.tar", 3), ("train-000002.tar", 4)]
    assert [refused.name for refused in unpacked.refused] == [
        *(f"train-000000.tar/0000000{i}.png" for i in range(4)),
        "train-000001.tar/00100000.png",
    ]
    for name, first in (("train-000001.tar", 1), ("train-000002.tar", 0)):
        expected = [invert(s) for s in read_shard(tmp_path / "in" / name)]
        assert read_shard(tmp_path / "out" / name) == expected[first:]


def test_a_whole_variant_comes_back_with_the_bytes_that_were_handed_in(
    tmp_path: Path, registry: Registry, store: ObjectStore, token: str
) -> None:
    """Served by a flow that changes nothing, result shards are the input's, byte for byte."""
    before = make_variant(tmp_path / "in", shards=2)
    request_id = submit_request(registry, store, token, tmp_path / "in", work=tmp_path / "work")
    serve(registry, store, request_id, tmp_path / "work", change=lambda sample: sample)
    fetch_results(store, request_id, tmp_path / "out", tmp_path / "work")
    assert verify_variant(tmp_path / "out") == before


def test_a_published_version_is_read_where_it_lies(
    tmp_path: Path, registry: Registry, store: ObjectStore, token: str, object_server: object
) -> None:
    public = object_server.store("public-for-requests")  # type: ignore[attr-defined]
    make_variant(tmp_path / "in", shards=3)
    version = publish(tmp_path / "in", public, "tiny").id
    keys = ["00100002", "00000001.png", "nosuchkey"]
    request_id = submit_request(registry, store, token, "tiny", work=tmp_path / "work", public=public, subset=keys)
    request = registry.get_request(request_id)
    assert (request.kind, request.dataset, request.source, request.images) == (
        "published",
        "tiny",
        f"tiny@{version}",
        3,
    )
    serve(registry, store, request_id, tmp_path / "work", public)
    unpacked = fetch_results(store, request_id, tmp_path / "out", tmp_path / "work")
    assert unpacked.restored == 2
    assert [(r.name, r.error) for r in unpacked.refused] == [("nosuchkey", "NotFound")]
    assert [s.samples for s in verify_variant(tmp_path / "out").shards] == [1, 1]

    shards = submit_request(
        registry, store, token, f"tiny@{version}", work=tmp_path / "work", public=public, subset=["train-000002.tar"]
    )
    serve(registry, store, shards, tmp_path / "work", public)
    fetch_results(store, shards, tmp_path / "out2", tmp_path / "work")
    assert [s.name for s in verify_variant(tmp_path / "out2").shards] == ["train-000002.tar"]

    for source, subset, error in (
        ("tiny@" + "0" * 16, None, NotFound),
        ("tiny@1", None, UsageError),
        ("tiny", ["train-000009.tar"], NotFound),
        ("tiny", [], UsageError),
        ("tiny", ["a.b"], UsageError),
        ("tiny", ["train-000000.tar", "k"], UsageError),
        ("faces", None, NoGrant),
        ("no/such/path", None, InputError),
    ):
        with pytest.raises(error):
            submit_request(registry, store, token, source, work=tmp_path / "work", public=public, subset=subset)


def test_a_local_variant_is_read_in_place_and_must_not_change(
    tmp_path: Path, registry: Registry, store: ObjectStore, token: str
) -> None:
    before = make_variant(tmp_path / "in", shards=2)
    request_id = submit_request(registry, store, token, tmp_path / "in", work=tmp_path / "work", in_place=True)
    assert [o.key for o in store.list()] == [f"requests/{request_id}/input.json"]
    request = registry.get_request(request_id)
    assert (request.kind, request.dataset, request.images, request.source) == (
        "variant",
        "tiny",
        8,
        str(tmp_path / "in"),
    )
    index = fetch_index(store, request)
    assert (
        fetch_input(store, request_id, index, index.shards[0], tmp_path / "work")
        == tmp_path / "in" / "train-000000.tar"
    )
    write_shard(tmp_path / "in" / "train-000001.tar", [Sample("other", png(), 0)])
    with pytest.raises(CorruptShard, match="it changed"):
        fetch_input(store, request_id, index, index.shards[1], tmp_path / "work")
    serve_id = submit_request(
        registry, store, token, tmp_path / "in", work=tmp_path / "work", in_place=True, subset=["train-000000.tar"]
    )
    serve(registry, store, serve_id, tmp_path / "work")
    fetch_results(store, serve_id, tmp_path / "out", tmp_path / "work")
    assert verify_variant(tmp_path / "out").classes == before.classes


def test_who_may_not_is_told_before_anything_is_sent(tmp_path: Path, registry: Registry, store: ObjectStore) -> None:
    (tmp_path / "a.png").write_bytes(png())
    tokens = {name: registry.add_user(name) for name in ("none", "expired", "revoked", "other")}
    over = registry.grant("expired", "tiny", datetime.now(UTC) + timedelta(days=1))
    with registry.write() as session:
        session.get(Grant, over.id).expires = datetime.now(UTC) - timedelta(seconds=1)
    registry.grant("revoked", "tiny")
    registry.revoke("revoked", "tiny")
    registry.grant("other", "faces")
    for name, error in (("none", NoGrant), ("expired", GrantExpired), ("revoked", GrantRevoked)):
        with pytest.raises(error, match=f"{name}.*dmcp access grant {name}"):
            submit_request(registry, store, tokens[name], tmp_path / "a.png", work=tmp_path / "work")
    with pytest.raises(NoGrant, match="for tiny"):
        submit_request(registry, store, tokens["other"], tmp_path / "a.png", work=tmp_path / "work", dataset="tiny")
    with pytest.raises(BadToken):
        submit_request(registry, store, "dmcp_" + "x" * 43, tmp_path / "a.png", work=tmp_path / "work")
    make_variant(tmp_path / "in")
    with pytest.raises(NoGrant, match="for tiny"):
        submit_request(registry, store, tokens["other"], tmp_path / "in", work=tmp_path / "work", in_place=True)
    assert not list(store.list()) and not registry.list_requests()


def test_a_request_that_can_not_be_recorded_leaves_nothing(
    tmp_path: Path, registry: Registry, store: ObjectStore, token: str
) -> None:
    (tmp_path / "a.png").write_bytes(png())

    class Full(Registry):
        def create_request(self, *args: object, **more: object) -> str:
            raise UsageError("the disk is full")

    with Full(f"sqlite:///{tmp_path / 'registry.db'}") as full, pytest.raises(UsageError, match="the disk is full"):
        submit_request(full, store, token, tmp_path / "a.png", work=tmp_path / "work")
    assert not list(store.list()) and not list((tmp_path / "work").iterdir())


def test_out_is_never_replaced_and_results_are_checked(
    tmp_path: Path, registry: Registry, store: ObjectStore, token: str
) -> None:
    (tmp_path / "a.png").write_bytes(png())
    request_id = submit_request(registry, store, token, tmp_path / "a.png", work=tmp_path / "work")
    serve(registry, store, request_id, tmp_path / "work")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(UsageError, match="not empty"):
        fetch_results(store, request_id, tmp_path / "out", tmp_path / "work")
    assert (tmp_path / "out" / "mine").exists()
    write_shard(tmp_path / "forged.tar", [Sample("00000000", png(), None)])
    store.put_file(tmp_path / "forged.tar", f"requests/{request_id}/result-000000.tar")
    with pytest.raises(CorruptShard):
        fetch_results(store, request_id, tmp_path / "out3", tmp_path / "work")
    assert not (tmp_path / "out3").exists() and not list((tmp_path / "work").glob("results-*"))


def test_an_index_that_asks_for_more_than_the_registry_recorded(
    tmp_path: Path, registry: Registry, store: ObjectStore, token: str
) -> None:
    (tmp_path / "a.png").write_bytes(png())
    make_variant(tmp_path / "secret", dataset="tiny")
    upload = submit_request(registry, store, token, tmp_path / "a.png", work=tmp_path / "work")
    local = submit_request(registry, store, token, tmp_path / "secret", work=tmp_path / "work", in_place=True)
    stolen = store.get_bytes(f"requests/{local}/input.json")
    store.put_bytes(f"requests/{upload}/input.json", stolen)
    with pytest.raises(CorruptManifest, match="not what was requested"):
        fetch_index(store, registry.get_request(upload))
    store.put_bytes(f"requests/{local}/input.json", stolen.replace(b"/secret", b"/other"))
    with pytest.raises(CorruptManifest, match="not what was requested"):
        fetch_index(store, registry.get_request(local))
    store.delete(f"requests/{local}/input.json")
    with pytest.raises(CorruptManifest, match="no input any more"):
        fetch_index(store, registry.get_request(local))


# --- more refusals than can be named ---------------------------------------------------------------------------------


def test_a_report_of_very_many_refusals_can_be_read(store: ObjectStore) -> None:
    """The whole data set was asked for, under a grant for one class."""
    reason = "The grant does not cover the class 'cat', only 'dog'."
    refused = [RefusedFile(name=f"{n:08d}", error="OutOfScope", reason=reason) for n in range(500_000)]
    report = make_report("0" * 32, RequestIndex(layout="files", shards=[]), [], [], refused)
    key = put_report(store, report)
    assert store.size(key) < MAX_IN_MEMORY / 10
    read = parse_report(store.get_bytes(key))
    assert [file.name for file in read.refused] == [f"{n:08d}" for n in range(NAMED_REFUSALS)]
    assert read.unnamed == {"OutOfScope": 500_000 - NAMED_REFUSALS}
    assert (read.refusals, read.kinds) == (500_000, {"OutOfScope": 500_000})


def test_what_is_not_named_is_counted_in_all_that_the_requester_gets(
    tmp_path: Path, registry: Registry, store: ObjectStore, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.request.NAMED_REFUSALS", 2)
    make_variant(tmp_path / "in", shards=2)
    keys = ["00000000", "00000001", "00000002", "00100003", "nosuchkey"]
    request_id = submit_request(
        registry, store, token, tmp_path / "in", work=tmp_path / "work", in_place=True, subset=keys
    )
    serve(registry, store, request_id, tmp_path / "work", refuse=3)
    assert registry.get_request(request_id).refused == 4
    done = fetch_results(store, request_id, tmp_path / "out", tmp_path / "work")
    assert [file.name for file in done.refused] == keys[:2]
    assert (done.restored, done.report.refusals) == (1, 4)
    summary = json.loads((tmp_path / "out" / "report.json").read_bytes())
    assert (summary["images"], summary["restored"]) == (5, 1)
    assert summary["unnamed"] == {"AlteredImage": 1, "NotFound": 1}
    with (tmp_path / "out" / "refused.csv").open() as file:
        rows = list(csv.reader(file))[1:]
    assert [row[:2] for row in rows] == [
        ["00000000", "AlteredImage"],
        ["00000001", "AlteredImage"],
        ["", "AlteredImage"],
        ["", "NotFound"],
    ]
    assert "and 1 more" in rows[2][2]


def test_reports_that_name_everything_are_as_they_were() -> None:
    """Releases before and after read each other's."""
    before = {
        "format": "dmcp-report/1",
        "request_id": "0" * 32,
        "images": 2,
        "restored": 1,
        "results": [],
        "attempts": {},
        "refused": [{"name": "a.png", "error": "AlteredImage", "reason": "It was altered."}],
    }
    report = parse_report(json.dumps(before).encode())
    assert (report.refusals, report.kinds) == (1, {"AlteredImage": 1})
    assert json.loads(report.model_dump_json()) == before
