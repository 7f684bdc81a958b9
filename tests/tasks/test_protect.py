"""Shards through protect and restore: a real (small, untrained) surrogate, mixed sizes, every kind of refusal."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from storage.errors import DatasetError, ForeignImage, ParameterError, ServiceError
from storage.manifest import Manifest, write_manifest
from storage.png import decode_png, encode_png, read_payload
from storage.shards import Sample, read_shard, write_shard
from tasks import batches
from tasks.learning.models import Normalized, build_model
from tasks.method import perturbation, sign_perturbation
from tasks.method.exact import ExactParameters
from tasks.method.known import profile_of
from tasks.method.paper import PaperParameters
from tasks.method.perturbation import FspParameters
from tasks.method.seal import DataKey
from tasks.method.sign_perturbation import SignParameters
from tasks.models_io import ModelInfo, save_model
from tasks.protect import (
    ExactMethod,
    Method,
    PaperMethod,
    ProtectJob,
    prepare_library,
    protect_shard,
    summarise,
)
from tasks.restore import count_reasons, read_header, restore_samples
from tests.tasks.method.images import make

KEY = DataKey(bytes(range(32)), "toy")
SIZES = [(32, 32)] * 8 + [(48, 37)] * 3 + [(16, 16)]
METHODS: dict[str, Method] = {
    "paper": PaperMethod(
        layer="layer2",
        perturbation=FspParameters(steps=4, library=2, batch_size=4),
        transform=PaperParameters(1, 1, 16, 2),
    ),
    "exact": ExactMethod(perturbation=SignParameters(steps=4, library=2, batch_size=4)),
    "exact-layer": ExactMethod(
        layer="layer2",
        perturbation=SignParameters(steps=4, library=2, batch_size=4),
        set=ExactParameters(signs="rgb", carrier="chunk"),
    ),
}
SHARDS = [f"train-{n:06d}.tar" for n in range(2)]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clean")
    samples = [Sample(f"{i:09d}", encode_png(make("photo", h, w, i)), i % 3) for i, (h, w) in enumerate(SIZES)]
    shards = [write_shard(folder / f"train-{n:06d}.tar", samples[6 * n : 6 * n + 6]) for n in range(2)]
    write_manifest(folder, Manifest(dataset="toy", split="train", classes=["a", "b", "c"], shards=shards))
    return folder


@pytest.fixture(scope="module")
def surrogate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("surrogate") / "model.pt"
    network = Normalized(build_model("resnet18", 3, "imagenet", 0), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    save_model(path, network, ModelInfo("resnet18", "imagenet", ["a", "b", "c"], 32, 32))
    return path


@pytest.fixture(scope="module", params=METHODS)
def job(
    clean: Path, surrogate: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> ProtectJob:
    method = METHODS[request.param]
    library = prepare_library(clean, surrogate, tmp_path_factory.mktemp("library") / "library.npy", method)
    return ProtectJob("toy", "train", 3, surrogate, library, method)


def protect(clean: Path, job: ProtectJob, out: Path) -> list[Sample]:
    reports = [protect_shard(clean / name, out / name, job, KEY) for name in SHARDS]
    protected = [sample for name in SHARDS for sample in read_shard(out / name)]
    beside = [read_payload(sample.png) is not None for sample in protected]
    summary = summarise(reports)
    assert summary["images"] == 12
    assert summary["protected"] == len(protected)
    assert summary["protected"] + len(summary["left_out"]) == 12
    assert sum(summary["rungs"].values()) == summary["protected"]
    assert summary["spilled"] == sum(beside)
    assert sum(summary["payload_bytes"]["histogram"]["counts"]) == summary["protected"]
    if isinstance(job.method, ExactMethod):
        assert summary["capacity_bytes"] is None
        assert summary["rungs"].get("beside the pixels", 0) == summary["spilled"]
        assert any(beside) if job.method.set.carrier == "pixels" else all(beside)
    else:
        assert not any(beside)
        assert summary["payload_bytes"]["max"] <= summary["capacity_bytes"]
    return protected


def bound(sample: Sample) -> int:
    header = read_header(sample.png, sample.key)
    return profile_of(header).error_bound(header)


def find_key(key_id: str) -> DataKey:
    if key_id == KEY.key_id.hex():
        return KEY
    raise ForeignImage(f"No grant covers the key {key_id}.", "Ask the owner.")


def test_keys_labels_and_order_stay_and_every_image_comes_back(clean: Path, job: ProtectJob, tmp_path: Path) -> None:
    originals = [s for name in SHARDS for s in read_shard(clean / name)]
    protected = protect(clean, job, tmp_path)
    assert [(s.key, s.label) for s in protected] == [(s.key, s.label) for s in originals]
    batch = restore_samples(protected, find_key)
    assert not batch.refusals
    assert [(s.key, s.label) for s in batch.samples] == [(s.key, s.label) for s in originals]
    for original, hidden, restored in zip(originals, protected, batch.samples, strict=True):
        pixels = decode_png(original.png, "clean").astype(int)
        assert np.abs(decode_png(restored.png, "restored") - pixels).max() <= bound(hidden)
        assert np.mean((decode_png(hidden.png, "protected") - pixels) ** 2) > 6.5


def test_profile_exact_gives_back_the_clean_shards_byte_for_byte(clean: Path, job: ProtectJob, tmp_path: Path) -> None:
    protect(clean, job, tmp_path)
    for name in SHARDS:
        restored = restore_samples(read_shard(tmp_path / name), find_key).samples
        write_shard(tmp_path / "restored.tar", restored)
        same = (tmp_path / "restored.tar").read_bytes() == (clean / name).read_bytes()
        assert same == isinstance(job.method, ExactMethod)


def test_published_payloads_stand_in_for_lost_chunks(clean: Path, job: ProtectJob, tmp_path: Path) -> None:
    protected = protect(clean, job, tmp_path)
    payloads = {read_header(s.png, s.key).image_id: [read_payload(s.png) or b""] for s in protected}
    bare = [Sample(s.key, encode_png(decode_png(s.png, s.key)), s.label) for s in protected]
    batch = restore_samples(bare, find_key, lambda key, image_id: payloads[image_id] if key is KEY else [])
    assert batch.samples == restore_samples(protected, find_key).samples
    lost = [s.key for s in protected if read_payload(s.png) is not None]
    assert [(r.key, r.error) for r in restore_samples(bare, find_key).refusals] == [(k, "PayloadMissing") for k in lost]


def test_a_class_that_the_surrogate_never_saw_is_protected_too(clean: Path, job: ProtectJob, tmp_path: Path) -> None:
    np.save(tmp_path / "library.npy", np.load(job.library)[:2])
    fewer = replace(job, library=tmp_path / "library.npy")
    originals = [s for name in SHARDS for s in read_shard(clean / name)]
    assert {s.label for s in originals} == {0, 1, 2}
    batch = restore_samples(protect(clean, fewer, tmp_path), find_key)
    assert [(s.key, s.label) for s in batch.samples] == [(s.key, s.label) for s in originals]


def test_same_bytes_again_and_in_another_order_of_shards(clean: Path, job: ProtectJob, tmp_path: Path) -> None:
    protect(clean, job, tmp_path / "a")
    for name in reversed(SHARDS):
        protect_shard(clean / name, tmp_path / "b" / name, job, KEY)
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_another_key_gives_other_bytes_and_ids(clean: Path, job: ProtectJob, tmp_path: Path) -> None:
    mine, other = protect(clean, job, tmp_path / "a")[0], DataKey(bytes(32), "toy")
    protect_shard(clean / "train-000000.tar", tmp_path / "b.tar", job, other)
    theirs = read_shard(tmp_path / "b.tar")[0]
    assert read_header(mine.png, "mine").image_id != read_header(theirs.png, "theirs").image_id
    assert restore_samples([theirs], find_key).refusals[0].error == "ForeignImage"


def test_renamed_shuffled_and_mixed_with_what_does_not_belong(clean: Path, job: ProtectJob, tmp_path: Path) -> None:
    protected = protect(clean, job, tmp_path)
    renamed = [Sample(f"x{i}", s.png, None) for i, s in enumerate(reversed(protected))]
    altered = decode_png(protected[0].png, "p")
    altered[-1, -1, -1] ^= 64
    payload = read_payload(protected[0].png)
    strangers = [
        Sample("unprotected", encode_png(make("photo", 32, 32, 99)), None),
        Sample("altered", encode_png(altered, payload), None),
        Sample("truncated", protected[0].png[:-30], None),
        Sample("nothing", b"", None),
    ]
    batch = restore_samples(strangers[:2] + renamed + strangers[2:], find_key)
    assert [s.key for s in batch.samples] == [s.key for s in renamed]
    sealed = isinstance(job.method, ExactMethod)
    assert [s.label for s in batch.samples] == [s.label if sealed else None for s in reversed(protected)]
    assert {r.key: r.error for r in batch.refusals} == {
        "unprotected": "NotProtected",
        "altered": "AlteredImage",
        "truncated": "UnsupportedImage",
        "nothing": "UnsupportedImage",
    }
    assert all(r.reason for r in batch.refusals)
    assert count_reasons(batch.refusals)["UnsupportedImage"] == 2


def test_a_label_that_stands_in_the_request_is_kept(clean: Path, job: ProtectJob, tmp_path: Path) -> None:
    protected = protect(clean, job, tmp_path)
    batch = restore_samples([Sample(s.key, s.png, 7) for s in protected], find_key)
    assert {s.label for s in batch.samples} == {7}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_targets_need_labels_and_logits_no_image(surrogate: Path, method: Method, tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "train-000000.tar", [Sample("a", encode_png(make("photo", 32, 32, 0)), None)])
    write_manifest(tmp_path, Manifest(dataset="toy", split="train", classes=["a", "b"], shards=[shard]))
    if method.has_targets:
        with pytest.raises(DatasetError, match="a has no label"):
            prepare_library(tmp_path, surrogate, tmp_path / "library.npy", method)
    else:
        (tmp_path / shard.name).unlink()
        assert len(np.load(prepare_library(tmp_path, surrogate, tmp_path / "library.npy", method))) == 2


@pytest.mark.parametrize("label", [None, 3])
def test_a_label_that_the_data_set_does_not_have_is_named(job: ProtectJob, label: int | None, tmp_path: Path) -> None:
    """The library need not have been made of this shard."""
    write_shard(tmp_path / "in.tar", [Sample("stray", encode_png(make("photo", 32, 32, 0)), label)])
    with pytest.raises(DatasetError, match=r"in\.tar: stray has no label"):
        protect_shard(tmp_path / "in.tar", tmp_path / "out.tar", job, KEY)
    assert not (tmp_path / "out.tar").exists()


def test_large_images_are_protected_a_few_at_a_time(
    clean: Path, job: ProtectJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that memory depends on the pixels at once, not on the images of a shard."""
    monkeypatch.setattr(batches, "PORTION_BYTES", 10_000)
    monkeypatch.setattr(perturbation, "BATCH_PIXELS", 2048)
    seen: list[int] = []
    work = perturbation.as_input

    def watched(images: NDArray[np.uint8], device: str) -> torch.Tensor:
        seen.append(images[..., 0].size)
        return work(images, device)

    monkeypatch.setattr(perturbation, "as_input", watched)
    monkeypatch.setattr(sign_perturbation, "as_input", watched)
    batch = restore_samples(protect(clean, job, tmp_path), find_key)
    assert len(batch.samples) == 12
    assert 0 < max(seen) <= 2048


def test_each_key_is_asked_for_once_whatever_the_shapes(clean: Path, job: ProtectJob, tmp_path: Path) -> None:
    asked: list[str] = []

    def ask(key_id: str) -> DataKey:
        asked.append(key_id)
        return find_key(key_id)

    assert len(restore_samples(protect(clean, job, tmp_path), ask).samples) == 12
    assert asked == [KEY.key_id.hex()]


def test_a_key_that_is_out_of_reach_for_now_is_no_refusal(clean: Path, job: ProtectJob, tmp_path: Path) -> None:
    def away(key_id: str) -> DataKey:
        raise ServiceError("The key service does not answer.", "Try again.")

    with pytest.raises(ServiceError):
        restore_samples(protect(clean, job, tmp_path), away)


@pytest.mark.parametrize("method", [PaperMethod(layer="layer9"), ExactMethod(layer="layer9")])
def test_an_unknown_layer_is_named(surrogate: Path, clean: Path, method: Method, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="layer9"):
        prepare_library(clean, surrogate, tmp_path / "library.npy", method)
