"""Payloads beside the pixels: published, and found again for images that lost theirs."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest

from storage.errors import CorruptManifest, NotProtected, ObjectStoreError, PayloadMissing
from storage.objects import ObjectStore
from storage.png import decode_png, encode_png, read_payload
from storage.server import ServerAddress
from storage.shards import Sample
from storage.versions import list_payloads, list_versions, version_key
from tasks.method.seal import DataKey
from tasks.payloads import PublishedPayloads, dump_payloads, parse_payloads
from tasks.publish import publish_variant
from tasks.request import pack_source
from tasks.restore import FindPayload, RestoredBatch, read_header, restore_samples
from tests.services import make_variant
from tests.spilled import INSIDE, clean_images, hide, saved_anew, variant_of

KEY = DataKey(bytes(range(32)), "toy")
CLEAN = clean_images(5)


class Counting(ObjectStore):
    """The real store, keeping the book of what was fetched and listed."""

    def __init__(self, store: ObjectStore) -> None:
        self.__dict__.update(store.__dict__)
        self.asked: list[str] = []

    def get_file(self, key: str, path: Path, *args, **kwargs) -> None:
        self.asked.append(key)
        super().get_file(key, path, *args, **kwargs)

    def list(self, prefix: str = ""):
        self.asked.append(prefix)
        return super().list(prefix)


@pytest.fixture(scope="module")
def protected() -> list[bytes]:
    return hide(CLEAN, KEY)


@pytest.fixture
def variant(tmp_path: Path, protected: list[bytes]) -> Path:
    return variant_of(tmp_path / "protected", "toy", protected)


def restored(pngs: list[bytes], find: FindPayload) -> RestoredBatch:
    return restore_samples([Sample(str(i), png, None) for i, png in enumerate(pngs)], lambda _: KEY, find)


def assert_exact(batch: RestoredBatch) -> None:
    assert not batch.refusals
    assert [np.array_equal(decode_png(s.png, s.key), CLEAN[int(s.key)]) for s in batch.samples] == [True] * len(CLEAN)
    assert [s.label for s in batch.samples] == [i % 2 for i in range(len(CLEAN))]


# --- the file --------------------------------------------------------------------------------------------------------


def test_the_file_depends_on_what_it_says_and_comes_back() -> None:
    pairs = [(bytes([i]) * 8, bytes(range(i + 1))) for i in range(9, -1, -1)]
    data = dump_payloads(pairs)
    assert data == dump_payloads(reversed(pairs)) == dump_payloads([*pairs, *pairs])
    assert data.splitlines()[0] == b'{"image":"0000000000000000","payload":"AA=="}'
    assert [json.loads(line)["image"] for line in data.splitlines()] == sorted(image.hex() for image, _ in pairs)
    assert parse_payloads(data.splitlines(), "x") == {image: [payload] for image, payload in pairs}
    assert dump_payloads([]) == b""


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\xff",
        b"null",
        b'{"image":"0000000000000000"}',
        b'{"image":"000000000000000","payload":"AA=="}',
        b'{"image":"000000000000000G","payload":"AA=="}',
        b'{"image":"0000000000000000","payload":""}',
        b'{"image":"0000000000000000","payload":"A"}',
        b'{"image":"0000000000000000","payload":"AA==\\n"}',
        b'{"image":"0000000000000000","payload":7}',
        b'{"image":"0000000000000000","payload":"AA==","more":1}',
        b'{"image":"0000000000000000","payload":"A',
    ],
)
def test_a_damaged_line_is_named_with_its_file(line: bytes) -> None:
    with pytest.raises(CorruptManifest, match=r"bucket/payloads is damaged: line 2 .*Publish the same"):
        parse_payloads([b'{"image":"0000000000000001","payload":"AA=="}', line], "bucket/payloads")


# --- publishing ------------------------------------------------------------------------------------------------------


def test_a_version_holds_the_payloads_of_its_images(store: ObjectStore, variant: Path, protected: list[bytes]) -> None:
    version = publish_variant(variant, store, "toy", workers=3)
    key = version_key("toy", version.id, "payloads.jsonl")
    assert list_payloads(store, "toy") == [key]
    found = parse_payloads(store.get_bytes(key).splitlines(), key)
    assert found == {read_header(png, "x").image_id: [read_payload(png)] for png in protected}
    before = list(store.list())
    assert publish_variant(variant, store, "toy", workers=1).id == version.id
    assert list(store.list()) == before


def test_a_version_whose_payloads_are_in_the_pixels_has_no_such_file(store: ObjectStore, tmp_path: Path) -> None:
    version = publish_variant(variant_of(tmp_path / "in", "toy", hide(CLEAN, KEY, profile=INSIDE)), store, "toy")
    assert list_payloads(store, "toy") == []
    assert not store.exists(version_key("toy", version.id, "payloads.jsonl"))
    assert b"payloads.jsonl" not in store.get_bytes(version_key("toy", version.id, "README.md"))


def test_what_nobody_could_restore_or_is_not_protected_is_not_published(
    store: ObjectStore, tmp_path: Path, protected: list[bytes]
) -> None:
    wrong = encode_png(decode_png(protected[4], "x"), b"short")
    for name, png, error, reason in (
        ("anew", saved_anew(protected[4]), PayloadMissing, "the PNG does not hold it"),
        ("wrong", wrong, PayloadMissing, "the PNG holds one of 5"),
        ("clean", encode_png(CLEAN[4]), NotProtected, "No protection header"),
    ):
        folder = variant_of(tmp_path / name, "toy", [*protected[:4], png])
        with pytest.raises(error, match=f"Image 00000004 in .*must not be published: .*{reason}.*Nothing was sent"):
            publish_variant(folder, store, "toy")
    assert list(store.list()) == []


def test_a_folder_with_the_file_is_a_source_for_requests(variant: Path, tmp_path: Path) -> None:
    (variant / "payloads.jsonl").write_bytes(b"{}\n")
    index = pack_source(variant, tmp_path / "work").index
    assert (index.layout, index.images, index.refused) == ("shards", 5, [])
    assert index.variant is not None and index.variant.dataset == "toy"


# --- finding them again ----------------------------------------------------------------------------------------------


def test_images_saved_anew_come_back_exactly(store: ObjectStore, variant: Path, protected: list[bytes]) -> None:
    publish_variant(variant, store, "toy")
    anew = [saved_anew(png) for png in protected]
    assert all(read_payload(png) is None for png in anew)
    assert_exact(restored(anew, PublishedPayloads(store)))
    assert_exact(restored([*protected[:3], *anew[3:]], PublishedPayloads(store)))


def test_images_of_two_versions_with_the_same_ids_each_find_their_own(
    store: ObjectStore, tmp_path: Path, protected: list[bytes]
) -> None:
    second = hide(CLEAN, KEY, seed=1)
    for name, pngs in (("first", protected), ("second", second)):
        publish_variant(variant_of(tmp_path / name, "toy", pngs), store, "toy")
    assert len(list_payloads(store, "toy")) == 2
    mixed = [saved_anew((protected, second)[i % 2][i]) for i in range(5)]
    assert [read_header(png, "x").image_id for png in mixed] == [read_header(png, "x").image_id for png in protected]
    assert_exact(restored(mixed, PublishedPayloads(store)))


def test_all_candidates_are_tried_and_those_of_another_size_are_not(protected: list[bytes]) -> None:
    payloads = {read_header(png, "x").image_id: read_payload(png) for png in protected}
    anew = [saved_anew(png) for png in protected]

    def decoys_first(key: DataKey, image_id: bytes) -> list[bytes]:
        payload = payloads[image_id]
        assert payload is not None
        decoys = [bytes(len(payload)), payload[::-1], payload[:-1], payload + b"\0"]
        return [*decoys[: image_id[0] % 5], payload]

    assert_exact(restored(anew, decoys_first))


def test_why_an_image_is_not_restored(
    store: ObjectStore, variant: Path, protected: list[bytes], object_server: ServerAddress
) -> None:
    anew = saved_anew(protected[0])
    nowhere = object_server.store(f"test-{uuid4().hex[:12]}")  # not even a bucket
    for empty in (nowhere, store):
        assert [r.error for r in restored([anew], PublishedPayloads(empty)).refusals] == ["PayloadMissing"]
    publish_variant(variant, store, "toy")
    image = decode_png(anew, "x")
    image[9, 9] ^= 128
    batch = restored([encode_png(image), saved_anew(hide(clean_images(6), KEY)[5])], PublishedPayloads(store))
    assert [r.error for r in batch.refusals] == ["AlteredImage", "PayloadMissing"]


def test_a_damaged_file_refuses_the_images_that_no_other_version_helps(
    store: ObjectStore, tmp_path: Path, protected: list[bytes]
) -> None:
    folders = [variant_of(tmp_path / str(seed), "toy", hide(CLEAN, KEY, seed)) for seed in (0, 1)]
    versions = [publish_variant(folder, store, "toy").id for folder in folders]
    broken = version_key("toy", versions[1], "payloads.jsonl")
    store.put_bytes(broken, store.get_bytes(broken)[:-40])
    anew = [saved_anew(png) for png in (protected[0], hide(CLEAN, KEY, 1)[1])]
    batch = restored([*anew, protected[2]], PublishedPayloads(store))
    assert [s.key for s in batch.samples] == ["0", "2"]
    assert [(r.key, r.error) for r in batch.refusals] == [("1", "CorruptManifest")]
    assert f"{broken} is damaged: line 5" in batch.refusals[0].detail
    publish_variant(folders[1], store, "toy")
    assert not restored(anew, PublishedPayloads(store)).refusals


def test_each_file_is_fetched_once_and_only_when_it_is_needed(
    store: ObjectStore, tmp_path: Path, protected: list[bytes]
) -> None:
    for seed in (1, 0):
        publish_variant(variant_of(tmp_path / str(seed), "toy", hide(CLEAN, KEY, seed)), store, "toy")
    counting = Counting(store)
    find = PublishedPayloads(counting)
    assert_exact(restored(protected, find))
    assert counting.asked == [], "the files hold their own"
    newest = version_key("toy", list_versions(store, "toy")[0].id, "payloads.jsonl")
    barrier = threading.Barrier(4)

    def serve(_: int) -> RestoredBatch:
        barrier.wait()
        return restored([saved_anew(png) for png in protected], find)

    with ThreadPoolExecutor(4) as pool:
        for batch in pool.map(serve, range(4)):
            assert_exact(batch)
    assert counting.asked[:2] == ["toy/versions/", newest]
    assert sorted(counting.asked[2:]) in ([], sorted(set(list_payloads(store, "toy")) - {newest}))


def test_versions_of_other_data_sets_are_not_asked(store: ObjectStore, tmp_path: Path, protected: list[bytes]) -> None:
    make_variant(tmp_path / "tiny")
    publish_variant(variant_of(tmp_path / "theirs", "theirs", protected), store, "theirs")
    assert list(PublishedPayloads(store)(KEY, read_header(protected[0], "x").image_id)) == []


def test_a_server_that_does_not_answer_ends_it_all(protected: list[bytes]) -> None:
    gone = ObjectStore("http://127.0.0.1:9", "us-east-1", "a", "b", "bucket", attempts=1)
    with pytest.raises(ObjectStoreError):
        restored([saved_anew(protected[0])], PublishedPayloads(gone))
    assert not restored([protected[0]], PublishedPayloads(gone)).refusals
