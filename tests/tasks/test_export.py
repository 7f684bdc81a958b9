import shutil
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import ImageFolder

from storage.errors import CorruptManifest, CorruptShard, DatasetError, UsageError
from storage.manifest import Manifest, read_manifest, write_manifest
from storage.shards import Sample, write_shard
from tasks.export import export_imagefolder
from tasks.variants import load_arrays


def test_torchvision_reads_it_with_the_same_labels(small_variant: Path, tmp_path: Path) -> None:
    heard: list[tuple[str, int, int | None]] = []
    assert export_imagefolder(small_variant, tmp_path / "out", lambda *said: heard.append(said)) == 24
    assert heard[-1][1:] == (24, 24)
    folder = ImageFolder(str(tmp_path / "out"))
    arrays = load_arrays(small_variant)
    assert folder.classes == arrays.classes
    by_key = {Path(path).stem: (np.asarray(folder.loader(path)), label) for path, label in folder.samples}
    assert sorted(by_key) == sorted(arrays.keys)
    for key, image, label in zip(arrays.keys, arrays.images, arrays.labels, strict=True):
        np.testing.assert_array_equal(by_key[key][0], image)
        assert by_key[key][1] == label


def test_nothing_is_overwritten(small_variant: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(UsageError, match="not empty"):
        export_imagefolder(small_variant, tmp_path)
    with pytest.raises(UsageError):
        export_imagefolder(small_variant, tmp_path / "mine")
    with pytest.raises(CorruptManifest):
        export_imagefolder(tmp_path, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_images_without_a_class(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "v" / "train-000000.tar", [Sample("a", b"", None)])
    write_manifest(tmp_path / "v", Manifest(dataset="x", split="train", classes=["a"], shards=[shard]))
    with pytest.raises(DatasetError, match="no class"):
        export_imagefolder(tmp_path / "v", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_shard_with_a_wrong_byte_is_not_written(small_variant: Path, tmp_path: Path) -> None:
    variant = Path(shutil.copytree(small_variant, tmp_path / "v"))
    shard = variant / read_manifest(variant).shards[-1].name
    content = bytearray(shard.read_bytes())
    content[512 + 64] ^= 1  # inside the first PNG: no reader of tar files notices
    shard.write_bytes(content)
    with pytest.raises(CorruptShard, match="SHA-256 differs"):
        export_imagefolder(variant, tmp_path / "out")
    assert not (tmp_path / "out").exists()
