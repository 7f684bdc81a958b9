from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from storage.errors import CorruptManifest, CorruptShard, DatasetError
from storage.manifest import Manifest, read_manifest, write_manifest
from storage.png import decode_png, encode_png
from storage.shards import Sample, ShardInfo, read_shard, write_shard
from tasks.variants import load_arrays


def variant(folder: Path, *shapes: tuple[int, int], label: int | None = 0) -> Path:
    random = np.random.default_rng(0)
    samples = [
        Sample(f"{i}", encode_png(random.integers(0, 256, (*shape, 3), dtype=np.uint8)), label)
        for i, shape in enumerate(shapes)
    ]
    shard = write_shard(folder / "train-000000.tar", samples)
    write_manifest(folder, Manifest(dataset="x", split="train", classes=["a", "b"], shards=[shard]))
    return folder


def test_arrays_are_the_shards_in_order(small_variant: Path) -> None:
    arrays = load_arrays(small_variant)
    manifest = read_manifest(small_variant)
    samples = [sample for shard in manifest.shards for sample in read_shard(small_variant / shard.name)]
    assert arrays.images.shape == (24, 32, 32, 3) and arrays.images.dtype == np.uint8
    assert arrays.labels.dtype == np.int64
    assert arrays.labels.tolist() == [sample.label for sample in samples]
    assert arrays.keys == [sample.key for sample in samples]
    assert arrays.classes == manifest.classes
    for image, sample in zip(arrays.images, samples, strict=True):
        np.testing.assert_array_equal(image, decode_png(sample.png, sample.key))


def test_one_size_is_left_alone_when_it_is_the_size(small_variant: Path) -> None:
    np.testing.assert_array_equal(load_arrays(small_variant, 32).images, load_arrays(small_variant).images)


def test_mixed_sizes_need_a_size(tmp_path: Path) -> None:
    folder = variant(tmp_path, (20, 30), (32, 32), (64, 16))
    with pytest.raises(DatasetError, match="image_size"):
        load_arrays(folder)
    images = load_arrays(folder, 32).images
    assert images.shape == (3, 32, 32, 3)
    sources = [decode_png(sample.png, "x") for sample in read_shard(folder / "train-000000.tar")]
    middle = Image.fromarray(sources[0][:, 5:25]).resize((32, 32), Image.Resampling.BILINEAR)
    difference = np.abs(images[0].astype(int) - np.asarray(middle))
    assert difference[:, 2:-2].max() <= 1  # at its edges the scaled square may look one pixel beyond itself
    np.testing.assert_array_equal(images[1], sources[1])


@pytest.mark.parametrize("label", [None, 2])
def test_a_label_is_needed(tmp_path: Path, label: int | None) -> None:
    with pytest.raises(DatasetError, match="label"):
        load_arrays(variant(tmp_path, (16, 16), label=label))


def test_damage_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(CorruptManifest):
        load_arrays(tmp_path)
    folder = variant(tmp_path, (16, 16))
    (shard,) = read_manifest(folder).shards
    more = ShardInfo(shard.name, 2, shard.bytes, shard.sha256)
    write_manifest(folder, Manifest(dataset="x", split="train", classes=["a"], shards=[more]))
    with pytest.raises(CorruptShard, match="instead of 2"):
        load_arrays(folder)
    write_manifest(folder, Manifest(dataset="x", split="train", classes=["a"], shards=[]))
    with pytest.raises(DatasetError, match="no image"):
        load_arrays(folder)
