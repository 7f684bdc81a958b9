"""Restore requests, served by the real flow over the real object store, registry and vault."""

import json
import random
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from typer.testing import CliRunner

from flows import access
from flows.cli import app
from flows.protect import run_protect
from flows.restore import serve_request
from storage.audit import AuditEntry, AuditLog, open_audit_log
from storage.errors import (
    BadToken,
    EnvironmentFault,
    GrantExpired,
    GrantRevoked,
    NoGrant,
    NotFound,
    UnknownKey,
    UsageError,
    WorkspaceBusy,
)
from storage.files import sha256_file
from storage.keys import open_vault
from storage.manifest import read_manifest, write_manifest
from storage.objects import open_store
from storage.png import decode_png, encode_png, read_payload
from storage.registry import Registry
from storage.settings import settings
from storage.shards import Sample, read_shard
from tasks.params import load_params
from tasks.request import fetch_results, submit_request
from tests.flows.world import entered

pytestmark = pytest.mark.usefixtures("object_store")


class Requester:
    """A user of this test's own."""

    def __init__(self, book: Registry, tmp_path: Path, dataset: str | None = "sample") -> None:
        self.book, self.folder = book, tmp_path
        self.name = f"user-{uuid4().hex[:8]}"
        self.token = book.add_user(self.name)
        if dataset:
            book.grant(self.name, dataset)

    def submit(self, source: Path, **more) -> str:
        store = open_store(settings(), "private")
        return submit_request(self.book, store, self.token, source, work=self.folder / "work", **more)

    def fetch(self, request_id: str) -> tuple[dict[str, bytes], dict[str, str]]:
        """What came back, by file name, and the class of error of each that did not."""
        out = self.folder / f"out-{request_id}"
        done = fetch_results(open_store(settings(), "private"), request_id, out, self.folder / "work")
        files = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*.png")}
        return files, {refusal.name: refusal.error for refusal in done.refused}


@pytest.fixture
def book(world: Path) -> Iterator[Registry]:
    with access.registry() as opened:
        yield opened


@pytest.fixture
def requester(book: Registry, tmp_path: Path) -> Requester:
    return Requester(book, tmp_path)


def samples(variant: str) -> dict[str, Sample]:
    folder = settings().data_path("sample", variant)
    return {sample.key: sample for shard in sorted(folder.glob("*.tar")) for sample in read_shard(shard)}


def loose(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder / "in"


def altered(png: bytes) -> bytes:
    image = decode_png(png, "x").copy()
    image[9, 9] ^= 128
    return encode_png(image, read_payload(png))


@pytest.fixture(scope="session")
def other(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images as data set `other`, protected under a key of its own that lies in the same vault."""
    with entered(built):
        folder = tmp_path_factory.mktemp("other")
        shutil.copytree("data/sample/clean", folder / "clean")
        write_manifest(folder / "clean", read_manifest(folder / "clean").model_copy(update={"dataset": "other"}))
        key_id = open_vault(settings()).create("other").key_id
        surrogate = settings().data_path("sample", "surrogate", "model.pt")
        run_protect(folder / "clean", folder / "protected", surrogate, load_params("sample").protect, key_id)
    return folder / "protected"


def test_renamed_and_shuffled_among_foreign_and_altered_ones(requester: Requester, other: Path, tmp_path: Path) -> None:
    protected, recovered, clean = samples("protected"), samples("recovered"), samples("clean")
    keys = random.Random(0).sample(sorted(protected), 40)
    good = {f"holiday/{number:03d}.png": key for number, key in enumerate(keys)}
    foreign = read_shard(sorted(other.glob("*.tar"))[0])[0].png
    files = {name: protected[key].png for name, key in good.items()} | {
        "altered.png": altered(protected[keys[0]].png),
        "clean.png": clean[keys[1]].png,
        "of another data set.png": foreign,
        "noise.png": encode_png(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)),
        "notes.txt": b"no image",
    }
    request_id = requester.submit(loose(tmp_path, files))
    counts = serve_request(request_id)
    images, refused = requester.fetch(request_id)
    assert images == {name: recovered[key].png for name, key in good.items()}
    assert refused.pop("notes.txt")
    assert refused == {
        "altered.png": "AlteredImage",
        "clean.png": "NotProtected",
        "of another data set.png": "NoGrant",
        "noise.png": "NotProtected",
    }
    assert (counts["restored"], counts["refused"]) == (40, 5)
    request = requester.book.get_request(request_id)
    assert (request.state, request.restored, request.refused) == ("done", 40, 5)


def test_a_whole_variant_comes_back_as_shards(requester: Requester) -> None:
    request_id = requester.submit(settings().data_path("sample", "protected"))
    serve_request(request_id)
    out = requester.folder / "out"
    fetch_results(open_store(settings(), "private"), request_id, out, requester.folder / "work")
    for path in settings().data_path("sample", "recovered").iterdir():
        assert sha256_file(out / path.name) == sha256_file(path)


def test_no_work_is_left_after_a_request(requester: Requester) -> None:
    request_id = requester.submit(settings().data_path("sample", "protected"))
    serve_request(request_id)
    assert not settings().home_path("work", "restore", request_id).exists()


def test_grants_are_checked_when_the_request_is_served(requester: Requester, tmp_path: Path) -> None:
    source = loose(tmp_path, {"a.png": next(iter(samples("protected").values())).png})
    request_id = requester.submit(source)
    requester.book.revoke(requester.name, "sample")
    with pytest.raises(GrantRevoked):
        serve_request(request_id)
    request = requester.book.get_request(request_id)
    assert request.state == "failed" and "revoked" in request.message
    with pytest.raises(NotFound):
        requester.fetch(request_id)

    requester.book.grant(requester.name, "sample")
    serve_request(request_id, force=True)
    assert requester.book.get_request(request_id).state == "done"


def test_an_expired_grant_is_refused_with_its_own_error(requester: Requester) -> None:
    request_id = requester.submit(settings().data_path("sample", "protected"), dataset="sample")
    past = (datetime.now(UTC) - timedelta(hours=1)).strftime("%Y-%m-%d %H:%M:%S.%f")
    with closing(sqlite3.connect(settings().home_path("registry.db"))) as database, database:
        user = requester.book.get_user(requester.name).id
        database.execute("UPDATE grants SET expires = ? WHERE user_id = ?", (past, user))
    with pytest.raises(GrantExpired):
        serve_request(request_id)


def test_without_any_grant_nothing_is_restored(book: Registry, tmp_path: Path) -> None:
    requester = Requester(book, tmp_path, dataset=None)
    source = settings().data_path("sample", "protected")
    with pytest.raises(NoGrant):
        requester.submit(source)
    # Even a request that got into the registry without that check:
    holder = Requester(book, tmp_path)
    request_id = holder.submit(source, in_place=True)
    stolen = book.create_request(book.get_user(requester.name).id, "variant", "sample", str(source.resolve()))
    from tasks.request_index import INDEX_NAME, request_key

    store = open_store(settings(), "private")
    store.put_bytes(request_key(stolen, INDEX_NAME), store.get_bytes(request_key(request_id, INDEX_NAME)))
    with pytest.raises(NoGrant):
        serve_request(stolen)
    serve_request(request_id)


def test_images_of_a_key_that_the_vault_lacks(requester: Requester, built: Path, tmp_path: Path) -> None:
    clean = settings().data_path("sample", "clean").resolve()
    surrogate = settings().data_path("sample", "surrogate", "model.pt").resolve()
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(built / "params.yaml", tmp_path / "elsewhere")
    with entered(tmp_path / "elsewhere"):
        key_id = open_vault(settings()).create("sample").key_id
        run_protect(clean, tmp_path / "theirs", surrogate, load_params("sample").protect, key_id)
    settings.cache_clear()
    with entered(built):
        request_id = requester.submit(tmp_path / "theirs")
        with pytest.raises(UnknownKey, match=key_id):
            serve_request(request_id)
        message = requester.book.get_request(request_id).message
        assert message is not None and f"Key {key_id} is not in the vault" in message
        assert str(settings().home_path()) not in message
        done = fetch_results(open_store(settings(), "private"), request_id, tmp_path / "out", tmp_path / "fetch")
        assert "is not in the vault" in done.refused[0].reason
        assert str(settings().home_path()) not in done.refused[0].reason


def test_a_failure_names_no_place_of_the_service(
    requester: Requester, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    png = next(iter(samples("protected").values())).png
    request_id = requester.submit(loose(tmp_path, {"a.png": png}))
    store = open_store(settings(), "private")
    for info in list(store.list(f"requests/{request_id}/")):
        if info.key.endswith(".tar"):
            store.delete(info.key)
    with pytest.raises(NotFound) as caught:
        serve_request(request_id)
    message = requester.book.get_request(request_id).message
    assert message is not None and message.startswith("NotFound: Something that the service has stored")
    assert str(caught.value) in capfd.readouterr().err


def test_a_request_is_served_once(requester: Requester, tmp_path: Path) -> None:
    request_id = requester.submit(loose(tmp_path, {"a.png": next(iter(samples("protected").values())).png}))
    requester.book.claim_request(request_id)
    with pytest.raises(WorkspaceBusy):
        serve_request(request_id)
    serve_request(request_id, force=True)
    with pytest.raises(UsageError):
        serve_request(request_id)


# --- fetched by who has the machine ----------------------------------------------------------------------------------


def downloads(request_id: str) -> list[AuditEntry]:
    with open_audit_log(settings()) as log:
        return list(log.entries(action="download", request_id=request_id))


@pytest.mark.parametrize("to", ["folder", "address"])
def test_what_is_fetched_by_command_is_granted_and_on_record(requester: Requester, tmp_path: Path, to: str) -> None:
    """As over the gateway: once more each time, and not after the grant was revoked."""

    def fetched(name: str) -> str:
        here = str(tmp_path / name)
        return here if to == "folder" else f"s3://{settings().s3_private_bucket}/{requester.name}-{name}"

    request_id = requester.submit(loose(tmp_path, {"a.png": next(iter(samples("protected").values())).png}))
    serve_request(request_id)
    assert CliRunner().invoke(app, ["restore", request_id, fetched("one")]).exit_code == 0
    (entry,) = downloads(request_id)
    assert (entry.actor, entry.dataset) == ("local", "sample")
    assert json.loads(entry.details) == {"images": 1, "to": fetched("one")}

    requester.book.revoke(requester.name, "sample")
    told = CliRunner().invoke(app, ["restore", request_id, fetched("two")])
    assert (told.exit_code, "was revoked" in told.output) == (GrantRevoked.exit_code, True)
    assert len(downloads(request_id)) == 1
    assert not (tmp_path / "two").exists()

    requester.book.grant(requester.name, "sample")
    assert CliRunner().invoke(app, ["restore", request_id, fetched("two")]).exit_code == 0
    assert len(downloads(request_id)) == 2
    requester.book.set_disabled(requester.name, True)
    assert CliRunner().invoke(app, ["restore", request_id, fetched("three")]).exit_code == BadToken.exit_code


def test_nothing_is_fetched_without_a_record(
    requester: Requester, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request_id = requester.submit(loose(tmp_path, {"a.png": next(iter(samples("protected").values())).png}))
    serve_request(request_id)

    def broken(*_: object, **__: object) -> None:
        raise EnvironmentFault("the disk is full")

    monkeypatch.setattr(AuditLog, "record", broken)
    told = CliRunner().invoke(app, ["restore", request_id, str(tmp_path / "out")])
    assert told.exit_code == EnvironmentFault.exit_code
    assert not (tmp_path / "out").exists()


def test_a_request_of_which_more_is_refused_than_can_be_named(
    requester: Requester, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.request.NAMED_REFUSALS", 1)
    protected = samples("protected")
    good, *others = sorted(protected)[:4]
    files = {f"bad{n}.png": altered(protected[key].png) for n, key in enumerate(others)}
    request_id = requester.submit(loose(tmp_path, {"good.png": protected[good].png, **files, "notes.txt": b"x"}))
    assert serve_request(request_id) == {"images": 5, "restored": 1, "refused": 4}
    assert requester.book.get_request(request_id).refused == 4
    told = CliRunner().invoke(app, ["restore", request_id, str(tmp_path / "out")])
    assert told.exit_code == 0
    assert "1 images restored, 4 refused" in told.output and "and 2 more" in told.output


def test_why_nothing_was_restored_counts_all_of_it(
    requester: Requester, monkeypatch: pytest.MonkeyPatch, other: Path
) -> None:
    monkeypatch.setattr("tasks.request.NAMED_REFUSALS", 1)
    images = len(samples("protected"))
    request_id = requester.submit(other)
    with pytest.raises(NoGrant, match=f"None of {images} images was restored"):
        serve_request(request_id)
