"""Labelled images on disk, as arrays: what the processes that train read, and what a killed run finds again.

They lie below HOME/evidence/images in folders named by the digest of what they were made of. Clean and restored images
are among them, so the folders are their owner's only (0700). All of it can be deleted: it is made again when needed.
"""

import hashlib
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.files import make_private, open_atomic, sha256_file
from storage.manifest import MANIFEST_NAME, read_manifest
from tasks.learning.training import LabelledImages
from tasks.variants import load_arrays

KEPT = 24
"""Folders of images that are kept, the ones used last."""

NEEDED_SECONDS = 2 * 24 * 3600
"""A folder that was used since then is kept in any case: an evaluation that still runs may come back to it."""

CODE = ("tasks/evidence/images.py", "tasks/variants.py", "storage/png.py")


@dataclass(frozen=True)
class ImageSet:
    """Images in a folder: images.npy (uint8 [N, H, W, 3]), labels.npy (int64 [N]), rows.npy (int64 [N]).

    Attributes:
        digest: SHA-256 of the three. `rows` are places among the clean images: some may be missing.
    """

    folder: Path
    digest: str
    count: int

    def load(self) -> LabelledImages:
        """Images and labels. The folder is marked as just used."""
        os.utime(self.folder)
        return LabelledImages(np.load(self.folder / "images.npy"), np.load(self.folder / "labels.npy"))

    def rows(self) -> NDArray[np.int64]:
        """See above."""
        found: NDArray[np.int64] = np.load(self.folder / "rows.npy")
        return found


def write_set(folder: Path, images: NDArray[np.uint8], labels: NDArray[np.int64], rows: NDArray[np.int64]) -> ImageSet:
    """Write images to a folder; the same images give the same digest."""
    arrays: dict[str, NDArray[Any]] = {
        "images": np.ascontiguousarray(images),
        "labels": labels.astype(np.int64),
        "rows": rows.astype(np.int64),
    }
    digest = hashlib.sha256(str(images.shape).encode())
    for name, array in arrays.items():
        save(folder / f"{name}.npy", array)
        digest.update(array.data)
    return ImageSet(folder, digest.hexdigest(), len(images))


def save(path: Path, array: NDArray[Any]) -> None:
    """Write one array, whole or not at all."""
    with open_atomic(path) as file:
        np.save(file, array)


def image_folder(home: Path, digest: str) -> Path:
    """The private folder for what this digest names, made if missing, and marked as just used."""
    folder = make_private(home, "images", digest[:32])
    folder.touch()
    return folder


def forget_old(home: Path) -> None:
    """Remove the folders of images that were used longest ago, but none that a run may still need."""
    used = {folder: _last_used(folder) for folder in (home / "images").glob("*/")}
    for folder in sorted(used, key=lambda one: used[one])[:-KEPT]:
        if used[folder] < time.time() - NEEDED_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)


def _last_used(folder: Path) -> float:
    """When a set in the folder was asked for; 0.0 where another run is removing it."""
    try:
        return max(place.stat().st_mtime for place in (folder, *folder.glob("*/")))
    except FileNotFoundError:
        return 0.0


@dataclass(frozen=True)
class Split:
    """A split of a variant, or the part of it that is used.

    Attributes:
        keys: sample keys in the order of the images; `split`: its name: both are part of every image id.
    """

    images: ImageSet
    keys: list[str]
    split: str
    classes: list[str]


def read_split(variant: Path, home: Path, count: int | None, size: int | None) -> Split:
    """The first images of a variant, as many of each class as fit into `count`, in the variant's order.

    Args:
        count: images at most; None: all.
        size: side that images are scaled to; None: they have one size, or this fails.

    Raises:
        CorruptManifest, CorruptShard, UnsupportedImage, DatasetError: the variant can not be used.
    """
    facts = f"{sha256_file(variant / MANIFEST_NAME)} {count} {size}"
    manifest = read_manifest(variant)
    arrays = load_arrays(variant, size)
    rows = balanced(arrays.labels, len(arrays.classes), count)
    folder = image_folder(home, hashlib.sha256(facts.encode()).hexdigest())
    images = write_set(folder, arrays.images[rows], arrays.labels[rows], np.arange(len(rows)))
    return Split(images, [arrays.keys[row] for row in rows], manifest.split, arrays.classes)


def balanced(labels: NDArray[np.int64], classes: int, count: int | None) -> NDArray[np.int64]:
    """Places of the first `count // classes` images of each class, and of one more of the first classes; rising."""
    if count is None or count >= len(labels):
        return np.arange(len(labels), dtype=np.int64)
    quota = [count // classes + (c < count % classes) for c in range(classes)]
    chosen = [np.flatnonzero(labels == c)[: quota[c]] for c in range(classes)]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def protected_rows(labels: NDArray[np.int64], share: float, seed: int) -> NDArray[np.bool_]:
    """Which images are protected when only a share is: so many of each class, drawn by seed; bool [N].

    With one seed a smaller share is part of a larger one.
    """
    chosen = np.zeros(len(labels), np.bool_)
    random = np.random.RandomState(seed)
    order = random.permutation(len(labels))
    for c in np.unique(labels):
        own = order[labels[order] == c]
        chosen[own[: round(share * len(own))]] = True
    return chosen
