import hashlib
import http.client
import os
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from storage.errors import (
    CorruptShard,
    NotFound,
    ObjectStoreError,
    PublicationConflict,
    ServiceError,
    SettingsError,
    UsageError,
)
from storage.guarantee import Guarantee, probe_conditional_puts
from storage.objects import ObjectStore, open_store
from storage.s3_client import MULTIPART_FROM, PART_BYTES, digest_file
from storage.server import ServerAddress, rclone_executable
from storage.server_state import buckets
from storage.settings import Settings
from tests.services import Careful


def test_bytes_come_back(store: ObjectStore) -> None:
    etag = store.put_bytes("a/b.json", b"{}", content_type="application/json")
    assert store.get("a/b.json") == (b"{}", etag)
    assert store.exists("a/b.json")
    assert store.size("a/b.json") == 2
    assert store.head("a/b.json").etag == etag == hashlib.md5(b"{}").hexdigest()
    store.delete("a/b.json")
    assert not store.exists("a/b.json")
    store.delete("a/b.json")


def test_a_listing_follows_every_put_and_goes_over_pages(store: ObjectStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        there = 0
        for more in (1, 1, 499, 504):
            list(pool.map(lambda i: store.put_bytes(f"many/{i:04d}", b"x"), range(there, there + more)))
            there += more
            assert sum(1 for _ in store.list("many/")) == there
    store.put_bytes("other/x", b"yy")
    assert [(o.key, o.size) for o in store.list("other/")] == [("other/x", 2)]
    assert [o.key for o in store.list("many/000")] == [f"many/000{i}" for i in range(10)]
    assert list(store.list("none/")) == []


def test_a_prefix_keeps_stores_apart(object_server: ServerAddress, store: ObjectStore) -> None:
    below = object_server.store(store.bucket, "team/one/")
    below.put_bytes("k", b"1")
    assert [o.key for o in below.list()] == ["k"]
    assert store.get_bytes("team/one/k") == b"1"


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "../a", "a/./b", "a\nb"])
def test_keys_that_servers_confuse_are_refused(store: ObjectStore, key: str) -> None:
    with pytest.raises(UsageError):
        store.put_bytes(key, b"")


def test_files_come_back_with_progress(store: ObjectStore, tmp_path: Path) -> None:
    source, target = tmp_path / "s", tmp_path / "sub" / "t"
    source.write_bytes(os.urandom(300_000))
    digest = digest_file(source)
    sent: list[int] = []
    came: list[int] = []
    store.put_file(source, "f", digest.sha256, advance=sent.append)
    assert store.holds("f", digest)
    store.get_file("f", target, digest.sha256, digest.size, came.append)
    assert target.read_bytes() == source.read_bytes()
    assert sum(sent) == sum(came) == 300_000


def test_a_large_file_goes_in_parts(store: ObjectStore, tmp_path: Path) -> None:
    source = tmp_path / "s"
    with source.open("wb") as file:
        for _ in range(MULTIPART_FROM // PART_BYTES):
            file.write(os.urandom(PART_BYTES))
        file.write(b"tail")
    digest = digest_file(source)
    store.put_file(source, "f", digest.sha256)
    assert store.holds("f", digest)
    store.get_file("f", tmp_path / "t", digest.sha256, digest.size)
    assert digest_file(tmp_path / "t") == digest


def begun(store: ObjectStore, key: str) -> str:
    """An upload in parts of which one part arrived, and then no more; its id."""
    at = {"Bucket": store.bucket, "Key": store.prefix + key}
    identity = store._client.create_multipart_upload(**at)["UploadId"]
    store._client.upload_part(**at, PartNumber=1, UploadId=identity, Body=bytes(5 << 20))
    return str(identity)


def test_uploads_that_were_cut_off_are_found_and_given_up(object_server: ServerAddress, store: ObjectStore) -> None:
    below = object_server.store(store.bucket, "team/one/")
    assert list(below.unfinished()) == []
    began = datetime.now(UTC)
    wanted = {(key, begun(below, key)) for key in ("requests/a/1.tar", "requests/a/2.tar", "requests/b/1.tar")}
    begun(below, "other/1.tar")
    begun(store, "requests/a/1.tar")
    assert list(store.list()) == [], "which is why they would never be removed"
    found = list(below.unfinished("requests/"))
    assert {(upload.key, upload.upload_id) for upload in found} == wanted
    assert all(abs(upload.begun - began) < timedelta(minutes=10) for upload in found)
    for upload in found:
        below.give_up(upload)
        below.give_up(upload)  # another one did it before
    assert list(below.unfinished("requests/")) == []
    assert [upload.key for upload in below.unfinished()] == ["other/1.tar"]
    assert len(list(store.unfinished())) == 2
    for upload in store.unfinished():
        store.give_up(upload)


def test_a_server_that_can_not_list_uploads_has_none(store: ObjectStore) -> None:
    """Stands before the real one and refuses as they do."""

    def refuse(params: Any, **_: Any) -> tuple[Any, dict[str, Any]]:
        return type("Answer", (), {"status_code": 501, "headers": {}})(), {
            "Error": {"Code": "NotImplemented", "Message": "A header implies functionality that is not implemented"},
            "ResponseMetadata": {"HTTPStatusCode": 501},
        }

    store._client.meta.events.register("before-call.s3.ListMultipartUploads", refuse)
    assert list(store.unfinished()) == []


def test_etag_of_parts_is_composed_as_aws_does(tmp_path: Path) -> None:
    parts = [b"a" * PART_BYTES] * (MULTIPART_FROM // PART_BYTES) + [b"b" * 10]
    (tmp_path / "f").write_bytes(b"".join(parts))
    composed = hashlib.md5(b"".join(hashlib.md5(p).digest() for p in parts)).hexdigest()
    whole = hashlib.md5(b"".join(parts)).hexdigest()
    assert digest_file(tmp_path / "f").etags == {f"{composed}-{len(parts)}", whole}


def test_holds_sees_absence_size_content_and_reads_back_a_strange_etag(store: ObjectStore, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"right")
    digest = digest_file(path)
    assert not store.holds("f", digest)
    store.put_bytes("f", b"wrong")
    assert not store.holds("f", digest)
    store.put_bytes("f", b"longer than right")
    assert not store.holds("f", digest)
    store.put_bytes("f", b"right")
    assert store.holds("f", digest)
    assert store.holds("f", type(digest)(digest.size, digest.sha256, frozenset({"etag of an encrypted bucket"})))


def test_a_download_that_is_not_what_was_asked_for_leaves_nothing(store: ObjectStore, tmp_path: Path) -> None:
    store.put_bytes("f", b"right")
    target = tmp_path / "t"
    target.write_bytes(b"before")
    with pytest.raises(CorruptShard, match=r"SHA-256.*uploaded again"):
        store.get_file("f", target, sha256="0" * 64)
    with pytest.raises(CorruptShard, match="5 bytes instead of 6"):
        store.get_file("f", target, size=6)
    assert [p.name for p in tmp_path.iterdir()] == ["t"]
    assert target.read_bytes() == b"before"


def test_what_is_not_there(store: ObjectStore, object_server: ServerAddress, tmp_path: Path) -> None:
    for call in (store.get_bytes, store.head, store.size, lambda key: store.get_file(key, tmp_path / "t")):
        with pytest.raises(NotFound, match=f"{store.bucket}/no/such"):
            call("no/such")
    nowhere = object_server.store("no-such-bucket")
    for call in (lambda: nowhere.put_bytes("a", b""), lambda: list(nowhere.list()), lambda: nowhere.get_bytes("a")):
        with pytest.raises(NotFound, match=r"no bucket no-such-bucket at http://127.0.0.1.*DMCP_S3_PUBLIC_BUCKET"):
            call()


@pytest.mark.parametrize("wrong", ["access", "secret"])
def test_wrong_credentials(object_server: ServerAddress, store: ObjectStore, tmp_path: Path, wrong: str) -> None:
    (tmp_path / "f").write_bytes(b"1")
    access = "NOTTHEKEY" if wrong == "access" else object_server.access_key
    secret = "not-the-secret" if wrong == "secret" else object_server.secret_key
    thief = ObjectStore(object_server.endpoint, "us-east-1", access, secret, store.bucket)
    for call in (
        lambda: thief.get_bytes("a"),
        lambda: thief.put_bytes("a", b"1"),
        lambda: thief.put_file(tmp_path / "f", "a"),
        lambda: thief.exists("a"),
        thief.ensure_bucket,
        lambda: list(thief.list()),
    ):
        with pytest.raises(ObjectStoreError, match="DMCP_S3_SECRET_KEY") as raised:
            call()
        assert secret not in str(raised.value)


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No credentials anywhere, as for a stranger."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.mark.usefixtures("nobody")
def test_without_any_credentials_requests_are_unsigned(
    object_server: ServerAddress, store: ObjectStore, tmp_path: Path
) -> None:
    with pytest.raises(ObjectStoreError, match="refused"):
        ObjectStore(object_server.endpoint, "us-east-1", None, None, store.bucket).get_bytes("a")
    served = tmp_path / "buckets"
    (served / "open").mkdir(parents=True)
    (served / "open" / "a").write_bytes(b"for anyone")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [
        rclone_executable(),
        "serve",
        "s3",
        "--addr",
        address,
        "--config",
        "",
        "--read-only",
        tmp_path / "buckets",
    ]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        try:
            anyone = open_store(
                Settings(s3_endpoint=f"http://{address}", s3_public_bucket="open", _env_file=None), "public"
            )
            assert anyone.get_bytes("a") == b"for anyone"
        finally:
            server.terminate()


def test_a_server_out_of_reach() -> None:
    store = ObjectStore("http://127.0.0.1:1", "us-east-1", "a", "b", "bucket", attempts=1)
    with pytest.raises(ObjectStoreError, match=r"http://127.0.0.1:1 does not answer.*dmcp up"):
        store.get_bytes("a")
    with pytest.raises(SettingsError, match="DMCP_S3_ENDPOINT"):
        ObjectStore("not an address", "us-east-1", "a", "b", "bucket")


def test_an_endpoint_with_a_password_is_shown_without(store: ObjectStore) -> None:
    assert "hush" not in repr(ObjectStore("http://me:hush@127.0.0.1:1", "r", "a", "b", "bucket"))


def test_a_proxy_in_the_environment_is_not_asked_for_loopback(
    object_server: ServerAddress, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    object_server.store(store.bucket).put_bytes("a", b"1")


def test_presigned_addresses_work_without_credentials_and_end(store: ObjectStore) -> None:
    store.put_bytes("a", b"content")
    address, short = store.presigned_get("a", 3600), store.presigned_get("a", 1)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    assert opener.open(address).read() == b"content"
    with pytest.raises(urllib.error.HTTPError):
        opener.open(address.replace("Signature=", "Signature=0"))
    time.sleep(2.1)
    with pytest.raises(urllib.error.HTTPError):
        opener.open(short)
    assert opener.open(address).read() == b"content"


def test_damage_on_the_way_is_noticed_by_the_server(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put_bytes("a", b"before")
    monkeypatch.setattr("storage.s3_client.content_md5", lambda data: "AAAAAAAAAAAAAAAAAAAAAA==")
    with pytest.raises(ObjectStoreError, match="BadDigest"):
        store.put_bytes("a", b"after")
    assert store.get_bytes("a") == b"before"


def test_a_client_that_vanishes_midway_leaves_the_old_object(store: ObjectStore) -> None:
    store.put_bytes("a", b"before")
    host = store.endpoint.removeprefix("http://")
    request = store._client.generate_presigned_url("put_object", Params={"Bucket": store.bucket, "Key": "a"})
    connection = http.client.HTTPConnection(host)
    connection.putrequest("PUT", request.removeprefix(store.endpoint))
    connection.putheader("Content-Length", "10000000")
    connection.endheaders()
    connection.send(b"x" * 100_000)
    connection.close()
    time.sleep(0.3)
    assert store.get_bytes("a") == b"before"
    assert [o.key for o in store.list()] == ["a"]


def test_many_threads_share_a_store(store: ObjectStore) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for i in range(10):
                store.put_bytes(f"{number}/{i}", bytes([number, i]))
                assert store.get_bytes(f"{number}/{i}") == bytes([number, i])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert sum(1 for _ in store.list()) == 80


def test_the_probe_says_what_the_server_does(store: ObjectStore, promised: Guarantee) -> None:
    assert probe_conditional_puts(store) is promised
    assert list(store.list()) == []


class Quirky(Careful):
    """As Careful, but If-Match holds for an ETag with quotation marks (True), without (False), or never (None)."""

    def __init__(self, store: ObjectStore, wants: bool | None) -> None:
        super().__init__(store)
        self.wants = wants

    def put_bytes(self, key: str, data: bytes, *args: Any, if_match: str | None = None, **kwargs: Any) -> str:
        if if_match is not None and self.quotes_etags is not self.wants:
            raise PublicationConflict("412")
        return super().put_bytes(key, data, *args, if_match=if_match, **kwargs)


def test_the_probe_finds_out_how_an_etag_is_to_be_named(store: ObjectStore, object_home: Path) -> None:
    for wants in (True, False):
        quirky = Quirky(store, wants)
        assert probe_conditional_puts(quirky) is Guarantee.ATOMIC
        assert quirky.quotes_etags is wants
    assert probe_conditional_puts(Quirky(store, None)) is Guarantee.LAST_WRITER_WINS


def test_the_probe_tells_atomic_from_racy(store: ObjectStore, object_home: Path) -> None:
    assert probe_conditional_puts(Careful(store)) is Guarantee.ATOMIC
    assert probe_conditional_puts(Careful(store, atomic=False)) is Guarantee.LAST_WRITER_WINS
    # Looked for on disk: after eight writers at once rclone may go on listing an object that is deleted.
    assert [path for path in (buckets(object_home) / store.bucket).rglob("*") if path.is_file()] == []


def test_open_store_finds_the_embedded_server(object_server: ServerAddress, object_home: Path) -> None:
    settings = Settings(home=object_home, s3_public_bucket="pub-x", s3_prefix="p", _env_file=None)
    store = open_store(settings, "public")
    store.ensure_bucket()
    store.put_bytes("k", b"1")
    assert store.where("k") == f"{object_server.endpoint}/pub-x/p/k"
    assert open_store(settings, "private").bucket == settings.s3_private_bucket


def test_open_store_without_a_server_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="dmcp up"):
        open_store(Settings(home=tmp_path, _env_file=None), "public")
    with pytest.raises(SettingsError, match="Set both"):
        open_store(Settings(s3_endpoint="http://127.0.0.1:1", s3_access_key="a", _env_file=None), "public")
