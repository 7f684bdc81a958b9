"""A whole variant as arrays, for training and for comparing.

Whole images at 32x32 or 64x64 fit into memory many times over (50,000 at 32x32: 150 MB), and a network that is fed from
one array never waits for a file.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from storage.errors import CorruptShard, DatasetError
from storage.manifest import Manifest, read_manifest
from storage.png import decode_png
from storage.shards import Sample, read_shard


@dataclass(frozen=True)
class Arrays:
    """A variant in memory: n images of one size, their labels and keys in the order of the shards."""

    images: NDArray[np.uint8]
    """uint8 [N, H, W, 3], RGB"""
    labels: NDArray[np.int64]
    """int64 [N], indices into `classes`"""
    keys: list[str]
    classes: list[str]


def load_arrays(folder: Path, size: int | None = None) -> Arrays:
    """Read a variant.

    Args:
        folder: a variant: shards and `manifest.json`.
        size: side of the square that images are brought to (the middle square, scaled bilinearly with antialiasing, as
            Pillow does it; images that have this size already stay untouched). None: they must all have one size.

    Raises:
        CorruptManifest, CorruptShard, UnsupportedImage: the variant is damaged.
        DatasetError: sizes differ and `size` is None, a label is missing or out of range, or there is no image at all.
    """
    manifest = read_manifest(folder)
    keys: list[str] = []
    labels: list[int] = []
    images: NDArray[np.uint8] | None = None
    for shard in manifest.shards:
        samples = read_shard(folder / shard.name)
        if len(samples) != shard.samples:
            raise CorruptShard(
                f"The shard {folder / shard.name} holds {len(samples)} images instead of {shard.samples}.",
                "Fetch or build the variant again.",
            )
        for sample in samples:
            image = _image(sample, size)
            if images is None:
                images = np.empty((manifest.samples, *image.shape), np.uint8)
            elif image.shape != images.shape[1:]:
                raise _mixed(folder, images.shape[1:], image.shape)
            images[len(keys)] = image
            keys.append(sample.key)
            labels.append(_label(sample, manifest, folder))
    if images is None:
        raise DatasetError(f"{folder} holds no image.", "Build the variant again.")
    return Arrays(images, np.array(labels, np.int64), keys, list(manifest.classes))


def _image(sample: Sample, size: int | None) -> NDArray[np.uint8]:
    image = decode_png(sample.png, f"{sample.key}.png")
    if size is None or image.shape[:2] == (size, size):
        return image
    return np.asarray(ImageOps.fit(Image.fromarray(image), (size, size), Image.Resampling.BILINEAR))


def _label(sample: Sample, manifest: Manifest, folder: Path) -> int:
    if sample.label is None or not 0 <= sample.label < len(manifest.classes):
        raise DatasetError(
            f"The image {sample.key} in {folder} has the label {sample.label} of {len(manifest.classes)} classes.",
            "Build the variant again.",
        )
    return sample.label


def _mixed(folder: Path, one: tuple[int, ...], other: tuple[int, ...]) -> DatasetError:
    return DatasetError(
        f"The images of {folder} differ in size ({one[1]} x {one[0]} and {other[1]} x {other[0]} pixels).",
        "Set train.image_size in params.yaml, and they are scaled for training.",
    )
