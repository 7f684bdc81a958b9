"""What a grant covers and what becomes of it while a request is served, by the real flow, shard by shard.

Requests here have three shards of two images, served one after the other, so that something can happen in between: a
hook runs right after a shard was put into the bucket.
"""

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest

from flows import access, attempt, restore, restore_shards
from flows.publish import take_back
from flows.restore import restore_variant, serve_request
from flows.services import object_store
from storage.audit import open_audit_log
from storage.database import utc_now
from storage.errors import (
    Forbidden,
    GrantRevoked,
    NotFound,
    ObjectStoreError,
    OutOfScope,
    QuotaExceeded,
    RequestCancelled,
    UsageError,
    WorkspaceBusy,
    public_text,
)
from storage.keys import open_vault
from storage.manifest import read_manifest, write_manifest
from storage.objects import ObjectStore, open_store
from storage.png import decode_png
from storage.registry import Grant, Registry
from storage.settings import settings
from storage.shards import Sample, write_shard
from tasks.method.seal import DataKey
from tasks.publish import publish_variant
from tasks.request import fetch_results, submit_request
from tasks.request_index import attempt_key, attempt_of
from tests.flows.waiting import wait_for
from tests.flows.world import entered
from tests.spilled import INSIDE, clean_images, hide, variant_of

CLEAN = clean_images(6)
SHARDS = 3


class Place:
    """A user and two data sets, `toy` and `other`, of a test's own, in a world with a running object store."""

    def __init__(self, folder: Path, book: Registry) -> None:
        self.folder, self.book = folder, book
        mark = uuid4().hex[:8]
        self.name, self.toy, self.other = (f"{what}-{mark}" for what in ("ann", "toy", "other"))
        vault = open_vault(settings())
        self.keys = {name: DataKey(vault.secret(vault.create(name).key_id), name) for name in (self.toy, self.other)}
        self.pngs = hide(CLEAN, self.keys[self.toy])
        self.token = book.add_user(self.name)

    def grant(self, dataset: str = "", **bounds: object) -> Grant:
        return self.book.grant(self.name, dataset or self.toy, **bounds)

    def revoke(self) -> None:
        self.book.revoke(self.name, self.toy)

    def private(self) -> ObjectStore:
        return open_store(settings(), "private")

    def submit(self, source: str | Path, **more: object) -> str:
        return submit_request(
            self.book,
            self.private(),
            self.token,
            source,
            work=self.folder / "work",
            public=open_store(settings(), "public"),
            shard_size=2,
            **more,
        )

    def files(self, pngs: list[bytes], name: str = "in") -> Path:
        folder = self.folder / name
        folder.mkdir()
        for i, png in enumerate(pngs):
            (folder / f"{i}.png").write_bytes(png)
        return folder

    def publish(self) -> str:
        variant = variant_of(self.folder / "variant", self.toy, self.pngs)
        return publish_variant(variant, open_store(settings(), "public"), self.toy).id

    def objects(self, request_id: str, kind: str) -> list[str]:
        prefix = f"requests/{request_id}/"
        return [info.key.removeprefix(prefix) for info in self.private().list(prefix + kind)]

    def results(self, request_id: str) -> list[tuple[int, str]]:
        """Attempt and name of each result that lies in the bucket."""
        return [found for found in self.written(request_id) if found[1].startswith("result-")]

    def reports(self, request_id: str) -> list[tuple[int, str]]:
        return [found for found in self.written(request_id) if found[1] == "report.json"]

    def written(self, request_id: str) -> list[tuple[int, str]]:
        keys = [f"requests/{request_id}/{name}" for name in self.objects(request_id, "")]
        return [(attempt_of(key), key.rpartition("/")[2]) for key in keys]

    def released(self, request_id: str) -> list[tuple[int, int]]:
        """Shard and images of each entry in the audit log that says so."""
        with open_audit_log(settings()) as log:
            entries = log.entries(action="release", request_id=request_id)
            assert log.verify().fault is None
        details = [json.loads(entry.details) for entry in entries]
        return [(one["shard"], one["images"]) for one in details]

    def used(self, dataset: str = "") -> list[int]:
        return [grant.used for grant in self.book.list_grants(self.name, dataset or self.toy)]

    def fetch(self, request_id: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        out = self.folder / f"out-{request_id}"
        done = fetch_results(self.private(), request_id, out, self.folder / "work")
        images = {path.name: decode_png(path.read_bytes(), path.name) for path in out.rglob("*.png")}
        return images, {refusal.name: refusal.error for refusal in done.refused}

    def assert_whole(self, request_id: str) -> None:
        """The request is done, and everything came back as it was."""
        request = self.book.get_request(request_id)
        assert (request.state, request.restored, request.refused) == ("done", 6, 0)
        images, refused = self.fetch(request_id)
        assert refused == {}
        assert [np.array_equal(images[f"{i}.png"], CLEAN[i]) for i in range(6)] == [True] * 6


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, prefect_api: str) -> Iterator[None]:
    """One world for all tests here, in which shards are restored one by one."""
    with entered(tmp_path_factory.mktemp("grants")), pytest.MonkeyPatch.context() as patch:
        patch.setenv("DMCP_WORKERS", "1")
        settings.cache_clear()
        with object_store():
            yield


@pytest.fixture
def place(tmp_path: Path, running: None) -> Iterator[Place]:
    with access.registry() as book:
        yield Place(tmp_path, book)


@contextmanager
def after_shard(number: int, happens: Callable[[], object]) -> Iterator[None]:
    """Something happens once, right after this shard was put."""
    real = restore_shards.put_result

    def put(store: ObjectStore, request_id: str, folder: Path, info: object, number_of_attempt: int) -> None:
        real(store, request_id, folder, info, number_of_attempt)
        if info.name == f"result-{number:06d}.tar":
            happens()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(restore_shards, "put_result", put)
        yield


# --- revoked, cancelled, taken over ----------------------------------------------------------------------------------


@pytest.mark.parametrize("named", [True, False])
def test_revoking_stops_a_running_request(place: Place, named: bool) -> None:
    place.grant()
    request_id = place.submit(place.files(place.pngs), dataset=place.toy if named else None)
    with after_shard(0, place.revoke), pytest.raises(GrantRevoked):
        serve_request(request_id)
    request = place.book.get_request(request_id)
    assert (request.state, request.message.partition(":")[0]) == ("failed", "GrantRevoked")
    assert place.results(request_id) == [(1, "result-000000.tar")]
    assert (place.used(), place.released(request_id)) == ([2], [(0, 2)]), "what was released stays on record"
    with pytest.raises(NotFound):
        place.fetch(request_id)

    place.grant()
    serve_request(request_id, force=True)
    place.assert_whole(request_id)
    assert sum(place.used()) == 6, "each image is charged once, whatever became of the grant"


def test_other_data_sets_go_on_when_one_is_revoked(place: Place) -> None:
    for dataset in (place.toy, place.other):
        place.grant(dataset)
    others = hide(CLEAN, place.keys[place.other])
    request_id = place.submit(place.files([png for pair in zip(place.pngs, others, strict=True) for png in pair]))
    with after_shard(0, place.revoke):
        serve_request(request_id)
    images, refused = place.fetch(request_id)
    assert sorted(images) == sorted({f"{i}.png" for i in range(1, 12, 2)} | {"0.png"})
    assert refused == {f"{i}.png": "GrantRevoked" for i in range(2, 12, 2)}
    assert place.book.get_request(request_id).state == "done"
    assert (place.used(place.toy), place.used(place.other)) == ([1], [6])


def test_a_request_ends_with_the_only_data_set_it_got_anything_of(place: Place) -> None:
    """A grant for another data set, of which the request holds no image, does not turn half of it into a result."""
    for dataset in (place.toy, place.other):
        place.grant(dataset)
    request_id = place.submit(place.files(place.pngs))
    with after_shard(0, place.revoke), pytest.raises(GrantRevoked):
        serve_request(request_id)
    assert place.book.get_request(request_id).state == "failed"
    assert place.reports(request_id) == []


def test_a_cancelled_request_stops_and_leaves_nothing_restored(place: Place) -> None:
    place.grant()
    request_id = place.submit(place.files(place.pngs))
    with after_shard(0, lambda: place.book.cancel_request(request_id)), pytest.raises(RequestCancelled):
        serve_request(request_id)
    assert place.book.get_request(request_id).state == "cancelled"
    assert (place.released(request_id), place.used()) == ([(0, 2)], [0])
    assert place.results(request_id) == []
    assert not settings().home_path("work", "restore", request_id).exists()
    with pytest.raises(RequestCancelled):
        serve_request(request_id, force=True)


def test_an_attempt_that_was_taken_over_changes_nothing_any_more(place: Place) -> None:
    place.grant()
    request_id = place.submit(place.files(place.pngs))
    with after_shard(0, lambda: place.book.claim_request(request_id, force=True)), pytest.raises(WorkspaceBusy):
        serve_request(request_id)
    request = place.book.get_request(request_id)
    assert (request.state, request.attempt) == ("running", 2), "the later attempt's state stands"
    assert place.results(request_id) == [(1, "result-000000.tar")]
    serve_request(request_id, force=True)
    place.assert_whole(request_id)
    assert (place.used(), place.released(request_id)) == ([6], [(0, 2), (1, 2), (2, 2)])


def test_a_late_attempt_overwrites_nothing_of_its_successors(place: Place) -> None:
    """It stood still right before it put a shard, and goes on when the next attempt is through."""
    place.grant()
    request_id = place.submit(place.files(place.pngs))
    real = restore_shards.put_result

    def put(store: ObjectStore, asked: str, folder: Path, info: object, number: int) -> None:
        if number == 1:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(restore, "TAKEOVER_SECONDS", 0.0)  # the folder is not let go of
                serve_request(request_id, force=True)
            late = place.folder / "late.tar"
            late.write_bytes(b"late")
            store.put_file(late, attempt_key(asked, info.name, number))
            return
        real(store, asked, folder, info, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(restore_shards, "put_result", put)
        with pytest.raises((WorkspaceBusy, UsageError, FileNotFoundError)):
            serve_request(request_id)
    assert place.results(request_id) == [(1, "result-000000.tar"), *((2, f"result-00000{n}.tar") for n in range(3))]
    assert place.book.get_request(request_id).result == f"requests/{request_id}/attempt-2/report.json"
    place.assert_whole(request_id)
    assert place.used() == [6]


def test_results_of_an_earlier_attempt_are_taken_over_where_they_lie(place: Place) -> None:
    place.grant()
    request_id = place.submit(place.files(place.pngs))
    with after_shard(0, place.revoke), pytest.raises(GrantRevoked):
        serve_request(request_id)
    place.grant()
    place.book.retry_request(request_id)
    serve_request(request_id)
    place.assert_whole(request_id)
    attempt = place.book.get_request(request_id).attempt
    assert place.reports(request_id) == [(attempt, "report.json")]


def test_a_data_set_that_only_the_vault_knows_becomes_the_local_owners(place: Place) -> None:
    """Its key is older than the registry: nobody else can claim the name once a worker or a command has seen it."""
    with pytest.raises(NotFound):
        place.book.get_dataset(place.toy)
    place.grant()
    serve_request(place.submit(place.files(place.pngs)))
    assert place.book.get_dataset(place.toy).owner.name == access.OWNER_USER
    assert place.book.get_dataset(place.other).owner.name == access.OWNER_USER
    place.book.add_user(f"olga-{place.toy}", "owner")
    with pytest.raises(Forbidden):
        place.book.register_dataset(place.other, f"olga-{place.toy}")
    place.book.transfer_dataset(place.other, f"olga-{place.toy}")
    access.adopt_datasets(place.book)
    assert place.book.get_dataset(place.other).owner.name == f"olga-{place.toy}", "what is known stays as it is"


def test_signs_of_life_and_progress(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt, "HEARTBEAT_SECONDS", 0.02)
    monkeypatch.setattr(attempt, "PROGRESS_SECONDS", 0.0)
    place.grant()
    request_id = place.submit(place.files(place.pngs))
    seen = []

    def look() -> None:
        """Two shards are reported; a sign of life comes while this one stands still, and no word of progress."""
        before = place.book.get_request(request_id)
        now = wait_for(lambda: place.book.get_request(request_id), lambda request: request.heartbeat > before.heartbeat)
        seen.append((now.restored, now.progressed == before.progressed, before.progressed > before.started))

    with after_shard(2, look):
        serve_request(request_id)
    assert seen == [(4, True, True)]


# --- quota and scope -------------------------------------------------------------------------------------------------


def test_a_quota_ends_a_request_and_is_charged_once(place: Place) -> None:
    grant = place.grant(quota=4)
    source = place.files(place.pngs)
    with pytest.raises(QuotaExceeded):
        place.submit(source, dataset=place.toy)
    request_id = place.submit(source)  # it does not say of which data set it is
    with pytest.raises(QuotaExceeded):
        serve_request(request_id)
    assert (place.used(), place.released(request_id)) == ([4], [(0, 2), (1, 2)])
    assert place.reports(request_id) == []

    place.book.renew_grant(grant.id, None, quota=6)
    serve_request(request_id, force=True)
    place.assert_whole(request_id)
    assert (place.used(), place.released(request_id)) == ([6], [(0, 2), (1, 2), (2, 2)])


def test_what_a_killed_attempt_charged_is_paid_for(place: Place) -> None:
    """Killed after the last shard was charged, before it was given out; found by killing (`tests/faults/kills.py`)."""
    grant = place.grant(quota=6)
    request_id = place.submit(place.files(place.pngs))
    for shard in range(SHARDS):
        place.book.charge(request_id, shard, grant.id, 2)
    serve_request(request_id)
    place.assert_whole(request_id)
    assert (place.used(), place.released(request_id)) == ([6], [(0, 2), (1, 2), (2, 2)])


def test_what_a_revoked_grant_paid_is_charged_to_another(place: Place) -> None:
    grant = place.grant(quota=6)
    request_id = place.submit(place.files(place.pngs))
    place.book.charge(request_id, 0, grant.id, 2)
    place.revoke()
    place.grant(quota=6)
    serve_request(request_id)
    place.assert_whole(request_id)
    assert place.used() == [0, 6]


def test_a_grant_for_a_class_goes_by_the_sealed_label(place: Place) -> None:
    """Not by the one that stands beside the image, and not where none is sealed."""
    place.publish()
    place.grant(classes=["cat"], quota=3)
    unsealed = hide(CLEAN[:1], place.keys[place.toy], profile=INSIDE)
    lies = [Sample(f"k{i}", png, 0) for i, png in enumerate([*place.pngs, *unsealed])]
    write_shard(place.folder / "lies.tar", lies)
    request_id = place.submit(place.folder / "lies.tar", dataset=place.toy)
    serve_request(request_id)
    done = fetch_results(place.private(), request_id, place.folder / "out", place.folder / "work")
    assert done.restored == 3
    assert {r.name: r.error for r in done.refused} == {f"lies.tar/k{i}.png": "OutOfScope" for i in (1, 3, 5, 6)}
    assert place.used() == [3], "only what was released is charged"


def test_without_any_published_version_no_class_can_be_told(place: Place) -> None:
    place.grant(classes=["cat"])
    request_id = place.submit(place.files(place.pngs), dataset=place.toy)
    with pytest.raises(OutOfScope, match="no published version"):
        serve_request(request_id)
    assert place.used() == [0]


def test_classes_of_a_withdrawn_version_are_not_forgotten(place: Place) -> None:
    """Copies of it are restored, and the version that took its place may have given its numbers to other classes."""
    place.grant(classes=["cat"])
    take_back(open_store(settings(), "public"), place.toy, place.publish())
    request_id = place.submit(place.files(place.pngs), dataset=place.toy)
    assert serve_request(request_id)["restored"] == 3
    variant = place.folder / "variant"
    write_manifest(variant, read_manifest(variant).model_copy(update={"classes": ["dog", "cat"]}))
    publish_variant(variant, open_store(settings(), "public"), place.toy)
    with pytest.raises(OutOfScope, match="its versions disagree"):
        serve_request(place.submit(place.files(place.pngs, "again"), dataset=place.toy))


def test_a_grant_for_samples_of_a_version(place: Place) -> None:
    version = place.publish()
    place.grant(version=version, samples=["00000001", "00000004"])
    with pytest.raises(OutOfScope):
        place.submit(place.files(place.pngs), dataset=place.toy)
    with pytest.raises(OutOfScope, match="covers the published version"):
        serve_request(place.submit(place.folder / "in"))
    request_id = place.submit(f"{place.toy}@{version}")
    assert serve_request(request_id)["restored"] == 2
    done = fetch_results(place.private(), request_id, place.folder / "out", place.folder / "work")
    assert {r.error for r in done.refused} == {"OutOfScope"}
    assert place.used() == [2]


# --- the audit log comes first ---------------------------------------------------------------------------------------


def _sql(statement: str) -> None:
    with closing(sqlite3.connect(settings().home_path("registry.db"))) as database, database:
        database.execute(statement)


def test_an_entry_that_can_not_be_written_releases_nothing(place: Place) -> None:
    place.grant()
    request_id = place.submit(place.files(place.pngs))
    _sql(
        "CREATE TRIGGER full BEFORE INSERT ON audit_entries WHEN NEW.action = 'release' "
        "BEGIN SELECT RAISE(ABORT, 'no more'); END"
    )
    try:
        with pytest.raises(Exception, match="no more"):
            serve_request(request_id)
    finally:
        _sql("DROP TRIGGER full")
    assert place.results(request_id) == []
    assert place.book.get_request(request_id).state == "failed"


def test_a_shard_that_can_not_be_put_has_its_entry_all_the_same(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.grant()
    request_id = place.submit(place.files(place.pngs))

    def broken(*_: object) -> None:
        assert place.released(request_id) == [(0, 2)], "the entry is there before anything is put"
        assert place.used() == [2]
        raise ObjectStoreError("The server is gone.")

    with monkeypatch.context() as patch:
        patch.setattr(restore_shards, "put_result", broken)
        with pytest.raises(ObjectStoreError):
            serve_request(request_id)
    assert place.results(request_id) == []
    serve_request(request_id, force=True)
    place.assert_whole(request_id)
    assert (place.used(), place.released(request_id)) == ([6], [(0, 2), (0, 2), (1, 2), (2, 2)])


def test_what_something_is_in_the_way_of_goes_on_without_being_charged_again(place: Place) -> None:
    """The object store fails after two shards: the request does not fail, and its quota is just enough."""
    place.grant(quota=6)
    request_id = place.submit(place.files(place.pngs), dataset=place.toy)
    with after_shard(1, _broken), pytest.raises(ObjectStoreError):
        serve_request(request_id)
    request = place.book.get_request(request_id)
    assert (request.state, request.finished) == ("pending", None)
    assert request.message == "ObjectStoreError: " + public_text(ObjectStoreError("The server is gone."))
    pause = (request.due - request.heartbeat).total_seconds()
    assert pause == pytest.approx(attempt.AGAIN_SECONDS, abs=10)
    assert place.used() == [4]
    serve_request(request_id)
    place.assert_whole(request_id)
    assert place.used() == [6]


def test_it_fails_with_the_last_reason_when_its_attempts_are_used_up(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.grant(quota=6)
    request_id = place.submit(place.files(place.pngs))
    pauses = []
    with monkeypatch.context() as patch:
        patch.setattr(restore_shards, "put_result", _broken)
        for _ in range(attempt.ATTEMPTS):
            assert place.book.get_request(request_id).state == "pending"
            with pytest.raises(ObjectStoreError):
                serve_request(request_id)
            request = place.book.get_request(request_id)
            pauses.append(request.due and round((request.due - utc_now()).total_seconds() / attempt.AGAIN_SECONDS))
    assert pauses == [1, 4, 16, 64, None]
    assert (request.state, request.message.partition(":")[0]) == ("failed", "ObjectStoreError")
    place.book.retry_request(request_id)
    serve_request(request_id)
    place.assert_whole(request_id)
    assert place.used() == [6]


def _broken(*_: object) -> None:
    raise ObjectStoreError("The server is gone.")


def test_the_stage_charges_and_records_like_any_request(place: Place) -> None:
    variant_of(settings().data_path(place.toy) / "protected", place.toy, place.pngs)
    access.prepare(place.toy)
    restore_variant(place.toy)
    (request,) = place.book.list_requests(access.PIPELINE_USER)
    assert (request.state, request.restored) == ("done", 6)
    assert place.released(request.id) == [(0, 3), (1, 3)]
    (grant,) = place.book.list_grants(access.PIPELINE_USER, place.toy)
    assert grant.used == 6


def test_what_the_built_in_users_ask_for_fails_at_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    variant_of(settings().data_path(place.toy) / "protected", place.toy, place.pngs)
    access.prepare(place.toy)
    monkeypatch.setattr(restore, "place", _broken)
    with pytest.raises(ObjectStoreError):
        restore_variant(place.toy)
    assert place.book.list_requests(access.PIPELINE_USER)[0].state == "failed"
