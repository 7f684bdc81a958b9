"""What is over goes, what is not stays; against the real object server, whatever is killed in between."""

import dataclasses
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.access import PIPELINE_USER
from flows.cli import app
from flows.sweeper import Swept, sweep, sweep_work
from storage.database import utc_now
from storage.errors import ObjectStoreError
from storage.objects import ObjectStore
from storage.registry import Registry, Request, Upload, new_request_id, open_registry
from storage.registry_models import Kind
from storage.server import ServerAddress
from storage.settings import Settings, settings
from storage.shards import Sample, write_shard
from tasks.request import fetch_results, make_report, put_report, put_result
from tasks.request_index import InputShard, RequestIndex, attempt_key, request_key, upload_key
from tests.services import object_home, object_server, store

__all__ = ["object_home", "object_server", "store"]

DAYS = {"uploads_days": 2, "results_days": 30}


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Registry]:
    with Registry(f"sqlite:///{tmp_path / 'registry.db'}") as registry:
        registry.add_user("ann")
        yield registry


class Shelf:
    """Requests in every state, each with input, index, result and a work folder; and uploads."""

    def __init__(self, book: Registry, store: ObjectStore, home: Path) -> None:
        self.book, self.store = book, store
        self.settings = Settings(home=home, **DAYS)
        self.ann = book.get_user("ann").id
        self.ids = {state: self._made(state) for state in ("pending", "running", "failed", "done", "cancelled")}

    def _made(self, state: str, kind: Kind = "upload") -> str:
        request_id = self.book.create_request(self.ann, kind, None, state)
        if state in ("running", "failed", "done"):
            self.book.claim_request(request_id)
        if state in ("failed", "done"):
            self.book.set_request_state(request_id, state)  # type: ignore[arg-type]
        if state == "cancelled":
            self.book.cancel_request(request_id)
        for name in ("input.json", "input-000000.tar"):
            self.store.put_bytes(request_key(request_id, name), b"x")
        for name in ("result-000000.tar", "report.json"):
            self.store.put_bytes(attempt_key(request_id, name, 1), b"x")
        self.work(request_id).mkdir(parents=True)
        return request_id

    def work(self, request_id: str) -> Path:
        return self.settings.home_path("work", "restore", request_id)

    def sweep(self, days: float, **more: float) -> Swept:
        conf = self.settings.model_copy(update=more)
        return sweep(conf, self.book, self.store, utc_now() + timedelta(days=days))

    def left(self, state: str) -> set[str]:
        prefix = request_key(self.ids[state], "")
        return {info.key.removeprefix(prefix) for info in self.store.list(prefix)}


INPUT = {"input.json", "input-000000.tar"}
RESULT = {"attempt-1/result-000000.tar", "attempt-1/report.json"}


@pytest.fixture
def shelf(book: Registry, store: ObjectStore, tmp_path: Path) -> Shelf:
    return Shelf(book, store, tmp_path / "home")


def test_nothing_goes_before_its_time(shelf: Shelf) -> None:
    assert shelf.sweep(0) == Swept(cancelled=1)
    assert not shelf.sweep(1000, uploads_days=0, results_days=0).requests
    assert all(shelf.left(state) == INPUT | RESULT for state in shelf.ids if state != "cancelled")


def test_what_was_restored_for_a_cancelled_request_goes_at_once(shelf: Shelf) -> None:
    """No worker was at it any more, so none removed it."""
    shelf.store.put_bytes(request_key(shelf.ids["cancelled"], "result-000001.tar"), b"of an earlier release")
    shelf.book.cancel_request(shelf.ids["running"])
    assert shelf.sweep(0, uploads_days=0, results_days=0).cancelled == 2
    assert shelf.left("cancelled") == shelf.left("running") == INPUT
    assert not shelf.sweep(0).anything
    assert shelf.sweep(3).inputs == 3
    assert shelf.left("cancelled") == {"input.json"}


def test_inputs_go_first_then_everything(shelf: Shelf) -> None:
    first = shelf.sweep(3)
    assert (first.inputs, first.requests) == (2, 0)
    assert shelf.left("done") == {"input.json"} | RESULT, "names and results stay"
    assert shelf.left("failed") == INPUT | RESULT, "it may be tried again"
    assert shelf.sweep(3).inputs == 0
    second = shelf.sweep(31)
    assert (second.inputs, second.requests) == (0, 3)
    for state in ("done", "failed", "cancelled"):
        request = shelf.book.get_request(shelf.ids[state])
        assert shelf.left(state) == set()
        assert request.removed is not None and request.cleared is not None
        assert not shelf.work(request.id).exists()


def test_what_was_restored_of_a_folder_of_this_machine_goes_too(shelf: Shelf) -> None:
    """`dmcp request --in-place`: its results lie in the bucket like all others; those of the pipeline do not."""
    shelf.ids["local"] = shelf._made("done", "variant")
    shelf.book.add_user(PIPELINE_USER)
    stage = shelf.book.create_request(shelf.book.get_user(PIPELINE_USER).id, "variant", "sample", "x")
    shelf.book.claim_request(stage)
    shelf.book.set_request_state(stage, "done")
    assert shelf.sweep(3).inputs == 2
    assert shelf.left("local") == INPUT | RESULT
    assert shelf.sweep(31).requests == 4
    assert shelf.left("local") == set()
    assert shelf.book.get_request(shelf.ids["local"]).cleared is not None
    assert shelf.book.get_request(stage).removed is None


@pytest.mark.parametrize("days", [3, 31, 1000])
def test_what_waits_or_runs_is_never_touched(shelf: Shelf, days: int) -> None:
    shelf.sweep(days)
    for state in ("pending", "running"):
        assert shelf.left(state) == INPUT | RESULT
        assert shelf.work(shelf.ids[state]).exists()
        assert shelf.book.get_request(shelf.ids[state]).removed is None


def test_a_sweep_that_breaks_off_is_finished_by_the_next(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(key: str) -> None:
        raise ObjectStoreError("the server is gone")

    shelf.sweep(0)
    with monkeypatch.context() as patch:
        patch.setattr(shelf.store, "delete", broken)
        with pytest.raises(ObjectStoreError):
            shelf.sweep(31, uploads_days=0)
    assert shelf.left("done") == INPUT | RESULT
    assert shelf.book.get_request(shelf.ids["done"]).removed is not None, "nobody is given it any more"
    shelf.sweep(31, uploads_days=0)
    assert shelf.left("done") == set()
    assert shelf.book.half_removed() == []


def test_uploads_and_files_of_nothing(shelf: Shelf) -> None:
    waits, used = new_request_id(), new_request_id()
    for upload_id in (waits, used):
        soon = utc_now() + timedelta(minutes=15)
        shelf.book.create_upload(shelf.ann, upload_id, 1, soon, most=9, most_bytes=99)
        shelf.store.put_bytes(upload_key(shelf.ann, upload_id), b"x")
    shelf.book.use_upload(used)
    stray = [request_key(new_request_id(), "input.json"), upload_key(shelf.ann, new_request_id())]
    for key in (*stray, "audit/checkpoints/1.json"):
        shelf.store.put_bytes(key, b"x")

    def there(key: str) -> bool:
        return shelf.store.exists(key)

    shelf.sweep(1)
    assert all(map(there, (*stray, upload_key(shelf.ann, waits), upload_key(shelf.ann, used)))), "addresses are good"
    _over(shelf.book, used)
    assert shelf.sweep(1).uploads == 1
    assert not there(upload_key(shelf.ann, used)) and there(upload_key(shelf.ann, waits))
    _over(shelf.book, waits)
    late = shelf.sweep(3)
    assert (late.uploads, late.strays) == (1, 2)
    assert not any(map(there, (*stray, upload_key(shelf.ann, waits))))
    assert there("audit/checkpoints/1.json")
    assert shelf.book.list_uploads() == []


def test_what_arrived_of_an_upload_that_was_cut_off(shelf: Shelf) -> None:
    """A file above 64 MiB goes up in parts; listings do not show them."""
    nobodys = new_request_id()
    places = {state: attempt_key(request_id, "result-000001.tar", 1) for state, request_id in shelf.ids.items()}
    places |= {"nobody": request_key(nobodys, "input-000000.tar"), "audit": "audit/checkpoints/1.json"}
    for key in places.values():
        at = {"Bucket": shelf.store.bucket, "Key": key}
        identity = shelf.store._client.create_multipart_upload(**at)["UploadId"]
        shelf.store._client.upload_part(**at, PartNumber=1, UploadId=identity, Body=bytes(5 << 20))

    def left() -> set[str]:
        found = {upload.key for upload in shelf.store.unfinished()}
        return {name for name, key in places.items() if key in found}

    assert shelf.sweep(1).unfinished == 0
    assert shelf.sweep(1000, uploads_days=0).unfinished == 0
    assert left() == set(places)
    swept = shelf.sweep(3)
    assert (swept.unfinished, swept.strays) == (4, 0)
    assert left() == {"pending", "running", "audit"}
    shelf.book.cancel_request(shelf.ids["running"])
    assert shelf.sweep(3).unfinished == 1
    assert left() == {"pending", "audit"}


def _over(book: Registry, upload_id: str) -> None:
    with book.write() as session:
        session.get_one(Upload, upload_id).expires = utc_now() - timedelta(seconds=1)


def test_work_folders_of_what_is_over(shelf: Shelf) -> None:
    others = [shelf.work("cifar10"), shelf.work("f" * 32)]
    for folder in others:
        folder.mkdir(parents=True)
    assert sweep_work(shelf.book, shelf.settings) == 0, "a worker may not have noticed yet"
    assert sweep_work(shelf.book, shelf.settings, _in(hours=2)) == 2
    left = {state for state, request_id in shelf.ids.items() if shelf.work(request_id).exists()}
    assert left == {"pending", "running", "failed"}
    assert all(folder.exists() for folder in others), "a stage's, and another registry's"


def test_what_a_killed_command_had_on_its_way_goes(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of one at work stays; the lock says which is which."""
    left = [shelf.settings.home_path("work", *parts) for parts in (("requests", "results-x"), ("round-trip", "tmp1"))]
    for folder in left:
        folder.mkdir(parents=True)
        (folder / "result.tar").touch()
    real, lying = shelf.store.get_file, []

    def get_file(key: str, path: Path, *more: Any) -> None:
        real(key, path, *more)
        assert sweep_work(shelf.book, shelf.settings) == len(left)
        lying.append(path.exists())

    monkeypatch.setattr(shelf.store, "get_file", get_file)
    work = shelf.settings.home_path("work", "requests")
    tar = write_shard(shelf.settings.home_path("result-000000.tar"), [Sample("00000000", b"png", None)])
    index = RequestIndex(layout="files", shards=[InputShard(shard=dataclasses.replace(tar, name="input-000000.tar"))])
    request_id = shelf.ids["done"]
    shelf.store.put_bytes(request_key(request_id, "input.json"), index.model_dump_json().encode())
    put_result(shelf.store, request_id, shelf.settings.home, tar, 2)
    put_report(shelf.store, make_report(request_id, index, [tar], ["00000000"], [], {tar.name: 2}), 2)
    assert fetch_results(shelf.store, request_id, shelf.settings.home / "out", work).restored == 1
    assert lying == [True]
    assert not any(map(Path.exists, left)) and list(work.iterdir()) == []


def _in(hours: float) -> datetime:
    return utc_now() + timedelta(hours=hours)


def test_the_command_removes_what_is_over_and_says_so(
    object_server: ServerAddress, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = f"swept-{new_request_id()[:12]}"
    for name, value in {
        "HOME": tmp_path / "home",
        "S3_ENDPOINT": object_server.endpoint,
        "S3_ACCESS_KEY": object_server.access_key,
        "S3_SECRET_KEY": object_server.secret_key,
        "S3_PRIVATE_BUCKET": bucket,
        "RESULTS_DAYS": 30,
    }.items():
        monkeypatch.setenv(f"DMCP_{name}", str(value))
    settings.cache_clear()
    store = object_server.store(bucket)
    store.ensure_bucket()
    try:
        with open_registry(settings()) as book:
            book.add_user("ann")
            shelf = Shelf(book, store, tmp_path / "home")
            told = CliRunner().invoke(app, ["registry", "sweep"])
            assert told.exit_code == 0 and "cancelled requests' results" in told.output and "30 days" in told.output
            told = CliRunner().invoke(app, ["registry", "sweep"])
            assert told.exit_code == 0 and "Nothing was over." in told.output
            with book.write() as session:
                session.get_one(Request, shelf.ids["done"]).finished = utc_now() - timedelta(days=31)
            told = CliRunner().invoke(app, ["registry", "sweep"])
            assert told.exit_code == 0 and "Removed what was over." in told.output
            assert shelf.left("done") == set() and shelf.left("failed") == INPUT | RESULT
    finally:
        settings.cache_clear()
