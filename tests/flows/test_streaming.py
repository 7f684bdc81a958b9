"""Protecting and restoring from address to address: the bytes of the local run, a file a worker, and going on."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from typer.testing import CliRunner

import flows.restore_shards
import tasks.stream
from flows import access
from flows.cli import app
from flows.protect_stream import run_protect_stream
from flows.restore import serve_request
from flows.services import object_store
from storage.addresses import fetch_shard, open_address, open_private_address, read_remote_manifest
from storage.audit import open_audit_log
from storage.errors import (
    CorruptShard,
    DmcpError,
    NoGrant,
    NotFound,
    ObjectStoreError,
    UsageError,
    VersionsOverlap,
)
from storage.files import sha256_file
from storage.manifest import MANIFEST_NAME, read_manifest
from storage.objects import ObjectStore
from storage.settings import settings
from storage.versions import list_versions
from tasks.params import ProtectParams, deep_merge, load_params
from tasks.publish import publish_variant
from tasks.request import submit_request
from tasks.request_deliver import check_place, deliver_results
from tests.faults.s3_proxy import contents
from tests.flows.world import SHARD_SIZE, SHARDS, entered

pytestmark = pytest.mark.usefixtures("server", "world")

WORKERS = 2  # as the world has it
SURROGATE = Path("data/sample/surrogate/model.pt")


@dataclass
class Watch:
    """The most shard files, whole or not, that ever lay below HOME/work at once, and their bytes."""

    files: int = 0
    size: int = 0
    on: bool = False
    before: set[Path] = field(default_factory=set)

    def look(self, event: str, arguments: tuple) -> None:
        """An audit hook of Python: called before each file is opened, renamed or removed."""
        if not self.on or event not in ("open", "os.rename", "os.remove") or ".tar" not in str(arguments[0]):
            return
        here = [path for path in settings().home_path("work").rglob("*.tar*") if path not in self.before]
        self.files = max(self.files, len(here))
        self.size = max(self.size, sum(path.stat().st_size for path in here if path.exists()))

    @contextmanager
    def watching(self) -> Iterator["Watch"]:
        self.before = set(settings().home_path("work").rglob("*.tar*"))  # of the built world
        self.files, self.size, self.on = 0, 0, True
        try:
            yield self
        finally:
            self.on = False


@pytest.fixture(scope="module")
def watch() -> Watch:
    made = Watch()
    sys.addaudithook(made.look)
    return made


@pytest.fixture(scope="module")
def server(built: Path) -> Iterator[None]:
    """The embedded server of the world, for all of these tests."""
    with entered(built), object_store():
        yield


@cache
def at(address: str) -> ObjectStore:
    return open_address(settings(), address)


def bucket(what: str) -> str:
    """The address of a bucket of this test's own, that is not there yet."""
    return f"s3://test-{what}-{uuid4().hex[:8]}"


def placed(variant: Path) -> str:
    """The address of a bucket of its own that holds the variant now."""
    address = f"{bucket(variant.name)}/in/sample"
    at(address).ensure_bucket()
    for path in variant.iterdir():
        at(address).put_file(path, path.name)
    return address


@pytest.fixture
def source(world: Path) -> str:
    """The clean variant in a bucket of its own."""
    return placed(world / "data/sample/clean")


@pytest.fixture(scope="module")
def local(server: None) -> dict[str, str]:
    """What `dmcp publish` makes of what the local run protected."""
    store = at(bucket("local"))
    publish_variant(Path("data/sample/protected"), store, "sample")
    return contents(store)


def protect(source: str, target: str) -> dict:
    key_id = access.current_key_id("sample")
    return run_protect_stream(source, target, SURROGATE, load_params("sample").protect, key_id)


def counted(monkeypatch: pytest.MonkeyPatch, module: object, name: str, fail_at: int | None = None) -> list[int]:
    """Count the calls of a function; the one of this number fails as if the process ended there."""
    calls: list[int] = []
    real: Callable = getattr(module, name)

    def counting(*args: object, **more: object) -> object:
        calls.append(len(calls))
        if len(calls) - 1 == fail_at:
            raise KeyError("cut off")
        return real(*args, **more)

    monkeypatch.setattr(module, name, counting)
    return calls


# --- protecting ------------------------------------------------------------------------------------------------------


def test_the_bytes_are_those_of_the_local_run_and_a_worker_has_one_file(
    source: str, local: dict[str, str], watch: Watch
) -> None:
    target = f"{bucket('public')}/some/where"
    with watch.watching():
        made = protect(source, target)
    largest = max(shard.bytes for name in ("clean", "protected") for shard in read_manifest(_variant(name)).shards)
    assert 1 <= watch.files <= WORKERS
    assert watch.size <= WORKERS * largest
    assert made["protected"] == SHARDS * SHARD_SIZE and (made["shards_sent"], made["shards_there"]) == (SHARDS, 0)
    assert contents(at(target)) == local
    assert not list(settings().home_path("work", "protect-stream").rglob("*.tar*"))
    with open_audit_log(settings()) as log:
        assert made["version"] in [entry.subject for entry in log.entries(action="version.publish")]
    assert (protect(source, target)["shards_sent"], list(versions(target))) == (0, [made["version"]])


def _variant(name: str) -> Path:
    return settings().data_path("sample", name)


def versions(address: str) -> Iterator[str]:
    return (found.id for found in list_versions(at(address), "sample"))


def test_cut_off_it_goes_on(source: str, local: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    target = bucket("public")
    monkeypatch.setenv("DMCP_WORKERS", "1")
    settings.cache_clear()
    counted(monkeypatch, tasks.stream, "protect_shard", fail_at=2)
    with pytest.raises(KeyError, match="cut off"):
        protect(source, target)
    with pytest.raises(NotFound):
        list(versions(target))
    there = sorted(contents(at(target)))
    assert [key.split("/")[1] for key in there] == ["shards", "shards"]
    (work,) = (path for path in settings().home_path("work/protect-stream/sample").iterdir() if path.is_dir())
    (work / "shard-killed").mkdir()  # as SIGKILL leaves it
    (work / "shard-killed/clean.tar.part").write_bytes(b"half")
    at(target).delete(there[0])  # what is on record and not in the bucket is computed again

    monkeypatch.undo()
    again = counted(monkeypatch, tasks.stream, "protect_shard")
    assert protect(source, target)["shards_there"] == 1
    assert len(again) == SHARDS - 1
    assert contents(at(target)) == local
    assert not list(work.rglob("*.tar*"))


def test_what_is_wrong_with_a_shard_is_said_and_mended(source: str, local: dict[str, str], tmp_path: Path) -> None:
    target, clean = bucket("public"), at(source)
    name = read_manifest(_variant("clean")).shards[2].name
    whole = clean.get_bytes(name)
    clean.delete(name)
    with pytest.raises(CorruptShard, match=rf"{name} is missing: .*/in/sample/{name}"):
        protect(source, target)
    with pytest.raises(NotFound):
        list(versions(target))
    clean.put_bytes(name, whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    with pytest.raises(CorruptShard, match=rf"{name} is not the one its manifest names.*SHA-256"):
        fetch_shard(clean, read_manifest(_variant("clean")).shards[2], tmp_path / "shard.tar")
    assert not list(tmp_path.iterdir())
    clean.put_bytes(name, whole)
    assert protect(source, target)["shards_sent"] == 1
    assert contents(at(target)) == local


def test_an_unprotected_image_is_never_sent(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target = bucket("public")

    def forgetful(clean: Path, out: Path, *args: object, **more: object) -> object:
        report = real(clean, out, *args, **more)
        out.write_bytes((_variant("clean") / "train-000000.tar").read_bytes())
        return report

    real = tasks.stream.protect_shard
    monkeypatch.setattr(tasks.stream, "protect_shard", forgetful)
    with pytest.raises(DmcpError, match=r"must not be published.*Nothing of its shard was sent"):
        protect(source, target)
    assert contents(at(target)) == {}


def test_shards_that_must_not_be_public_beside_others_do_not_stay(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target, key_id = bucket("public"), access.current_key_id("sample")
    first = protect(source, target)["version"]
    before = contents(at(target))
    monkeypatch.setenv("DMCP_EARLIER_VERSIONS", "refuse")
    settings.cache_clear()
    over = {"exact": {"set": {"amplitude": 20}}}
    params = ProtectParams(**deep_merge(load_params("sample").protect.model_dump(), over))
    with monkeypatch.context() as patch:
        patch.setattr(tasks.stream, "send_shard", lambda *_: pytest.fail("it was sent"))
        with pytest.raises(VersionsOverlap, match="A version of sample is public"):
            run_protect_stream(source, target, SURROGATE, params, key_id)
    assert contents(at(target)) == before
    monkeypatch.undo()
    settings.cache_clear()
    made = run_protect_stream(source, target, SURROGATE, params, key_id)
    assert (made["withdrawn"], list(versions(target))) == ([first], [made["version"]])


def test_what_a_run_with_other_parameters_left_behind_goes(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target, sent = bucket("public"), []

    def cut_off(path: Path, store: ObjectStore, key: str, *more: Any) -> bool:
        if sent:
            raise ObjectStoreError("The cable was pulled.")
        sent.append(key)
        return real(path, store, key, *more)

    real = tasks.stream.send_shard
    over = {"exact": {"set": {"amplitude": 20}}}
    params = ProtectParams(**deep_merge(load_params("sample").protect.model_dump(), over))
    with monkeypatch.context() as patch, pytest.raises(ObjectStoreError):
        patch.setattr(tasks.stream, "send_shard", cut_off)
        run_protect_stream(source, target, SURROGATE, params, access.current_key_id("sample"))
    assert sent and sent[0] in contents(at(target))
    made = protect(source, target)
    assert sent[0] not in contents(at(target)) and list(versions(target)) == [made["version"]]


@pytest.mark.parametrize(
    "address", ["s3://", "s3://B", "s3:/bucket/x", "data/clean", "s3://bucket/a//b", "s3://bucket/../b"]
)
def test_no_address(world: Path, address: str) -> None:
    with pytest.raises(UsageError):
        open_address(settings(), address)


def test_nothing_at_the_address(source: str) -> None:
    for nothing in (f"{source}/deeper", bucket("none")):
        with pytest.raises(NotFound, match="There is no variant at"):
            read_remote_manifest(at(nothing))


# --- restoring -------------------------------------------------------------------------------------------------------


@pytest.fixture
def version(source: str) -> str:
    """The variant, published where requests look for it."""
    return str(protect(source, public())["version"])


def ask(version: str, tmp_path: Path, granted: bool = True) -> str:
    """A request of a user of this test's own for the whole version."""
    name = f"user-{uuid4().hex[:8]}"
    with access.registry() as book:
        token = book.add_user(name)
        if granted:
            book.grant(name, "sample")
        return submit_request(book, private(), token, f"sample@{version}", work=tmp_path, public=at(public()))


def public() -> str:
    return f"s3://{settings().s3_public_bucket}"


def private() -> ObjectStore:
    return at(f"s3://{settings().s3_private_bucket}")


def place() -> ObjectStore:
    return open_private_address(settings(), f"s3://{settings().s3_private_bucket}/recovered-{uuid4().hex[:8]}")


def deliver(request_id: str, to: ObjectStore) -> int:
    return deliver_results(private(), request_id, to, settings().home_path("work")).restored


def assert_clean(there: ObjectStore) -> None:
    lies = contents(there)
    assert {"report.json", "refused.csv"} <= set(lies)
    clean = {path.name: sha256_file(path) for path in _variant("clean").iterdir()}
    assert {name: lies[name] for name in lies if name not in ("report.json", "refused.csv")} == clean


def test_a_published_version_is_restored_to_an_address(version: str, watch: Watch, tmp_path: Path) -> None:
    to, request_id = place(), ask(version, tmp_path)
    with watch.watching():
        serve_request(request_id)
    assert 1 <= watch.files <= WORKERS
    with watch.watching():
        assert deliver(request_id, to) == SHARDS * SHARD_SIZE
    assert watch.files <= 2
    assert_clean(to)
    with open_audit_log(settings()) as log:
        assert len([e for e in log.entries(action="release") if e.request_id == request_id]) == SHARDS

    before = {info.key: info.modified for info in to.list()}
    deliver(request_id, to)
    assert {info.key: info.modified for info in to.list()} == before
    other = ask(version, tmp_path)
    for taken in (to, private()):
        with pytest.raises(UsageError, match="is not empty"):
            check_place(taken, other)
    with pytest.raises(NotFound, match="no result"):
        deliver(other, place())
    with pytest.raises(UsageError, match="public bucket"):
        open_private_address(settings(), f"{public()}/recovered")
    with pytest.raises(NoGrant):
        ask(version, tmp_path, granted=False)


def test_a_restoration_cut_off_goes_on(version: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    to, request_id = place(), ask(version, tmp_path)
    monkeypatch.setenv("DMCP_WORKERS", "1")
    settings.cache_clear()
    counted(monkeypatch, flows.restore_shards, "restore_samples", fail_at=2)
    with pytest.raises(KeyError, match="cut off"):
        serve_request(request_id)
    monkeypatch.undo()
    first, second = sorted(info.key for info in private().list(f"requests/{request_id}/attempt-1/"))
    private().delete(second)  # what is on record and not in the bucket is restored again
    again = counted(monkeypatch, flows.restore_shards, "restore_samples")
    serve_request(request_id, force=True)
    assert len(again) == 2 and private().exists(first)

    counted(monkeypatch, tasks.request_deliver, "_put", fail_at=2)
    with pytest.raises(KeyError, match="cut off"):
        deliver(request_id, to)
    assert not to.exists(MANIFEST_NAME)
    monkeypatch.undo()
    assert deliver(request_id, to) == SHARDS * SHARD_SIZE
    assert_clean(to)


# --- by command ------------------------------------------------------------------------------------------------------


def test_by_command(source: str, prefect_api: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PREFECT_API_URL", prefect_api)

    def dmcp(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == code, result.output
        return result.output

    target = public()
    assert "--surrogate" in dmcp("protect", source, target, code=2)
    named = ("--surrogate", str(SURROGATE))
    assert "amplitude is 0" in dmcp("protect", source, target, *named, "--set", "exact.set.amplitude=0", code=2)
    assert "--surrogate names one" in dmcp("protect", source, target, *named, "--set", "surrogate.epochs=1", code=2)
    for folder, why in (("protected", "protected already"), ("test", "never protected")):
        assert why in dmcp("protect", placed(Path("data/sample", folder)), target, *named, code=2)
    for elsewhere in (bucket("target"), f"{target}/photos"):
        assert f"publishes, {target}: no grant" in " ".join(dmcp("protect", source, elsewhere, *named, code=2).split())
    assert "both addresses" in dmcp("protect", source, str(tmp_path), code=2)
    assert "dmcp publish" in dmcp("protect", "data/sample/clean", "out", "--contact", "me@example.org", code=2)
    said = dmcp("protect", source, target, "--surrogate", str(SURROGATE), "--contact", "me@example.org")
    assert f"Protected {SHARDS * SHARD_SIZE} of {SHARDS * SHARD_SIZE} images" in said
    request_id = ask(next(versions(target)), tmp_path)
    out = f"s3://{settings().s3_private_bucket}/by-command-{request_id[:8]}"
    assert f"{SHARDS * SHARD_SIZE} images restored" in dmcp("restore", request_id, out)
    assert_clean(at(out))
    assert "public bucket" in dmcp("restore", request_id, f"{target}/recovered", code=2)
