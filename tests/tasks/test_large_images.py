"""What is said of large images before they are protected."""

from pathlib import Path

import numpy as np
import pytest

from storage.errors import CorruptShard
from storage.manifest import Manifest
from storage.png import encode_png
from storage.shards import Sample, write_shard
from tasks.large_images import Sizes, described, measure


def variant(folder: Path, sides: list[list[int]]) -> Manifest:
    """A variant of square images of noise, whose files are as large as their pixels."""
    random = np.random.default_rng(0)
    shards = []
    for number, shard in enumerate(sides):
        pngs = [encode_png(random.integers(0, 256, (side, side, 3), dtype=np.uint8)) for side in shard]
        samples = [Sample(f"{i:09d}", png, 0) for i, png in enumerate(pngs)]
        shards.append(write_shard(folder / f"train-{number:06d}.tar", samples))
    return Manifest(dataset="pets", split="train", classes=["cat", "dog"], shards=shards)


def test_the_largest_image_and_the_largest_shard(tmp_path: Path) -> None:
    manifest = variant(tmp_path, [[300, 1100], [500] * 8, [16] * 9])
    assert measure(manifest, tmp_path) == Sizes(1100**2, 8 * 500**2, 3)


def test_shards_of_small_files_are_not_opened(tmp_path: Path) -> None:
    manifest = variant(tmp_path, [[32] * 9])
    (tmp_path / "train-000000.tar").unlink()
    assert measure(manifest, tmp_path) == Sizes(0, 0, 1)


def test_a_shard_that_is_none(tmp_path: Path) -> None:
    manifest = variant(tmp_path, [[500]])
    (tmp_path / "train-000000.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(CorruptShard, match="train-000000"):
        measure(manifest, tmp_path)


def test_what_it_takes_and_how_to_need_less() -> None:
    photographs = Sizes(12_000_000, 500 * 12_000_000, 4)
    said = described(photographs, 32, 16, 10 << 30, "bf16")
    assert said.startswith("Warning: images of up to 12.0 megapixels.")
    assert "3.4 GiB of memory, 4 at once 13.4 GiB; 10.0 GiB are free" in said
    assert "some 47.6 hours" in said and "DMCP_WORKERS=2, " in said and "shard_size=20" in said
    roomy = described(photographs, 32, 16, 64 << 30, "bf16")
    assert roomy.startswith("Images") and "DMCP_WORKERS" not in roomy
    assert "DMCP_WORKERS=1, " in described(photographs, 16, 16, 1 << 30, "fp32")
