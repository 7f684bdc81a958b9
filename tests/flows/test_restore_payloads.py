"""Requests of PNGs that lost the payloads beside their pixels, served by the real flow from what is published."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from flows import access
from flows.restore import restore_variant, serve_request
from flows.services import object_store
from storage.keys import open_vault
from storage.objects import ObjectStore, open_store
from storage.png import decode_png
from storage.settings import settings
from storage.versions import list_payloads
from tasks.method.seal import DataKey
from tasks.publish import publish_variant
from tasks.request import fetch_results, submit_request
from tasks.variants import load_arrays
from tests.flows.world import entered
from tests.spilled import clean_images, hide, saved_anew, variant_of

CLEAN = clean_images(7)


@pytest.fixture
def key(tmp_path: Path, prefect_api: str) -> Iterator[DataKey]:
    """The key of a data set, in a world of this test's own with a running object store."""
    (tmp_path / "world").mkdir()
    with entered(tmp_path / "world"), object_store():
        vault = open_vault(settings())
        yield DataKey(vault.secret(vault.create("toy").key_id), "toy")


def public() -> ObjectStore:
    return open_store(settings(), "public")


def publish(folder: Path, pngs: list[bytes]) -> str:
    return publish_variant(variant_of(folder, "toy", pngs), public(), "toy").id


def request(folder: Path, files: dict[str, bytes]) -> str:
    """Hand in loose files; the id of the request."""
    source = folder / "in"
    source.mkdir(parents=True)
    for name, png in files.items():
        (source / name).write_bytes(png)
    with access.registry() as book:
        token = book.add_user(folder.name)
        book.grant(folder.name, "toy")
        return submit_request(
            book, open_store(settings(), "private"), token, source, work=folder / "work", shard_size=2
        )


def fetch(folder: Path, request_id: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """What came back, and the class of error of what did not."""
    done = fetch_results(open_store(settings(), "private"), request_id, folder / "out", folder / "work")
    images = {path.name: decode_png(path.read_bytes(), path.name) for path in (folder / "out").rglob("*.png")}
    return images, {refusal.name: refusal.error for refusal in done.refused}


def test_images_saved_anew_are_restored_from_what_is_published(key: DataKey, tmp_path: Path) -> None:
    """Of two versions under one key, in several shards, among others that hold their payloads."""
    first, second = hide(CLEAN, key), hide(CLEAN, key, seed=1)
    publish(tmp_path / "first", first)
    publish(tmp_path / "second", second)
    files = {f"{i}.png": (first if i < 4 else second)[i] for i in range(7)}
    files |= {name: saved_anew(png) for name, png in files.items() if name != "6.png"}
    request_id = request(tmp_path / "ann", files)
    assert serve_request(request_id) == {"images": 7, "restored": 7, "refused": 0}
    images, refused = fetch(tmp_path / "ann", request_id)
    assert refused == {}
    assert {name: np.array_equal(image, CLEAN[int(name[0])]) for name, image in images.items()} == dict.fromkeys(
        files, True
    )


def test_without_a_published_payload_the_image_is_refused_until_there_is_one(key: DataKey, tmp_path: Path) -> None:
    pngs = hide(CLEAN, key)
    files = {"anew.png": saved_anew(pngs[0]), "whole.png": pngs[1]}
    request_id = request(tmp_path / "ann", files)
    serve_request(request_id)
    images, refused = fetch(tmp_path / "ann", request_id)
    assert refused == {"anew.png": "PayloadMissing"}
    assert np.array_equal(images["whole.png"], CLEAN[1])

    version = publish(tmp_path / "first", pngs)
    (payloads,) = list_payloads(public(), "toy")
    public().put_bytes(payloads, b"nonsense\n")
    request_id = request(tmp_path / "bob", files)
    serve_request(request_id)
    images, refused = fetch(tmp_path / "bob", request_id)
    assert refused == {"anew.png": "CorruptManifest"}
    assert images.keys() == {"whole.png"}

    assert publish(tmp_path / "again", pngs) == version, "which mends the file"
    request_id = request(tmp_path / "carl", files)
    serve_request(request_id)
    images, refused = fetch(tmp_path / "carl", request_id)
    assert refused == {}
    assert np.array_equal(images["anew.png"], CLEAN[0])


def test_the_stage_needs_no_bucket(key: DataKey, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards hold the payloads of their images."""
    folder = settings().data_path("toy")
    variant_of(folder / "protected", "toy", hide(CLEAN, key))
    access.prepare("toy")
    monkeypatch.setenv("DMCP_S3_ENDPOINT", "http://127.0.0.1:9")
    settings.cache_clear()
    restore_variant("toy")
    assert np.array_equal(load_arrays(folder / "recovered").images, CLEAN)
