"""CIFAR-10 (A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009): the Python batches.

50,000 training and 10,000 test images of 32x32 in 10 classes, in the order of the batches. A mirror may hold the folder
`cifar-10-batches-py` or the archive `cifar-10-python.tar.gz`; each batch's published MD5 is checked either way.
"""

import hashlib
import io
import pickle
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.errors import DatasetError
from tasks.datasets.source import CommonParameters, Place, Source, Split

ADDRESS = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
MD5 = "c58f30108f718f92721af3b95e74349a"
FOLDER = "cifar-10-batches-py"
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
BATCHES = {
    "train": {
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    },
    "test": {"test_batch": "40351d587109b95175f43aff81a1287e"},
}

Parameters = CommonParameters


class _ArrayUnpickler(pickle.Unpickler):
    """Rebuilds lists, dicts, strings and numpy arrays of plain numbers; any other name in the stream is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")):
            return _empty_array
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _empty_array(kind: type, shape: tuple[int, ...], code: bytes) -> NDArray[Any]:
    return np.ndarray.__new__(np.ndarray, shape, np.uint8)  # its contents and dtype follow in the stream


@contextmanager
def open_source(parameters: CommonParameters, place: Place) -> Iterator[Source]:
    """Both splits, wholly in memory (180 MB)."""
    found, origin = place.obtain([FOLDER, "cifar-10-python.tar.gz"], ADDRESS, MD5)
    if found.is_dir():
        splits = {split: _split(lambda name: (found / name).read_bytes(), split) for split in BATCHES}
    else:
        contents = _archive(found)
        splits = {split: _split(contents.__getitem__, split) for split in BATCHES}
    yield Source(CLASSES, splits, origin)


def _archive(path: Path) -> dict[str, bytes]:
    """The batches inside the archive, by name; nothing is unpacked to disk."""
    wanted = {f"{FOLDER}/{name}": name for batches in BATCHES.values() for name in batches}
    contents = {}
    try:
        with tarfile.open(path, "r:gz") as tar:
            for member in tar:
                file = tar.extractfile(member) if member.name in wanted else None
                if file is not None:
                    contents[wanted[member.name]] = file.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DatasetError(f"{path} is no readable CIFAR-10 archive ({error}).", _again(path)) from error
    return contents


def _split(read: Callable[[str], bytes], split: str) -> Split:
    images, labels = [], []
    for name, md5 in BATCHES[split].items():
        batch = _batch(read, name, md5)
        images.append(np.asarray(batch[b"data"], np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels += [int(label) for label in batch[b"labels"]]
    pixels = np.ascontiguousarray(np.concatenate(images))
    return Split(labels, lambda index: pixels[index])


def _batch(read: Callable[[str], bytes], name: str, md5: str) -> dict[bytes, Any]:
    try:
        data = read(name)
    except (FileNotFoundError, KeyError) as error:
        raise DatasetError(f"CIFAR-10 is not whole: {name} is missing.", _again(None)) from error
    if hashlib.md5(data, usedforsecurity=False).hexdigest() != md5:
        raise DatasetError(f"CIFAR-10's {name} is not the published one: its MD5 differs.", _again(None))
    return load_batch(data)


def load_batch(data: bytes) -> dict[bytes, Any]:
    """Unpickle one batch without letting it call anything but numpy's array.

    Raises:
        DatasetError: the stream asks for something else, or is damaged.
    """
    try:
        batch = _ArrayUnpickler(io.BytesIO(data), encoding="bytes").load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        raise DatasetError(f"A batch of CIFAR-10 can not be read ({error}).", _again(None)) from error
    if not isinstance(batch, dict):
        raise DatasetError("A batch of CIFAR-10 is not laid out as published.", _again(None))
    return batch


def _again(path: Path | None) -> str:
    return f"Remove {path or 'the damaged file'} and fetch it again from {ADDRESS}."
