"""From a data set to its two clean variants: the training split, which is protected later, and the test split.

A source that grows keeps a ledger (tasks/ledger.py): what came in since the last time goes into new shards.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from storage.errors import DatasetError, UnsupportedImage, UnusableFiles
from storage.files import Progress, csv_bytes, replace_directory, write_atomic
from storage.manifest import MANIFEST_NAME, Manifest, shard_name, write_manifest
from storage.png import encode_png
from storage.settings import settings
from storage.shards import Sample, write_shard
from tasks.datasets import get
from tasks.datasets.source import (
    CommonParameters,
    GrowingModule,
    Place,
    Source,
    Split,
    check_parameters,
    choose,
    first_of,
)
from tasks.ledger import (
    Ledger,
    assign,
    digest_of,
    follow_renames,
    read_ledger,
    same_looks,
    sample_key,
    write_ledger,
)

DUPLICATES_NAME = "duplicates.csv"
"""What lies beside the clean variant when training images have the same pixels as others: all of them."""

REFUSED_NAME = "refused.csv"
"""What lies there when files can not be used: all of them, with the reasons."""

_PAIRS_SHOWN = 3


@dataclass(frozen=True)
class DownloadReport:
    """What was built.

    Attributes:
        dataset: its name, as in the manifests.
        origin: the file or folder it was read from.
        classes: class names.
        train_images, test_images: how many.
        train_bytes, test_bytes: size of the shards.
        seconds: wall-clock time, downloading included.
        duplicates: training images with the same pixels as an earlier one: both, by file name, else by key.
    """

    dataset: str
    origin: str
    classes: list[str]
    train_images: int
    test_images: int
    train_bytes: int
    test_bytes: int
    seconds: float
    duplicates: list[tuple[str, str]] = field(default_factory=list)

    def warning(self, listed: Path) -> str | None:
        """What is to be said of duplicates, which `listed` lists; None: there are none."""
        if not self.duplicates:
            return None
        shown = ", ".join(f"{again} is {first}" for again, first in self.duplicates[:_PAIRS_SHOWN])
        more = " ..." if self.duplicates[_PAIRS_SHOWN:] else ""
        return (
            f"Warning: the same pixels come again in {len(self.duplicates):,} of {self.train_images:,} training images "
            f"({shown}{more}; all in {listed}). Each is protected in its own way, and who has two protections of one "
            "image can compute most of the clean one: leave one of each before you publish."
        )


def download_dataset(
    name: str,
    params: Mapping[str, Any],
    out_clean: Path,
    out_test: Path,
    mirror: Path | None,
    progress: Progress | None = None,
    dataset: str | None = None,
    ledger: Path | None = None,
) -> DownloadReport:
    """Build both variants of a data set; each folder appears whole, or what was there stays.

    Args:
        name: which module reads it: cifar10, tinyimagenet, imagefolder or sample.
        params: `shard_size`, `train_limit`, `test_limit` and what the data set takes besides.
        out_clean: folder of the training variant. What is there is replaced if it is a variant, else refused. Beside it
            come `DUPLICATES_NAME` and `REFUSED_NAME`, when there is anything to list.
        out_test: folder of the test variant, likewise.
        mirror: folder with data sets already downloaded, or None; without it downloads are kept below HOME/downloads.
        progress: told the file or the split, how much is done, and of how much.
        dataset: the name the manifests carry, when it is not `name` (a folder of one's own has one).
        ledger: the file that a growing source's ledger is read from and written to; None: all begins anew.

    Raises:
        NotFound: no data set of this name.
        ParameterError: a parameter is unknown or can not be used.
        DatasetError: the source is not laid out as expected, or is damaged.
        UnusableFiles: images can not be used; the first ten are named with the reason, all in `REFUSED_NAME`.
        DownloadError: the official address could not be read.
        UsageError: an output folder holds something else than a variant.
        DatasetError: the ledger is damaged.
    """
    start = time.monotonic()
    module = get(name)
    parameters = check_parameters(module.Parameters, params, name)
    place = Place(mirror, settings().home_path("downloads"), progress)
    before = read_ledger(ledger) if ledger else None
    with (
        _refusals_listed(out_clean.with_name(REFUSED_NAME)),
        nullcontext(fingerprint(name, params)) as looks,  # before it is read: what changes meanwhile is seen next time
        replace_directory(out_clean, MANIFEST_NAME) as clean,
        replace_directory(out_test, MANIFEST_NAME) as test,
        module.open_source(parameters, place) as source,
    ):
        if before is not None and not before.continues(name, parameters.shard_size, source.classes):
            before = None
        problems: list[tuple[str, str]] = []
        built = {}
        plan = _plan(source, parameters, name, before)
        for split, folder in (("train", clean), ("test", test)):
            writer = _Writer(source.splits[split], split, problems, progress)
            built[split] = writer.write(folder, dataset or name, source.classes, plan)
            plan.splits[split] = plan.splits[split].model_copy(update={"pixels": writer.pixels})
        if problems:
            raise _refused(problems)
        report = DownloadReport(
            dataset=dataset or name,
            origin=source.origin,
            classes=plan.classes,
            train_images=built["train"].samples,
            test_images=built["test"].samples,
            train_bytes=sum(shard.bytes for shard in built["train"].shards),
            test_bytes=sum(shard.bytes for shard in built["test"].shards),
            seconds=time.monotonic() - start,
            duplicates=_duplicates(source.splits["train"], plan),
        )
    _write_list(out_clean.with_name(DUPLICATES_NAME), ("image", "same pixels as"), report.duplicates)
    if ledger is not None:
        empty = Ledger(source=name, shard_size=parameters.shard_size)  # of what never grows no image is to be known
        made = plan if looks is not None else empty
        write_ledger(ledger, made.model_copy(update={"fingerprint": looks, "parameters": parameters.record()}))
    return report


def fingerprint(name: str, params: Mapping[str, Any]) -> str | None:
    """What a source that grows looks like now (`GrowingModule.fingerprint`); None: it never grows.

    Raises:
        NotFound, ParameterError, DatasetError: as `download_dataset`.
    """
    module = get(name)
    parameters = check_parameters(module.Parameters, params, name)
    return module.fingerprint(parameters) if isinstance(module, GrowingModule) else None


def moved_images(name: str, params: Mapping[str, Any], ledger: Path) -> list[str]:
    """The parameters, in words, by which images of a growing data set would move that was built with others.

    From one shard to another, or between training and test: so what was published would be protected anew. Nothing is
    known of a ledger of an earlier release, and nothing moves where none is continued.

    Raises:
        NotFound, ParameterError, DatasetError: as `download_dataset`.
    """
    before = read_ledger(ledger)
    if before is None or before.source != name or before.parameters is None or not before.splits:
        return []
    model = get(name).Parameters
    return check_parameters(model, params, name).moves(check_parameters(model, before.parameters, name))


def _plan(source: Source, parameters: CommonParameters, name: str, before: Ledger | None) -> Ledger:
    """What goes where; images of a source that never grows are called by their number."""
    splits = {}
    for split, content in source.splits.items():
        names = _names(content)
        chosen = choose(content.labels, parameters.limit(split))
        known = before.splits.get(split) if before and content.names is not None else None
        if known is not None:
            known = follow_renames(known, names, partial(_looks, content))
        splits[split] = assign(known, names, chosen, parameters.shard_size)
    old = before.classes if before else []
    classes = old + [known for known in source.classes if known not in set(old)]
    return Ledger(source=name, shard_size=parameters.shard_size, classes=classes, splits=splits)


def _looks(split: Split, index: int) -> str | None:
    try:
        return digest_of(encode_png(split.read(index)))
    except UnsupportedImage:
        return None  # whoever writes the shards says so


def _duplicates(split: Split, plan: Ledger) -> list[tuple[str, str]]:
    named = split.names is not None
    pairs = same_looks(plan.splits["train"])
    return [(name, before) if named else (sample_key(key), sample_key(old)) for (key, name), (old, before) in pairs]


def _write_list(path: Path, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A list for the owner, as CSV; where it is empty, none is there."""
    if rows:
        write_atomic(path, csv_bytes(head, [[_writable(cell) for cell in row] for row in rows]))
    else:
        path.unlink(missing_ok=True)


def _writable(text: str) -> str:
    """A file's name may hold bytes that are no text."""
    return text.encode(errors="backslashreplace").decode()


def _names(split: Split) -> list[str]:
    return split.names if split.names is not None else [str(index) for index in range(len(split.labels))]


@dataclass(frozen=True)
class _Writer:
    """Writes one split as shards; images that can not be used are noted and left out, for the caller to refuse."""

    source: Split
    split: str
    problems: list[tuple[str, str]]
    progress: Progress | None
    pixels: dict[int, str] = field(default_factory=dict)

    def write(self, folder: Path, dataset: str, classes: list[str], plan: Ledger) -> Manifest:
        manifest = _empty_manifest(dataset, self.split, plan.classes)
        places = {name: index for index, name in enumerate(_names(self.source))}
        labels = [plan.classes.index(name) for name in classes]
        wanted = plan.splits[self.split].shards
        shards, done, total = [], 0, sum(len(shard.images) for shard in wanted)
        for shard in wanted:
            part = [(key, places[name]) for key, name in shard.images]
            shards.append(write_shard(folder / shard_name(self.split, shard.number), self._samples(part, labels)))
            done += len(part)
            if self.progress is not None:
                self.progress(self.split, done, total)
        manifest = manifest.model_copy(update={"shards": shards})
        write_manifest(folder, manifest)
        return manifest

    def _samples(self, images: list[tuple[int, int]], labels: list[int]) -> Iterator[Sample]:
        """The images of (key, index in the source); `labels` gives a label of the source its number in the variant."""
        for key, index in images:
            try:
                png = encode_png(self.source.read(index))
            except UnsupportedImage as error:
                self.problems.append(self._problem(key, index, error))
                continue
            self.pixels[key] = digest_of(png)
            yield Sample(sample_key(key), png, labels[self.source.labels[index]])

    def _problem(self, key: int, index: int, error: UnsupportedImage) -> tuple[str, str]:
        name = self.source.names[index] if self.source.names is not None else sample_key(key)
        return name, error.what.removeprefix(f"{name} ").rstrip(".")


def _empty_manifest(dataset: str, split: str, classes: list[str]) -> Manifest:
    """A manifest without shards: says early whether the names can be used."""
    try:
        return Manifest(dataset=dataset, split=split, classes=classes, shards=[])
    except ValidationError as error:
        problems = "; ".join(str(e["msg"]) for e in error.errors())
        raise DatasetError(
            f"The data set {dataset!r} can not be described: {problems}.", "Rename it, or its class folders."
        ) from error


def _refused(problems: list[tuple[str, str]]) -> UnusableFiles:
    return UnusableFiles(
        f"{len(problems)} images can not be used: {first_of(problems)}.",
        "Convert them to 8-bit RGB PNG or JPEG of at least 16 x 16 pixels, or take them out.",
        problems,
    )


@contextmanager
def _refusals_listed(path: Path) -> Iterator[None]:
    """Where the block refuses files, all of them are listed in `path`, and the error says so; else none is there."""
    try:
        yield
    except UnusableFiles as error:
        _write_list(path, ("file", "reason"), error.files)
        raise UnusableFiles(f"{error.what} All of them are in {path}.", error.cure, error.files) from error
    path.unlink(missing_ok=True)
