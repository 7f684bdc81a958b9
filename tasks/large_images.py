"""What large images take to protect, before hours are spent on them: memory for each worker, and time for each shard.

The figures are those of docs/scale.md, for a CPU; nothing is known of a GPU's.
"""

import struct
import tarfile
from dataclasses import dataclass
from pathlib import Path

from storage.errors import CorruptShard
from storage.manifest import Manifest
from storage.shards import BAD_TAR, forwards

LARGE = 1_000_000
"""Pixels up to which an image takes no more than any other: the surrogate sees so many at a time in any case."""

_BYTES_A_PIXEL = {"bf16": 300, "fp32": 600}
_PIXELS_A_SECOND = 1_120_000  # of one step: of the surrogate, there and back
_HEAVY = 100_000  # bytes a file, on average, below which shards hold no photographs of that size: they are not opened


@dataclass(frozen=True)
class Sizes:
    """Pixels of the largest image, of all images of the largest shard, and how many shards there are."""

    image: int
    shard: int
    shards: int


def measure(manifest: Manifest, folder: Path) -> Sizes:
    """How large the images of a variant are, by the headers of their files; of shards of small files nothing is read.

    Raises:
        CorruptShard: a shard is no tar file, or is cut off.
    """
    heavy = [shard for shard in manifest.shards if shard.samples and shard.bytes > _HEAVY * shard.samples]
    found = [_pixels(folder / shard.name) for shard in heavy]
    return Sizes(max(map(max, found), default=0), max(map(sum, found), default=0), len(manifest.shards))


def _pixels(path: Path) -> list[int]:
    try:
        with tarfile.open(path, mode="r:") as tar:
            heads = [tar.extractfile(member) for member in forwards(tar) if member.name.endswith(".png")]
            sizes = [struct.unpack(">16xII", head.read(24)) for head in heads if head is not None]
    except (*BAD_TAR, struct.error) as error:
        raise CorruptShard(
            f"The shard {path} is no tar file of images, or cut off ({error}).", "Fetch or build the variant again."
        ) from error
    return [width * height for width, height in sizes]


def described(sizes: Sizes, steps: int, workers: int, free: int, precision: str) -> str:
    """What large images take, and how to need less.

    Args:
        sizes: as measured.
        steps: of the perturbation.
        workers: shards at once.
        free: bytes of memory that are free.
        precision: in which networks compute, bf16 or fp32.
    """
    mine = _BYTES_A_PIXEL[precision] * sizes.image
    at_once = min(workers, sizes.shards)
    fits = max(1, min(at_once, free // mine))
    hours = sizes.shard * steps / _PIXELS_A_SECOND / 3600
    fewer = "" if fits == at_once else f"DMCP_WORKERS={fits}, "
    return (
        f"{'Warning: images' if fewer else 'Images'} of up to {sizes.image / 1e6:.1f} megapixels. Each takes some "
        f"{_gib(mine)} of memory, {at_once} at once {_gib(mine * at_once)}; {_gib(free)} are free. The largest shard "
        f"takes some {hours:.1f} hours of a core, and a run that is stopped begins its shards in hand anew. To need "
        f"less: {fewer}fewer steps of the perturbation, images that are scaled down first, or shards of fewer images "
        "(dmcp data get ... --set shard_size=20, before anything is published)."
    )


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
