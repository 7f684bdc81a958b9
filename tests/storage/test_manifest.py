import json
import shutil
from pathlib import Path

import pytest

from storage.errors import CorruptManifest, CorruptShard
from storage.manifest import (
    Manifest,
    dump_manifest,
    parse_manifest,
    read_manifest,
    shard_name,
    verify_variant,
    write_manifest,
)
from storage.shards import Sample, ShardInfo, write_shard

SHARD = {"name": "train-000000.tar", "samples": 2, "bytes": 10240, "sha256": "a" * 64}
WHOLE = {"format": "dmcp-variant/1", "dataset": "x", "split": "train", "classes": ["a", "b"], "shards": [SHARD]}


def manifest(**changes: object) -> bytes:
    return json.dumps({**WHOLE, **changes}).encode()


def test_canonical_and_round_trip(tmp_path: Path) -> None:
    parsed = parse_manifest(manifest(classes=["äpfel", "b"]), "m")
    written = dump_manifest(parsed)
    assert written.endswith(b"}\n") and "äpfel".encode() in written
    assert list(json.loads(written)) == sorted(WHOLE)
    write_manifest(tmp_path, parsed)
    assert (tmp_path / "manifest.json").read_bytes() == written
    assert read_manifest(tmp_path) == parsed
    assert parsed.shards == [ShardInfo("train-000000.tar", 2, 10240, "a" * 64)]
    assert parsed.samples == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "dmcp-variant/2"},
        {"variant": "clean"},
        {"dataset": "../x"},
        {"split": "Train/"},
        {"classes": ["a", "a"]},
        {"classes": [".."]},
        {"classes": ["a/b"]},
        {"classes": ["a\n"]},
        {"classes": [""]},
        {"shards": [{**SHARD, "name": "../train-000000.tar"}]},
        {"shards": [{**SHARD, "name": "/etc/train-000000.tar"}]},
        {"shards": [{**SHARD, "name": "test-000000.tar"}]},
        {"shards": [SHARD, SHARD]},
        {"shards": [{**SHARD, "name": "train-000001.tar"}, SHARD]},
        {"shards": [{**SHARD, "sha256": "A" * 64}]},
        {"shards": [{**SHARD, "bytes": -1}]},
        {"shards": [{**SHARD, "samples": -1}]},
        {"shards": [{**SHARD, "clean_sha256": "b" * 64}]},
        {"shards": [{"name": "train-000000.tar"}]},
    ],
)
def test_what_is_no_manifest(changes: dict[str, object]) -> None:
    with pytest.raises(CorruptManifest, match=r"^m is no valid manifest"):
        parse_manifest(manifest(**changes), "m")


def test_not_json_and_missing(tmp_path: Path) -> None:
    with pytest.raises(CorruptManifest):
        parse_manifest(b"\xff{", "m")
    with pytest.raises(CorruptManifest, match="no variant"):
        read_manifest(tmp_path)
    with pytest.raises(CorruptManifest, match="no variant"):
        read_manifest(tmp_path / "missing")


@pytest.fixture
def variant(tmp_path: Path) -> Path:
    shards = [write_shard(tmp_path / shard_name("train", i), [Sample(f"{i}", b"x" * 100, 0)]) for i in range(3)]
    write_manifest(tmp_path, Manifest(dataset="x", split="train", classes=["a"], shards=shards))
    return tmp_path


def test_verify(variant: Path, small_variant: Path) -> None:
    heard: list[tuple[str, int, int | None]] = []
    checked = verify_variant(variant, lambda *said: heard.append(said))
    assert checked == read_manifest(variant)
    assert heard[-1] == ("train-000002.tar", 3 * 10240, 3 * 10240)
    assert verify_variant(small_variant).samples == 24


def test_verify_notices_each_kind_of_damage(variant: Path) -> None:
    middle = variant / "train-000001.tar"
    whole = middle.read_bytes()
    middle.write_bytes(whole[:-1])
    with pytest.raises(CorruptShard, match="instead of"):
        verify_variant(variant)
    middle.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(CorruptShard, match="SHA-256"):
        verify_variant(variant)
    middle.unlink()
    with pytest.raises(CorruptShard, match="missing"):
        verify_variant(variant)
    middle.write_bytes(whole)
    shutil.copy(middle, variant / "train-000009.tar")
    with pytest.raises(CorruptManifest, match="train-000009"):
        verify_variant(variant)
