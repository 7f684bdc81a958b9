"""Shards through protect and restore: a real (small, untrained) surrogate, mixed sizes, every kind of refusal."""

from pathlib import Path

import numpy as np
import pytest

from storage.errors import DatasetError, ForeignImage, ParameterError
from storage.manifest import Manifest, write_manifest
from storage.png import decode_png, encode_png
from storage.shards import Sample, read_shard, write_shard
from tasks.learning.models import Normalized, build_model
from tasks.method.paper import PaperParameters
from tasks.method.perturbation import FspParameters
from tasks.method.seal import DataKey
from tasks.models_io import ModelInfo, save_model
from tasks.protect import ProtectJob, ProtectParameters, prepare_library, protect_shard, summarise
from tasks.restore import count_reasons, read_header, restore_samples
from tests.tasks.method.images import make

KEY = DataKey(bytes(range(32)), "toy")
SIZES = [(32, 32)] * 8 + [(48, 37)] * 3 + [(16, 16)]
PARAMETERS = ProtectParameters(
    layer="layer2",
    perturbation=FspParameters(steps=4, library=2, batch_size=4),
    transform=PaperParameters(1, 1, 16, 2),
)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clean")
    samples = [Sample(f"{i:09d}", encode_png(make("photo", h, w, i)), i % 3) for i, (h, w) in enumerate(SIZES)]
    shards = [write_shard(folder / f"train-{n:06d}.tar", samples[6 * n : 6 * n + 6]) for n in range(2)]
    write_manifest(folder, Manifest(dataset="toy", split="train", classes=["a", "b", "c"], shards=shards))
    return folder


@pytest.fixture(scope="module")
def job(clean: Path, tmp_path_factory: pytest.TempPathFactory) -> ProtectJob:
    folder = tmp_path_factory.mktemp("surrogate")
    network = Normalized(build_model("resnet18", 3, "imagenet", 0), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    save_model(folder / "model.pt", network, ModelInfo("resnet18", "imagenet", ["a", "b", "c"], 32, 32))
    library = prepare_library(clean, folder / "model.pt", folder / "library.npy", PARAMETERS)
    return ProtectJob("toy", "train", folder / "model.pt", library, PARAMETERS)


def protect(clean: Path, job: ProtectJob, out: Path) -> list[Sample]:
    reports = [protect_shard(clean / f"train-{n:06d}.tar", out / f"train-{n:06d}.tar", job, KEY) for n in range(2)]
    summary = summarise(reports)
    assert summary["images"] == 12
    assert summary["protected"] + len(summary["left_out"]) == 12
    assert summary["payload_bytes"]["max"] <= summary["capacity_bytes"]
    assert sum(summary["payload_bytes"]["histogram"]["counts"]) == summary["protected"]
    return [sample for n in range(2) for sample in read_shard(out / f"train-{n:06d}.tar")]


def find_key(key_id: str) -> DataKey:
    if key_id == KEY.key_id.hex():
        return KEY
    raise ForeignImage(f"No grant covers the key {key_id}.", "Ask the owner.")


def test_keys_labels_and_order_stay_and_every_image_comes_back(clean: Path, job: ProtectJob, tmp_path: Path) -> None:
    originals = [s for n in range(2) for s in read_shard(clean / f"train-{n:06d}.tar")]
    protected = protect(clean, job, tmp_path)
    assert [(s.key, s.label) for s in protected] == [(s.key, s.label) for s in originals]
    batch = restore_samples(protected, find_key)
    assert not batch.refusals
    assert [(s.key, s.label) for s in batch.samples] == [(s.key, s.label) for s in originals]
    for original, hidden, restored in zip(originals, protected, batch.samples, strict=True):
        pixels = decode_png(original.png, "clean").astype(int)
        assert np.abs(decode_png(restored.png, "restored") - pixels).max() <= 4
        assert np.mean((decode_png(hidden.png, "protected") - pixels) ** 2) > 6.5


def test_same_bytes_again_and_in_another_order_of_shards(clean: Path, job: ProtectJob, tmp_path: Path) -> None:
    protect(clean, job, tmp_path / "a")
    for n in (1, 0):
        name = f"train-{n:06d}.tar"
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
    strangers = [
        Sample("unprotected", encode_png(make("photo", 32, 32, 99)), None),
        Sample("altered", encode_png(altered), None),
        Sample("truncated", protected[0].png[:-30], None),
        Sample("nothing", b"", None),
    ]
    batch = restore_samples(strangers[:2] + renamed + strangers[2:], find_key)
    assert [s.key for s in batch.samples] == [s.key for s in renamed]
    assert {r.key: r.error for r in batch.refusals} == {
        "unprotected": "NotProtected",
        "altered": "AlteredImage",
        "truncated": "UnsupportedImage",
        "nothing": "UnsupportedImage",
    }
    assert all(r.reason for r in batch.refusals)
    assert count_reasons(batch.refusals)["UnsupportedImage"] == 2


def test_a_sample_without_a_label_is_named(job: ProtectJob, tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "train-000000.tar", [Sample("a", encode_png(make("photo", 32, 32, 0)), None)])
    write_manifest(tmp_path, Manifest(dataset="toy", split="train", classes=["a", "b"], shards=[shard]))
    with pytest.raises(DatasetError, match="a has no label"):
        prepare_library(tmp_path, job.surrogate, tmp_path / "library.npy", PARAMETERS)


def test_an_unknown_profile_or_layer_is_named(job: ProtectJob, clean: Path, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="profile"):
        ProtectParameters(profile="magic").build()
    with pytest.raises(ParameterError, match="layer"):
        prepare_library(clean, job.surrogate, tmp_path / "library.npy", ProtectParameters(layer="layer9"))
