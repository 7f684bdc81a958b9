"""Packing what a requester hands in into numbered shards for the way, with an index of the names."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from storage.errors import (
    CorruptManifest,
    InputError,
    NoSuchPath,
    NotProtected,
    TooLarge,
    UnsupportedFormat,
    UnsupportedImage,
)
from storage.files import Progress, write_atomic
from storage.manifest import MANIFEST_NAME, parse_manifest
from storage.objects import MAX_IN_MEMORY
from storage.shards import Sample, ShardInfo, write_shard
from tasks.request_containers import (
    Listing,
    Zip,
    list_inner_tar,
    list_tar,
    open_zip,
    read_shard_members,
    read_tar,
)
from tasks.request_index import (
    INDEX_NAME,
    InputShard,
    RefusedFile,
    RequestIndex,
    VariantHead,
    input_name,
    name_fault,
)
from tasks.request_sources import (
    Budget,
    Found,
    Item,
    Limits,
    beside,
    image_kind,
    list_folder,
    read_file,
    read_folder,
    refuse,
    shards_among,
)
from tasks.restore import read_header

SHARD_BYTES = 512 << 20
"""An input shard of loose files is closed when it holds this much, or `shard_size` images."""

LARGEST_SHARD = 2 << 30
"""Shards are handed in as they are and held in memory when they are restored: not if they are larger than this."""


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
    shown: str | None = None,
) -> PackedSource:
    """Pack a folder of PNGs, a folder of shards, a tar or a zip into `work`: `input-000000.tar` ... and `input.json`.

    PNG bytes are passed on untouched. Shards side by side in a folder, a tar or a zip (with or without a manifest), and
    a tar that is a shard with labels, keep their boundaries and labels; anything else becomes loose files under their
    relative names. What is no PNG, or can not be read, is listed in `index.refused` with its reason.

    Args:
        source: what was handed in; only read.
        work: an empty or new folder.
        shard_size: images in an input shard of loose files.
        limits: what is taken at most.
        progress: told the shard's name and the images packed so far.
        shown: what the requester calls the source, where its path on this machine says nothing to them.

    Raises:
        InputError: no PNG in it, not readable as what it seems to be, or beyond a limit of the whole.
    """
    budget = Budget(limits or Limits())
    shown = "upload" if shown == "" else shown
    packer = _Packer(work, progress, budget.limits.refused)
    with ExitStack() as stack:
        opened = _open(source, budget, stack, shown)
        for refused in opened.refused:
            packer.refuse(refused)
        if opened.files is not None:
            packer.pack_files(opened.files, shard_size)
        for listing in opened.shards:
            packer.pack_shard(_target(listing.name), read_shard_members(listing, budget))
    if not packer.entries:
        first = next((f" The first of {len(packer.refused):,}, {r.name}: {r.reason}." for r in packer.refused), "")
        raise InputError(
            f"{shown or source} holds no PNG that could be restored.{first}", "Hand in protected PNG images."
        )
    index = RequestIndex(
        layout="files" if opened.files is not None else "shards",
        shards=packer.entries,
        names=packer.names,
        refused=packer.refused,
        variant=opened.variant,
    )
    data = index.model_dump_json().encode()
    if len(data) > MAX_IN_MEMORY:
        raise TooLarge("The names of its files alone are too much.", "Hand it in in parts, or with shorter names.")
    write_atomic(work / INDEX_NAME, data)
    return PackedSource([entry.shard for entry in packer.entries], index)


def check_protected(source: Path, limits: Limits | None = None) -> None:
    """Look at images of a source until one says that it is protected: before anything is packed, or leaves.

    Raises:
        NotProtected: not one of them does; what is none of ours stays where it is.
        InputError: as `pack_source`, as far as the source was read.
    """
    budget, images = Budget(limits or Limits()), 0
    with ExitStack() as stack:
        opened = _open(source, budget, stack)
        shards = (item for listing in opened.shards for item in read_shard_members(listing, budget))
        for item in shards if opened.files is None else opened.files:
            if isinstance(item, RefusedFile):
                continue
            images += 1
            with suppress(NotProtected, UnsupportedImage):
                with suppress(UnsupportedFormat):  # of a later release: whoever restores it may know more
                    read_header(item.png, item.name)
                return
    if images:  # of a source without any, packing says why
        raise NotProtected(
            f"Not one of the {images:,} images of {source} is a protected one, so nothing was handed in.",
            "Only protected images can be restored, as they were published: dmcp pull fetches them, dmcp inspect "
            "shows what an image is.",
        )


# --- which kind of source --------------------------------------------------------------------------------------------


def _open(source: Path, budget: Budget, stack: ExitStack, shown: str | None = None) -> _Opened:
    """How a source will be read; `stack` closes what stays open for that."""
    if source.is_dir():
        return _open_folder(source, budget)
    if not source.is_file():
        raise NoSuchPath(f"{shown or source} does not exist.", "Name a folder, a tar, a zip, or a published data set.")
    with source.open("rb") as file:
        magic = file.read(4)
    if not magic:
        raise InputError(f"{shown or source} is empty.", "Hand in protected PNG images.")
    if magic[:2] == b"PK":
        return _open_zip(stack.enter_context(open_zip(source, budget, shown)), budget)
    if magic == b"\x89PNG":
        name = source.name if shown is None else _last_part(shown, "image.png")
        return _Opened(files=iter([read_file(source, name, budget)]))
    if kind := image_kind(magic):
        raise InputError(
            f"{shown or source} is {kind}, not a PNG: what is restored is gone from it.",
            "Fetch the image again with dmcp pull, and hand in the PNG.",
        )
    listing = list_tar(source, budget, shown)
    listing.name = source.name if shown is None else _last_part(shown, "upload")
    if listing.is_shard() and listing.has_labels() and listing.size <= LARGEST_SHARD:
        return _Opened(shards=[listing])
    return _open_packed(listing, budget) or _Opened(files=read_tar(listing, budget))


def _last_part(shown: str, otherwise: str) -> str:
    """What a source is called, as a file's name; `otherwise` where that can be none."""
    name = shown.replace("\\", "/").rpartition("/")[2]
    return otherwise if name_fault(name) else name


def _target(shown: str) -> str:
    """What the shard that comes back is called."""
    name = _last_part(shown, "shard.tar")
    return name if name.lower().endswith(".tar") else f"{name[:200]}.tar"


def _open_folder(folder: Path, budget: Budget) -> _Opened:
    names = list(list_folder(folder))
    if not (tars := shards_among(names)):
        return _Opened(files=read_folder(folder, names, budget))
    shards = set(tars)
    others = [name for name in names if name not in shards]
    tried = [_listed(name, partial(list_tar, folder / name, budget, name)) for name in tars]
    with suppress(OSError), (folder / beside(tars[0], MANIFEST_NAME)).open("rb") as file:
        return _open_tars(tried, others, read_folder(folder, others, budget), file.read(MAX_IN_MEMORY), budget)
    return _open_tars(tried, others, read_folder(folder, others, budget), b"", budget)


def _open_packed(listing: Listing, budget: Budget) -> _Opened | None:
    """A folder of shards that was packed as a whole into a tar, which then is read where it lies; None: no such."""
    plain = {member.name: member for member in listing.members if member.plain}
    tars = shards_among([member.name for member in listing.members])
    if listing.damage or not tars or any(name_fault(name) or name not in plain for name in tars):
        return None
    shards = {name: plain[name] for name in tars}
    tried = [
        _listed(m.name, partial(list_inner_tar, listing.open, m.name, m.offset, m.size, budget))
        for m in shards.values()
    ]
    rest = [member for member in listing.members if member.name not in shards]
    text = b""
    if (head := plain.get(beside(tars[0], MANIFEST_NAME))) is not None:
        with listing.open() as file:
            file.seek(head.offset)
            text = file.read(min(head.size, MAX_IN_MEMORY))
    loose = read_tar(Listing(listing.open, listing.name, rest), budget)
    return _open_tars(tried, [member.name for member in rest], loose, text, budget)


def _open_zip(archive: Zip, budget: Budget) -> _Opened:
    """A zip: of shards, which are read where they lie, or of loose files."""
    tars = shards_among([name for name, _ in archive.members])
    if not tars or any(name_fault(name) for name in tars):
        return _Opened(files=archive.read(archive.members))
    shards = dict.fromkeys(tars)
    rest = [(name, info) for name, info in archive.members if name not in shards]
    inner = {name: (name, info) for name, info in reversed(archive.members) if name in shards}  # of one name the first
    again = [refuse(name, "its name appears twice") for name, count in Counter(tars).items() if count > 1]
    text = next((archive.text(i, MAX_IN_MEMORY) for name, i in rest if name == beside(tars[0], MANIFEST_NAME)), b"")
    tried = [*(_capped(tar) for tar in archive.list_tars([inner[name] for name in shards])), *again]
    return _open_tars(tried, [name for name, _ in rest], archive.read(rest), text, budget)


def _open_tars(
    tried: list[Listing | RefusedFile], others: list[str], files: Iterator[Item], manifest: bytes, budget: Budget
) -> _Opened:
    """Tars side by side, and the names of `others` with what can be read of them: shards, if all of it looks so.

    `manifest` is what the file says that may be theirs; empty where there is none.
    """
    listings = [listing for listing in tried if isinstance(listing, Listing)]
    unreadable = [refusal for refusal in tried if isinstance(refusal, RefusedFile)]
    if not any(name.lower().endswith(".png") for name in others) and all(x.is_shard() for x in listings) and listings:
        # A manifest, a licence and the like lie beside shards; nobody expects them restored.
        return _Opened(shards=listings, variant=_variant_head(manifest, listings), refused=unreadable)
    return _Opened(files=_loose(files, listings, unreadable, budget))


def _listed(name: str, make: Callable[[], Listing]) -> Listing | RefusedFile:
    try:
        return _capped(make())
    except TooLarge:
        raise
    except InputError as error:
        return refuse(name, error.what)


def _capped(listing: Listing | RefusedFile) -> Listing | RefusedFile:
    if isinstance(listing, Listing) and listing.is_shard() and listing.size > LARGEST_SHARD:
        return refuse(listing.name, f"it holds more than {LARGEST_SHARD >> 30} GiB; split it")
    return listing


def _loose(
    files: Iterator[Item], listings: list[Listing], unreadable: list[RefusedFile], budget: Budget
) -> Iterator[Item]:
    """Loose files, and the members of the tars beside them under `TAR/`."""
    yield from files
    yield from unreadable
    for listing in listings:
        yield from read_tar(listing, budget, prefix=f"{listing.name[:-4]}/")


def _variant_head(text: bytes, listings: list[Listing]) -> VariantHead | None:
    """What the manifest beside the shards says, where there is one that is theirs."""
    with suppress(CorruptManifest):
        manifest = parse_manifest(text, MANIFEST_NAME)
        if {_last_part(listing.name, "") for listing in listings} <= {shard.name for shard in manifest.shards}:
            return VariantHead(dataset=manifest.dataset, split=manifest.split, classes=manifest.classes)
    return None


# --- packing ---------------------------------------------------------------------------------------------------------


class _Packer:
    """Writes input shards one after the other and keeps the books."""

    def __init__(self, work: Path, progress: Progress | None, most_refused: int) -> None:
        work.mkdir(parents=True, exist_ok=True)
        self.work = work
        self.progress = progress
        self.most_refused = most_refused
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

    def refuse(self, file: RefusedFile) -> None:
        """Note a file that is not taken. Raises InputError when there are too many of them."""
        self.refused.append(file)
        if len(self.refused) > self.most_refused:
            first = f"The first, {self.refused[0].name}: {self.refused[0].reason}."
            raise InputError(
                f"More than {self.most_refused:,} of its files can not be taken. {first}",
                "Hand in protected PNG images only.",
            )

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
                self.refuse(item)
                continue
            above = _folders_above(item.name)
            if item.name in files:
                self.refuse(refuse(inside + item.name, "its name appears twice"))
            elif item.name in folders or any(folder in files for folder in above):
                self.refuse(refuse(item.name, "it is a file and a folder at once"))
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
