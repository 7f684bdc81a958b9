import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from storage import committing
from storage.errors import (
    CorruptManifest,
    CorruptShard,
    NotProtected,
    ObjectStoreError,
    PublicationConflict,
    UsageError,
)
from storage.guarantee import Guarantee
from storage.manifest import read_manifest, verify_variant, write_manifest
from storage.objects import ObjectStore
from storage.publication import About, list_versions, publish, pull, read_version
from storage.server import ServerAddress
from storage.versions import channel_key, shard_key, version_key
from tests.services import Careful, make_variant


def tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def keys(store: ObjectStore) -> set[str]:
    return {o.key for o in store.list()}


@pytest.fixture
def variant(tmp_path: Path) -> Path:
    make_variant(tmp_path / "protected")
    return tmp_path / "protected"


def test_what_is_published_comes_back_byte_for_byte(
    store: ObjectStore, promised: Guarantee, variant: Path, tmp_path: Path
) -> None:
    told: list[tuple[str, int, int | None]] = []
    version = publish(
        variant, store, "tiny", "Mine.", lambda *step: told.append(step), about=About("owner@example.org")
    )
    assert (version.shards_uploaded, version.shards_shared, version.samples) == (3, 0, 12)
    assert version.guarantee is promised
    assert {what for what, _, _ in told} == {"check", "upload"}
    assert all(done <= (total or 0) for _, done, total in told)
    assert told[-1][1] == told[-1][2] == version.bytes

    pulled = pull(store, "tiny", tmp_path / "out" / "tiny", progress=lambda *step: told.append(step))
    assert (pulled.id, pulled.shards_downloaded, pulled.samples, pulled.bytes) == (version.id, 3, 12, version.bytes)
    assert told[-1] == ("download", version.bytes, version.bytes)
    came = tree(tmp_path / "out" / "tiny")
    assert came.pop("LICENSE") == b"Mine.\n"
    assert came.pop("croissant.json") == store.get_bytes(version_key("tiny", version.id, "croissant.json"))
    card = came.pop("README.md").decode()
    assert "12 images of 2 classes" in card
    assert "protected" in card
    assert "owner@example.org" in card
    assert "dmcp remote restore" in card
    assert came == tree(variant)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["tiny"]


def test_the_bucket_holds_what_the_format_says_and_nothing_else(store: ObjectStore, variant: Path) -> None:
    version = publish(variant, store, "tiny")
    manifest = verify_variant(variant)
    assert keys(store) == {shard_key("tiny", s) for s in manifest.shards} | {
        f"tiny/versions/{version.id}/{name}" for name in ("manifest.json", "README.md", "LICENSE", "croissant.json")
    } | {"tiny/channels/latest.json"}
    assert store.get_bytes(version_key("tiny", version.id)) == (variant / "manifest.json").read_bytes()
    assert json.loads(store.get_bytes(channel_key("tiny"))).keys() == {"version", "published"}
    assert b"written grant" in store.get_bytes(version_key("tiny", version.id, "LICENSE"))


def test_publishing_the_same_again_changes_nothing(store: ObjectStore, variant: Path) -> None:
    first = publish(variant, store, "tiny")
    before = list(store.list())
    second = publish(variant, store, "tiny")
    assert second.id == first.id
    assert (second.shards_uploaded, second.shards_shared) == (0, 3)
    assert list(store.list()) == before


def test_a_shard_that_a_withdrawal_took_meanwhile_is_sent_again(
    store: ObjectStore, variant: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = shard_key("tiny", read_manifest(variant).shards[1])
    commit = committing._commit

    def slow(*arguments: Any) -> None:
        commit(*arguments)
        store.delete(taken)

    monkeypatch.setattr(committing, "_commit", slow)
    done = publish(variant, store, "tiny")
    assert pull(store, "tiny", tmp_path / "out").id == done.id


def test_texts_that_are_gone_come_back(store: ObjectStore, variant: Path, tmp_path: Path) -> None:
    version = publish(variant, store, "tiny").id
    before = keys(store)
    for name in ("README.md", "croissant.json"):  # a withdrawal that was killed before the manifest went
        store.delete(version_key("tiny", version, name))
    assert publish(variant, store, "tiny").id == version
    assert keys(store) == before
    assert pull(store, "tiny", tmp_path / "out").id == version


def test_payloads_are_written_before_the_manifest_and_told_of(store: ObjectStore, variant: Path) -> None:
    class Order(ObjectStore):
        def __init__(self, store: ObjectStore) -> None:
            self.__dict__.update(store.__dict__)
            self.written: list[str] = []

        def put_bytes(self, key: str, *args, **kwargs) -> str:
            self.written.append(key.rpartition("/")[2])
            return super().put_bytes(key, *args, **kwargs)

    def payloads() -> bytes:
        assert seen == 12, "it is asked when all images were checked"
        return b"beside\n"

    def check(png: bytes) -> None:
        nonlocal seen
        seen += 1

    seen = 0
    order = Order(store)
    version = publish(variant, order, "tiny", check=check, payloads=payloads, workers=1)
    assert order.written[-6:] == [
        "payloads.jsonl",
        "LICENSE",
        "README.md",
        "croissant.json",
        "manifest.json",
        "latest.json",
    ]
    assert store.get_bytes(version_key("tiny", version.id, "payloads.jsonl")) == b"beside\n"
    assert b"`payloads.jsonl`" in store.get_bytes(version_key("tiny", version.id, "README.md"))


def test_payloads_that_are_there_are_not_sent_again_and_damaged_ones_are_replaced(
    store: ObjectStore, variant: Path
) -> None:
    key = version_key("tiny", publish(variant, store, "tiny", payloads=lambda: b"beside\n").id, "payloads.jsonl")
    before = list(store.list())
    publish(variant, store, "tiny", payloads=lambda: b"beside\n")
    assert list(store.list()) == before
    for damage in (b"besode\n", b"besi"):
        store.put_bytes(key, damage)
        publish(variant, store, "tiny", payloads=lambda: b"beside\n")
        assert store.get_bytes(key) == b"beside\n"


def test_versions_share_shards_and_the_channel_can_go_back(store: ObjectStore, variant: Path, tmp_path: Path) -> None:
    first = publish(variant, store, "tiny")
    make_variant(tmp_path / "more", shards=4)
    second = publish(tmp_path / "more", store, "tiny")
    third = publish(variant, store, "tiny", "Other terms.")
    assert (second.shards_uploaded, second.shards_shared) == (1, 3)
    assert (third.shards_uploaded, third.shards_shared) == (0, 3)
    assert len({first.id, second.id, third.id}) == 3
    assert {v.id: v.latest for v in list_versions(store, "tiny")} == {first.id: False, second.id: False, third.id: True}
    assert publish(tmp_path / "more", store, "tiny").id == second.id
    assert read_version(store, "tiny")[0] == second.id
    assert pull(store, "tiny", tmp_path / "out", first.id).id == first.id
    assert len(list((tmp_path / "out").glob("*.tar"))) == 3


PUBLISH_AND_DIE = """
import os, signal, sys
from pathlib import Path
from storage.objects import ObjectStore
from storage.publication import publish
import storage.publication, storage.objects
store = ObjectStore(sys.argv[1], "us-east-1", os.environ["ACCESS"], os.environ["SECRET"], sys.argv[2])
die_before = sys.argv[3]
put = ObjectStore.put_bytes
def put_or_die(self, key, *args, **kwargs):
    if die_before in key:
        os.kill(os.getpid(), signal.SIGKILL)
    return put(self, key, *args, **kwargs)
ObjectStore.put_bytes = put_or_die
def progress(what, done, total):
    if die_before == what and done * 2 > total:
        os.kill(os.getpid(), signal.SIGKILL)
publish(Path(sys.argv[4]), store, "tiny", progress=progress, payloads=lambda: b"beside", workers=1)
"""


@pytest.mark.parametrize(
    "die_before", ["upload", "payloads.jsonl", "README.md", "croissant.json", "manifest.json", "latest.json"]
)
def test_a_publisher_that_is_killed_leaves_no_half_version(
    object_server: ServerAddress, store: ObjectStore, variant: Path, tmp_path: Path, die_before: str
) -> None:
    make_variant(tmp_path / "old", shards=1)
    old = publish(tmp_path / "old", store, "tiny")
    killed = subprocess.run(
        [sys.executable, "-c", PUBLISH_AND_DIE, store.endpoint, store.bucket, die_before, str(variant)],
        check=False,
        env={**os.environ, "ACCESS": object_server.access_key, "SECRET": object_server.secret_key},
    )
    assert killed.returncode == -signal.SIGKILL
    assert read_version(store, "tiny")[0] == old.id
    assert pull(store, "tiny", tmp_path / "out").id == old.id
    complete = {v.id for v in list_versions(store, "tiny")}
    assert len(complete) == (2 if die_before == "latest.json" else 1)
    for version in complete:
        pull(store, "tiny", tmp_path / "out", version)

    new = publish(variant, store, "tiny", payloads=lambda: b"beside")
    assert store.get_bytes(version_key("tiny", new.id, "payloads.jsonl")) == b"beside"
    assert new.shards_shared == (2 if die_before == "upload" else 3), "the second of three was killed after its bytes"
    assert pull(store, "tiny", tmp_path / "out").id == new.id


def test_wrong_credentials_name_the_cure(
    object_server: ServerAddress, store: ObjectStore, variant: Path, tmp_path: Path
) -> None:
    publish(variant, store, "tiny")
    thief = ObjectStore(object_server.endpoint, "us-east-1", object_server.access_key, "wrong", store.bucket)
    with pytest.raises(ObjectStoreError, match="DMCP_S3_ACCESS_KEY"):
        publish(variant, thief, "tiny")
    with pytest.raises(ObjectStoreError, match="DMCP_S3_ACCESS_KEY"):
        pull(thief, "tiny", tmp_path / "out")


def test_what_is_not_protected_is_refused_before_a_byte_is_sent(store: ObjectStore, variant: Path) -> None:
    seen = 0

    def check(png: bytes) -> None:
        nonlocal seen
        seen += 1
        if seen == 7:
            raise NotProtected("There is no header.", "Protect it.")

    with pytest.raises(NotProtected, match=r"Image 00100002 in .*-000001.tar must not be published.*Nothing was sent"):
        publish(variant, store, "tiny", check=check, workers=1)
    assert keys(store) == set()
    seen = 100
    publish(variant, store, "tiny", check=check)
    assert seen == 112


def test_a_variant_that_is_not_what_its_manifest_says_is_refused(
    store: ObjectStore, variant: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="Publish it as tiny"):
        publish(variant, store, "other")
    manifest = verify_variant(variant)
    (variant / "train-000002.tar").unlink()
    with pytest.raises(CorruptShard, match=r"train-000002.tar is missing"):
        publish(variant, store, "tiny")
    (variant / "train-000002.tar").write_bytes(b"other")
    with pytest.raises(CorruptShard, match=r"train-000002.tar"):
        publish(variant, store, "tiny")
    write_manifest(variant, manifest.model_copy(update={"shards": []}))
    with pytest.raises(UsageError, match="no image"):
        publish(variant, store, "tiny")
    with pytest.raises(CorruptManifest):
        publish(tmp_path / "nowhere", store, "tiny")
    assert keys(store) == set()


def test_publishers_at_once_leave_whole_versions(store: ObjectStore, tmp_path: Path) -> None:
    folders = [tmp_path / f"v{i}" for i in range(4)]
    for i, folder in enumerate(folders):
        make_variant(folder, seed=i)

    def run(folder: Path) -> str | PublicationConflict:
        try:
            return publish(folder, store, "tiny").id
        except PublicationConflict as error:
            return error

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(run, folders))
    complete = {v.id for v in list_versions(store, "tiny")}
    assert len(complete) == 4
    assert {r for r in results if isinstance(r, str)} <= complete
    assert any(isinstance(r, str) for r in results)
    for version in complete:
        pull(store, "tiny", tmp_path / f"out-{version}", version)


def test_a_channel_moved_meanwhile_is_a_conflict_that_says_what_stands(
    store: ObjectStore, variant: Path, tmp_path: Path
) -> None:
    make_variant(tmp_path / "rival", seed=50)
    rivals: list[str] = []

    def rival_publishes(what: str, done: int, total: int | None) -> None:
        if what == "upload" and done == total and not rivals:
            rivals.append(publish(tmp_path / "rival", store, "tiny").id)

    with pytest.raises(PublicationConflict, match="Another publisher made") as raised:
        publish(variant, store, "tiny", progress=rival_publishes)
    assert rivals[0] in str(raised.value)
    assert len(list_versions(store, "tiny")) == 2
    assert read_version(store, "tiny")[0] == rivals[0]
    mine = publish(variant, store, "tiny")
    assert mine.shards_shared == 3
    assert read_version(store, "tiny")[0] == mine.id


def test_the_latest_version_published_again_notices_a_channel_moved_meanwhile(
    store: ObjectStore, variant: Path, tmp_path: Path
) -> None:
    make_variant(tmp_path / "rival", seed=50)
    mine = publish(variant, store, "tiny").id
    rivals: list[str] = []

    def rival_publishes(what: str, done: int, total: int | None) -> None:
        if what == "upload" and done == total and not rivals:
            rivals.append(publish(tmp_path / "rival", store, "tiny").id)

    with pytest.raises(PublicationConflict, match="Another publisher made") as raised:
        publish(variant, store, "tiny", progress=rival_publishes)
    assert rivals[0] in str(raised.value) and f"{mine} is complete" in str(raised.value)
    assert read_version(store, "tiny")[0] == rivals[0]
    assert publish(variant, store, "tiny").id == read_version(store, "tiny")[0] == mine


def test_a_channel_deleted_meanwhile_is_a_conflict_too(store: ObjectStore, variant: Path, tmp_path: Path) -> None:
    careful = Careful(store)
    publish(variant, careful, "tiny")
    make_variant(tmp_path / "more", shards=4)

    def someone_deletes(what: str, done: int, total: int | None) -> None:
        if what == "upload" and done == total:
            store.delete(channel_key("tiny"))

    with pytest.raises(PublicationConflict, match="made nothing the latest"):
        publish(tmp_path / "more", careful, "tiny", progress=someone_deletes)
    publish(tmp_path / "more", careful, "tiny")
    assert len(list_versions(store, "tiny")) == 2


def test_with_conditional_puts_the_guarantee_is_atomic(store: ObjectStore, variant: Path, tmp_path: Path) -> None:
    careful = Careful(store)
    make_variant(tmp_path / "rival", seed=50)
    version = publish(variant, careful, "tiny")
    assert version.guarantee is Guarantee.ATOMIC
    assert publish(variant, careful, "tiny").id == version.id
    rivals: list[str] = []

    def rival_publishes(what: str, done: int, total: int | None) -> None:
        if what == "upload" and done == total and not rivals:
            rivals.append(publish(tmp_path / "rival", careful, "tiny").id)

    make_variant(tmp_path / "third", seed=90)
    with pytest.raises(PublicationConflict, match="Another publisher made"):
        publish(tmp_path / "third", careful, "tiny", progress=rival_publishes)
    assert read_version(careful, "tiny")[0] == rivals[0]
    assert pull(careful, "tiny", tmp_path / "out").id == rivals[0]
