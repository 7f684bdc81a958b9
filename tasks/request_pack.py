"""Packing what a requester hands in into numbered shards for the way, with an index of the names."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from storage.errors import CorruptManifest, InputError
from storage.files import Progress, write_atomic
from storage.manifest import MANIFEST_NAME, read_manifest
from storage.shards import Sample, ShardInfo, write_shard
from tasks.request_index import INDEX_NAME, InputShard, RefusedFile, RequestIndex, VariantHead, input_name
from tasks.request_sources import (
    Budget,
    Found,
    Item,
    Limits,
    Listing,
    list_folder,
    list_tar,
    read_folder,
    read_shard_members,
    read_tar,
    read_zip,
    refuse,
)

SHARD_BYTES = 512 << 20
"""An input shard of loose files is closed when it holds this much, or `shard_size` images."""


@dataclass(frozen=True)
class PackedSource:
    """The shards of a packed source, in the work folder, and the index that goes with them."""

    shards: list[ShardInfo]
    index: RequestIndex


@dataclass(frozen=True)
class _Opened:
    """A source as it will be read: loose `files`, or `shards` (target name and listing), and what a manifest said."""

    files: Iterator[Item] | None = None
    shards: list[Listing] = field(default_factory=list)
    variant: VariantHead | None = None
    refused: list[RefusedFile] = field(default_factory=list)


def pack_source(
    source: Path,
    work: Path,
    shard_size: int = 1000,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> PackedSource:
    """Pack a folder of PNGs, a folder of shards, a tar or a zip into `work`: `input-000000.tar` ... and `input.json`.

    PNG bytes are passed on untouched. A folder of shards (with or without a manifest), and a tar that is a shard with
    labels, keep their shard boundaries and labels; anything else becomes loose files under their relative names. What
    is no PNG, or can not be read, is listed in `index.refused` with its reason.

    Args:
        source: what was handed in; only read.
        work: an empty or new folder.
        shard_size: images in an input shard of loose files.
        limits: what is taken at most.
        progress: told the shard's name and the images packed so far.

    Raises:
        InputError: no PNG in it, not readable as what it seems to be, or beyond a limit of the whole.
    """
    budget = Budget(limits or Limits())
    opened = _open(source, budget)
    packer = _Packer(work, progress)
    packer.refused += opened.refused
    if opened.files is not None:
        packer.pack_files(opened.files, shard_size)
    for listing in opened.shards:
        packer.pack_shard(listing.path.name, read_shard_members(listing, budget))
    if not packer.entries:
        first = next((f" The first of {len(packer.refused):,}, {r.name}: {r.reason}." for r in packer.refused), "")
        raise InputError(f"{source} holds no PNG that could be restored.{first}", "Hand in protected PNG images.")
    index = RequestIndex(
        layout="files" if opened.files is not None else "shards",
        shards=packer.entries,
        names=packer.names,
        refused=packer.refused,
        variant=opened.variant,
    )
    write_atomic(work / INDEX_NAME, index.model_dump_json().encode())
    return PackedSource([entry.shard for entry in packer.entries], index)


# --- which kind of source --------------------------------------------------------------------------------------------


def _open(source: Path, budget: Budget) -> _Opened:
    if source.is_dir():
        return _open_folder(source, budget)
    if not source.is_file():
        raise InputError(f"{source} does not exist.", "Name a folder, a tar, a zip, or a published data set.")
    with source.open("rb") as file:
        magic = file.read(4)
    if magic[:2] == b"PK":
        return _Opened(files=read_zip(source, budget))
    if magic == b"\x89PNG":
        return _Opened(files=read_folder(source.parent, [source.name], budget))
    listing = list_tar(source, budget)
    if listing.is_shard() and listing.has_labels():
        return _Opened(shards=[listing])
    return _Opened(files=read_tar(listing, budget))


def _open_folder(folder: Path, budget: Budget) -> _Opened:
    names = list(list_folder(folder))
    tars = [name for name in names if "/" not in name and name.lower().endswith(".tar")]
    others = [name for name in names if name not in set(tars)]
    if not tars:
        return _Opened(files=read_folder(folder, names, budget))
    listings: list[Listing] = []
    unreadable: list[RefusedFile] = []
    for name in tars:
        try:
            listings.append(list_tar(folder / name, budget))
        except InputError as error:
            unreadable.append(refuse(name, error.what))
    if not any(name.lower().endswith(".png") for name in others) and all(x.is_shard() for x in listings) and listings:
        # A manifest, a licence and the like lie beside shards; nobody expects them restored.
        return _Opened(shards=listings, variant=_variant_head(folder, listings), refused=unreadable)
    return _Opened(files=_loose(folder, others, listings, unreadable, budget))


def _loose(
    folder: Path, names: list[str], listings: list[Listing], unreadable: list[RefusedFile], budget: Budget
) -> Iterator[Item]:
    """Loose files, and the members of the tars beside them under `TAR/`."""
    yield from read_folder(folder, names, budget)
    yield from unreadable
    for listing in listings:
        yield from read_tar(listing, budget, prefix=f"{listing.path.stem}/")


def _variant_head(folder: Path, listings: list[Listing]) -> VariantHead | None:
    """What the manifest beside the shards says, where there is one that is theirs."""
    if not (folder / MANIFEST_NAME).exists():
        return None
    try:
        manifest = read_manifest(folder)
    except CorruptManifest:
        return None
    if not {listing.path.name for listing in listings} <= {shard.name for shard in manifest.shards}:
        return None
    return VariantHead(dataset=manifest.dataset, split=manifest.split, classes=manifest.classes)


# --- packing ---------------------------------------------------------------------------------------------------------


class _Packer:
    """Writes input shards one after the other and keeps the books."""

    def __init__(self, work: Path, progress: Progress | None) -> None:
        work.mkdir(parents=True, exist_ok=True)
        self.work = work
        self.progress = progress
        self.entries: list[InputShard] = []
        self.names: dict[str, str] = {}
        self.refused: list[RefusedFile] = []

    def pack_files(self, items: Iterator[Item], shard_size: int) -> None:
        """Loose files, `shard_size` to a shard."""
        found = self._distinct(items)
        while first := next(found, None):
            self._write(None, _some(first, found, shard_size))

    def pack_shard(self, target: str, items: Iterable[Item]) -> None:
        """The samples of one shard, as one shard."""
        self._write(target, self._distinct(items, f"{target}/"))

    def _write(self, target: str | None, found: Iterable[Found]) -> None:
        path = self.work / input_name(len(self.entries))
        info = write_shard(path, (self._numbered(item) for item in found))
        if info.samples == 0:
            path.unlink()
            return
        self.entries.append(InputShard(shard=info, target=target))
        if self.progress is not None:
            self.progress(path.name, len(self.names), None)

    def _numbered(self, item: Found) -> Sample:
        number = f"{len(self.names):08d}"
        self.names[number] = item.name
        return Sample(number, item.png, item.label)

    def _distinct(self, items: Iterable[Item], inside: str = "") -> Iterator[Found]:
        """What was found, without what is refused: each name once, and no name that is a folder of another."""
        files: set[str] = set()
        folders: set[str] = set()
        for item in items:
            if isinstance(item, RefusedFile):
                self.refused.append(item)
                continue
            above = _folders_above(item.name)
            if item.name in files:
                self.refused.append(refuse(inside + item.name, "its name appears twice"))
            elif item.name in folders or any(folder in files for folder in above):
                self.refused.append(refuse(item.name, "it is a file and a folder at once"))
            else:
                files.add(item.name)
                folders.update(above)
                yield item


def _some(first: Found, rest: Iterator[Found], count: int) -> Iterator[Found]:
    """`first` and what follows, up to `count` items or `SHARD_BYTES`."""
    yield first
    size = len(first.png)
    for _ in range(count - 1):
        if size >= SHARD_BYTES or not (item := next(rest, None)):
            return
        size += len(item.png)
        yield item


def _folders_above(name: str) -> list[str]:
    parts = name.split("/")[:-1]
    return ["/".join(parts[: i + 1]) for i in range(len(parts))]
