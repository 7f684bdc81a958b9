"""Shards: WebDataset tar files, byte for byte the same for the same samples.

A shard holds, for each sample in order, `KEY.png` and (when the label is known) `KEY.cls`, the class index in ASCII
digits. Headers are plain USTAR with time 0, owner 0 and mode 0644, so that nothing but keys, labels and PNG bytes
decides the file. `webdataset` and Hugging Face `load_dataset("webdataset", ...)` open it.
"""

import hashlib
import io
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from storage.errors import CorruptShard, UsageError
from storage.files import open_atomic, sha256_file

KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,94}")
"""What a key looks like: no dot (WebDataset splits there), no slash, short enough for a USTAR header."""

BAD_TAR = (tarfile.TarError, ValueError, LookupError, OverflowError, EOFError, RecursionError)
"""What tarfile raises for bytes that are no tar: sizes beyond all files overflow, headers about headers recurse, and a
header that goes on where the file ends has no first byte there."""

_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE)
_LABEL = re.compile(rb"[0-9]{1,9}\s*")


@dataclass(frozen=True, slots=True)
class Sample:
    """One image as it lies in a shard: its key, the PNG file's bytes and its class index (None: not known)."""

    key: str
    png: bytes
    label: int | None


@dataclass(frozen=True)
class ShardInfo:
    """What a manifest says of one shard: file name, number of images, size in bytes, SHA-256 in lower-case hex."""

    name: str
    samples: int
    bytes: int
    sha256: str


class _Digesting(io.RawIOBase):
    """Passes bytes on to a file and digests them on the way, so that a shard is not read again to be described."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.size = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.size

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.digest.update(data)
        self.size += len(data)
        return self.file.write(data)


def write_shard(path: Path, samples: Iterable[Sample]) -> ShardInfo:
    """Write a shard and describe it. `path` appears only when the shard is whole.

    Raises:
        UsageError: a key can not be stored or comes twice, or a label is negative.
    """
    seen: set[str] = set()
    with open_atomic(path) as file:
        sink = _Digesting(file)
        with tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for sample in samples:
                if not KEY.fullmatch(sample.key) or sample.key in seen:
                    raise UsageError(f"The key {sample.key!r} can not be stored in a shard.", _KEY_RULE)
                if sample.label is not None and not 0 <= sample.label < 10**9:
                    raise UsageError(f"The label {sample.label} can not be stored in a shard.", "Labels count from 0.")
                seen.add(sample.key)
                _add(tar, f"{sample.key}.png", sample.png)
                if sample.label is not None:
                    _add(tar, f"{sample.key}.cls", b"%d" % sample.label)
    return ShardInfo(path.name, len(seen), sink.size, sink.digest.hexdigest())


_KEY_RULE = "Keys are letters, digits, '-' and '_', at most 95 of them, each key once."


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # time, owner and group are 0 and empty by default
    member.size = len(data)
    member.mode = 0o644
    tar.addfile(member, io.BytesIO(data))


def read_shard(path: Path) -> list[Sample]:
    """All samples of a shard, in order.

    Raises:
        CorruptShard: missing, truncated or damaged, or holding something else than `KEY.png` and `KEY.cls`.
    """
    with ShardFile(path) as shard:
        return list(shard)


def forwards(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members of a tar.

    Raises:
        tarfile.ReadError: headers lead backwards, which tarfile follows.
    """
    last = -1
    for member in tar:
        if member.offset <= last or member.size < 0:
            raise tarfile.ReadError("its headers lead backwards")
        last = member.offset
        yield member


def _samples(members: list[tuple[str, bytes]], path: Path) -> list[Sample]:
    images: dict[str, bytes] = {}
    labels: dict[str, int] = {}
    for name, content in members:
        key, _, extension = name.partition(".")
        if extension not in ("png", "cls") or not KEY.fullmatch(key):
            raise _corrupt(path, f"it holds {name!r}, which is neither KEY.png nor KEY.cls")
        if key in (images if extension == "png" else labels):
            raise _corrupt(path, f"it holds {name!r} twice")
        if extension == "png":
            images[key] = content
        elif _LABEL.fullmatch(content):
            labels[key] = int(content)
        else:
            raise _corrupt(path, f"{name!r} holds no class index")
    if not labels.keys() <= images.keys():
        raise _corrupt(path, f"{min(labels.keys() - images.keys())!r} has a label and no image")
    return [Sample(key, png, labels.get(key)) for key, png in images.items()]


def describe_shard(path: Path) -> ShardInfo:
    """Size, digest and number of images of a shard that already exists.

    Raises:
        CorruptShard: as `read_shard`.
    """
    samples = len(read_shard(path))
    return ShardInfo(path.name, samples, path.stat().st_size, sha256_file(path))


# --- one sample at a time ---------------------------------------------------------------------------------------------


class ShardFile:
    """A shard of which one image at a time is held. All is checked before the first sample comes.

        with ShardFile(path) as shard:
            len(shard)                  # samples
            for sample in shard: ...    # in order; as often as wanted, as long as the block lasts

    Raises:
        CorruptShard: as `read_shard`; while samples are read, too, when somebody cuts the file meanwhile.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("rb")
        except FileNotFoundError as error:
            raise CorruptShard(f"The shard {path} does not exist.", "Fetch or build the variant again.") from error
        try:
            self._places, self._labels = _look_through(self._file, path)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "ShardFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Sample]:
        for key, (offset, size) in self._places.items():
            self._file.seek(offset)
            png = self._file.read(size)
            if len(png) != size:
                raise _corrupt(self.path, f"it was cut off inside '{key}.png' while it was read")
            yield Sample(key, png, self._labels[key])


def _look_through(file: BinaryIO, path: Path) -> tuple[dict[str, tuple[int, int]], dict[str, int | None]]:
    """Where each image lies (offset and size, by key, in order) and its label. Raises CorruptShard."""
    size = os.fstat(file.fileno()).st_size
    members: list[tuple[str, bytes]] = []
    places: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in forwards(tar):
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep the headers of all
                content = _checked(file, member, size, path)
                members.append((member.name, content))
                if member.name.endswith(".png"):
                    places[member.name.removesuffix(".png")] = member.offset_data, member.size
            end = tar.offset  # tarfile takes a damaged header for the end: what follows the end must be zeros
    except BAD_TAR as error:
        raise _corrupt(path, f"it is no readable tar file ({error})") from error
    if size - end < 2 * tarfile.BLOCKSIZE or not _only_zeros(file, end):
        raise _corrupt(path, f"it is cut off or damaged at byte {end}")
    return places, {sample.key: sample.label for sample in _samples(members, path)}


def _checked(file: BinaryIO, member: tarfile.TarInfo, size: int, path: Path) -> bytes:
    """A label's content, and nothing of an image, which is only seen to be there."""
    if member.type not in _PLAIN or member.issparse():
        raise _corrupt(path, f"its member {member.name!r} is no plain file")
    if member.offset_data + member.size > size:
        raise _corrupt(path, f"it is cut off inside {member.name!r}")
    if not member.name.endswith(".cls"):
        return b""
    file.seek(member.offset_data)
    return file.read(member.size)


def _only_zeros(file: BinaryIO, start: int) -> bool:
    file.seek(start)
    while block := file.read(1 << 20):
        if block.count(0) != len(block):
            return False
    return True


def _corrupt(path: Path, why: str) -> CorruptShard:
    return CorruptShard(f"The shard {path} can not be used: {why}.", "Fetch or build it again.")
