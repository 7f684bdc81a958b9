"""Versions that show the same images otherwise: they are found, and taken back whole, whenever that was cut off."""

from pathlib import Path

import pytest

from storage.errors import CorruptManifest, NotFound, PublicationConflict
from storage.manifest import Manifest, read_manifest, write_manifest
from storage.objects import ObjectStore
from storage.overlaps import overlapping, remove_leftovers, remove_unnamed, withdraw
from storage.publication import publish, pull
from storage.versions import class_lists, list_payloads, list_versions, read_channel, shard_key, version_key
from tests.services import make_variant


def published(store: ObjectStore, folder: Path, **how: int) -> tuple[str, Manifest]:
    manifest = make_variant(folder, **how)
    return publish(folder, store, "tiny").id, manifest


def ids(store: ObjectStore) -> set[str]:
    return {version.id for version in list_versions(store, "tiny")}


def test_what_shows_the_same_images_otherwise(store: ObjectStore, tmp_path: Path) -> None:
    mine = make_variant(tmp_path / "mine")
    assert overlapping(store, "tiny", mine) == []
    first, _ = published(store, tmp_path / "a")
    grown, _ = published(store, tmp_path / "b", shards=5)
    other, _ = published(store, tmp_path / "c", seed=100)
    assert overlapping(store, "tiny", mine) == [other], "the same shards, and more of them, are no harm"
    assert set(overlapping(store, "tiny", make_variant(tmp_path / "d", seed=7))) == {first, grown, other}


def test_a_version_is_taken_back_and_the_others_stay_whole(store: ObjectStore, tmp_path: Path) -> None:
    first, manifest = published(store, tmp_path / "a")
    grown, larger = published(store, tmp_path / "b", shards=5)
    store.put_bytes(version_key("tiny", grown, "payloads.jsonl"), b"what copies need\n")
    gone = withdraw(store, "tiny", grown)
    assert (gone.id, gone.images, gone.shards) == (grown, larger.samples, 2)
    assert ids(store) == {first}
    assert pull(store, "tiny", tmp_path / "out", first).id == first
    assert read_channel(store, "tiny") is None, "it was the latest"
    left = {o.key for o in store.list(f"tiny/versions/{grown}/")}
    assert left == {version_key("tiny", grown, name) for name in ("LICENSE", "classes.json", "payloads.jsonl")}
    assert list_payloads(store, "tiny") == [version_key("tiny", grown, "payloads.jsonl")]
    assert [store.exists(shard_key("tiny", s)) for s in larger.shards] == [True] * len(manifest.shards) + [False] * 2
    with pytest.raises(NotFound):
        withdraw(store, "tiny", grown)
    newest = publish(tmp_path / "b", store, "tiny").id
    assert newest == grown and ids(store) == {first, grown}, "and it may be published again"


def test_the_channel_of_another_version_stays(store: ObjectStore, tmp_path: Path) -> None:
    first, _ = published(store, tmp_path / "a")
    second, _ = published(store, tmp_path / "b", seed=50)
    withdraw(store, "tiny", first)
    channel = read_channel(store, "tiny")
    assert channel is not None and channel[0].version == second
    assert pull(store, "tiny", tmp_path / "out").id == second


def test_cut_off_it_goes_on(store: ObjectStore, tmp_path: Path) -> None:
    first, manifest = published(store, tmp_path / "a")
    store.delete(shard_key("tiny", manifest.shards[0]))
    assert withdraw(store, "tiny", first).shards == len(manifest.shards)
    assert [o.key for o in store.list("tiny/shards/")] == []


def test_shards_that_no_version_names(store: ObjectStore, tmp_path: Path) -> None:
    _, manifest = published(store, tmp_path / "a")
    make_variant(tmp_path / "b", seed=2)  # its first shard is the last of the other
    write_manifest(tmp_path / "b", read_manifest(tmp_path / "b"))
    strays = read_manifest(tmp_path / "b").shards
    for shard in strays:
        store.put_file(tmp_path / "b" / shard.name, shard_key("tiny", shard))
    assert remove_unnamed(store, "tiny", [*manifest.shards, *strays]) == len(strays)
    assert len(list(store.list("tiny/shards/"))) == len(manifest.shards)


@pytest.mark.parametrize("damage", ["altered", "unreadable", "licence"])
def test_a_damaged_version_is_named_and_can_be_taken_back(store: ObjectStore, tmp_path: Path, damage: str) -> None:
    first, _ = published(store, tmp_path / "a")
    second, theirs = published(store, tmp_path / "b", seed=50)
    key = version_key("tiny", second)
    if damage == "licence":
        store.delete(version_key("tiny", second, "LICENSE"))
    else:
        text = store.get_bytes(key)
        store.put_bytes(key, text.replace(b"tiny", b"tinY") if damage == "altered" else text[:40])
    with pytest.raises(CorruptManifest, match=f"tiny@{second} is damaged") as raised:
        overlapping(store, "tiny", make_variant(tmp_path / "c"))
    assert f"dmcp withdraw tiny@{second}" in raised.value.cure
    gone = withdraw(store, "tiny", second)
    assert gone.shards == (0 if damage == "unreadable" else len(theirs.shards))
    assert ids(store) == {first} and overlapping(store, "tiny", read_manifest(tmp_path / "a")) == []
    assert pull(store, "tiny", tmp_path / "out", first).id == first


def test_of_two_damaged_versions_each_can_be_taken_back(store: ObjectStore, tmp_path: Path) -> None:
    both = [published(store, tmp_path / name, seed=seed)[0] for name, seed in (("a", 1), ("b", 50))]
    for version in both:
        store.delete(version_key("tiny", version, "LICENSE"))
    assert [withdraw(store, "tiny", version).shards > 0 for version in both] == [True, True]
    assert list(store.list("tiny/shards/")) == []


def test_what_a_version_needs_that_came_meanwhile_is_not_lost_in_silence(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = make_variant(tmp_path / "a")
    for shard in manifest.shards:
        store.put_file(tmp_path / "a" / shard.name, shard_key("tiny", shard))
    delete = ObjectStore.delete

    def slow(self: ObjectStore, key: str) -> None:
        if "/shards/" in key and not list_of_ids(store):
            publish(tmp_path / "a", store, "tiny")
        delete(self, key)

    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "delete", slow)
        with pytest.raises(PublicationConflict, match="was published while shards that it needs were removed"):
            remove_leftovers(store, "tiny", ())
    done = publish(tmp_path / "a", store, "tiny")
    assert done.shards_uploaded > 0
    assert pull(store, "tiny", tmp_path / "out").id == done.id


def list_of_ids(store: ObjectStore) -> list[str]:
    try:
        return [version.id for version in list_versions(store, "tiny")]
    except NotFound:
        return []


def test_names_of_classes_outlive_a_withdrawal(store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        class_lists(store, "tiny")
    first, manifest = published(store, tmp_path / "a")
    other = make_variant(tmp_path / "b", seed=50).model_copy(update={"classes": ["one less"]})
    write_manifest(tmp_path / "b", other)
    second = publish(tmp_path / "b", store, "tiny").id
    both = sorted([manifest.classes, ["one less"]])
    assert sorted(class_lists(store, "tiny")) == both
    withdraw(store, "tiny", first)
    assert sorted(class_lists(store, "tiny")) == both, "copies of it are restored, and hold nothing but numbers"
    assert class_lists(store, "tiny", first) == [manifest.classes]
    store.put_bytes(version_key("tiny", "0" * 16, "LICENSE"), b"of a publication that was cut off")
    store.put_bytes(version_key("tiny", "0" * 16, "README.md"), b"likewise")
    assert sorted(class_lists(store, "tiny")) == both
    store.delete(version_key("tiny", first, "classes.json"))
    with pytest.raises(CorruptManifest, match=f"tiny@{first} was withdrawn, and nothing says"):
        class_lists(store, "tiny")
    assert class_lists(store, "tiny", second) == [["one less"]]
