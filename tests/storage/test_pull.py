import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from storage.errors import (
    CorruptManifest,
    CorruptShard,
    NotFound,
    PublicationConflict,
    UsageError,
    WorkspaceBusy,
)
from storage.manifest import verify_variant
from storage.objects import ObjectStore
from storage.publication import list_versions, publish, pull, read_version
from storage.server import ServerAddress
from storage.versions import channel_key, shard_key, version_key
from tests.services import make_variant


@pytest.fixture
def variant(tmp_path: Path) -> Path:
    make_variant(tmp_path / "protected")
    return tmp_path / "protected"


def test_a_pull_over_an_older_one_fetches_what_is_new(store: ObjectStore, variant: Path, tmp_path: Path) -> None:
    publish(variant, store, "tiny")
    pull(store, "tiny", tmp_path / "out")
    make_variant(tmp_path / "more", shards=4)
    publish(tmp_path / "more", store, "tiny")
    again = pull(store, "tiny", tmp_path / "out")
    assert (again.shards_downloaded, again.shards_kept) == (1, 3)
    assert verify_variant(tmp_path / "out").samples == 16
    (tmp_path / "out" / "train-000001.tar").write_bytes(b"damaged here")
    assert pull(store, "tiny", tmp_path / "out").shards_downloaded == 1
    verify_variant(tmp_path / "out")


def test_payloads_come_with_the_version_that_has_them(store: ObjectStore, variant: Path, tmp_path: Path) -> None:
    publish(variant, store, "tiny", payloads=lambda: b"beside\n")
    for _ in range(2):  # the second time over an earlier pull
        pull(store, "tiny", tmp_path / "out")
        assert (tmp_path / "out" / "payloads.jsonl").read_bytes() == b"beside\n"
    publish(variant, store, "tiny", "Other terms.")
    pull(store, "tiny", tmp_path / "out")
    assert not (tmp_path / "out" / "payloads.jsonl").exists()
    verify_variant(tmp_path / "out")


def test_damage_and_loss_in_the_bucket_are_told_apart_and_publishing_again_heals(
    store: ObjectStore, variant: Path, tmp_path: Path
) -> None:
    publish(variant, store, "tiny")
    shard = verify_variant(variant).shards[1]
    data = bytearray(store.get_bytes(shard_key("tiny", shard)))
    data[700] ^= 1
    store.put_bytes(shard_key("tiny", shard), bytes(data))
    with pytest.raises(CorruptShard, match=r"train-000001.tar in the bucket is corrupt.*publish the same"):
        pull(store, "tiny", tmp_path / "out")
    store.put_bytes(shard_key("tiny", shard), bytes(data[:-512]))
    with pytest.raises(CorruptShard, match=rf"train-000001.tar.*instead of {shard.bytes}"):
        pull(store, "tiny", tmp_path / "out")
    store.delete(shard_key("tiny", shard))
    with pytest.raises(NotFound, match=r"train-000001.tar is missing from the bucket.*publish the same variant again"):
        pull(store, "tiny", tmp_path / "out")
    assert not (tmp_path / "out").exists()

    store.put_bytes(shard_key("tiny", shard), bytes(data))
    assert publish(variant, store, "tiny").shards_uploaded == 1
    healed = pull(store, "tiny", tmp_path / "out")
    assert (healed.shards_downloaded, healed.shards_kept) == (1, 2), "what had come was kept"


def test_a_pull_that_is_killed_goes_on(
    object_server: ServerAddress, store: ObjectStore, variant: Path, tmp_path: Path
) -> None:
    publish(variant, store, "tiny")
    code = """
import os, signal, sys
from pathlib import Path
from storage.objects import ObjectStore
from storage.publication import pull
store = ObjectStore(sys.argv[1], "us-east-1", os.environ["ACCESS"], os.environ["SECRET"], sys.argv[2])
kill = lambda what, done, total: done * 2 > total and os.kill(os.getpid(), signal.SIGKILL)
pull(store, "tiny", Path(sys.argv[3]), progress=kill, workers=1)
"""
    killed = subprocess.run(
        [sys.executable, "-c", code, store.endpoint, store.bucket, str(tmp_path / "out")],
        check=False,
        env={**os.environ, "ACCESS": object_server.access_key, "SECRET": object_server.secret_key},
    )
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert pull(store, "tiny", tmp_path / "out").shards_kept >= 1
    assert {p.name for p in tmp_path.iterdir()} == {"out", "protected"}


def test_what_does_not_exist(store: ObjectStore, variant: Path, tmp_path: Path) -> None:
    for call in (lambda: pull(store, "tiny", tmp_path / "out"), lambda: list_versions(store, "tiny")):
        with pytest.raises(NotFound, match="tiny"):
            call()
    publish(variant, store, "tiny")
    with pytest.raises(NotFound, match="tiny has no version 0123456789abcdef"):
        pull(store, "tiny", tmp_path / "out", "0123456789abcdef")
    for name, version in (("../tiny", "latest"), ("tiny", "../../x"), ("tiny", "0123"), ("", "latest")):
        with pytest.raises(UsageError):
            pull(store, name, tmp_path / "out", version)


def forged(store: ObjectStore, change: "dict[str, object]") -> None:
    """Put a changed manifest in the place of the published one."""
    version = read_version(store, "tiny")[0]
    manifest = json.loads(store.get_bytes(version_key("tiny", version)))
    manifest["shards"][0].update(change)
    store.put_bytes(version_key("tiny", version), json.dumps(manifest).encode())


@pytest.mark.parametrize(
    "change",
    [{"name": "../../evil.tar"}, {"name": "/etc/evil.tar"}, {"sha256": "../../../x"}, {"samples": 5}, {"bytes": 1}],
)
def test_a_manifest_that_leads_elsewhere_or_was_altered_is_refused(
    store: ObjectStore, variant: Path, tmp_path: Path, change: "dict[str, object]"
) -> None:
    publish(variant, store, "tiny")
    forged(store, change)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CorruptManifest):
        pull(store, "tiny", tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(PublicationConflict, match="delete that version's folder"):
        publish(variant, store, "tiny")


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"version": "../../x", "published": "2030-01-01T00:00:00Z"}', b"\xff"]
)
def test_a_channel_that_names_no_version_is_refused(
    store: ObjectStore, variant: Path, tmp_path: Path, content: bytes
) -> None:
    version = publish(variant, store, "tiny")
    store.put_bytes(channel_key("tiny"), content)
    with pytest.raises(CorruptManifest, match="does not name a version"):
        pull(store, "tiny", tmp_path / "out")
    assert pull(store, "tiny", tmp_path / "out", version.id).id == version.id


def test_altered_terms_are_noticed(store: ObjectStore, variant: Path, tmp_path: Path) -> None:
    version = publish(variant, store, "tiny")
    store.put_bytes(version_key("tiny", version.id, "LICENSE"), b"Do what you like.\n")
    with pytest.raises(CorruptManifest, match="altered"):
        pull(store, "tiny", tmp_path / "out")


def test_a_pull_never_replaces_what_it_did_not_make(store: ObjectStore, variant: Path, tmp_path: Path) -> None:
    publish(variant, store, "tiny")
    mine = tmp_path / "mine"
    mine.mkdir()
    pull(store, "tiny", mine)
    (mine / "thesis.txt").write_text("years of work")
    file = tmp_path / "file"
    file.write_text("also mine")
    other = tmp_path / "other"
    other.mkdir()
    (other / "manifest.json").write_text("{}")
    for target in (mine, file, other):
        with pytest.raises(UsageError, match="not an earlier pull"):
            pull(store, "tiny", target)
    assert (mine / "thesis.txt").read_text() == "years of work"
    assert file.read_text() == "also mine"


def test_two_pulls_into_one_folder(store: ObjectStore, variant: Path, tmp_path: Path) -> None:
    publish(variant, store, "tiny")
    busy: list[BaseException] = []

    def second(*_: object) -> None:
        try:
            pull(store, "tiny", tmp_path / "out")
        except WorkspaceBusy as error:
            busy.append(error)

    pull(store, "tiny", tmp_path / "out", progress=second)
    assert busy
    verify_variant(tmp_path / "out")
