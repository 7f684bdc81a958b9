"""From a data set to its two clean variants: the training split, which is protected later, and the test split.

A source that grows keeps a ledger (tasks/ledger.py): what came in since the last time goes into new shards.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from storage.errors import DatasetError, UnsupportedImage
from storage.files import Progress, replace_directory
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
)
from tasks.ledger import Ledger, assign, digest_of, follow_renames, read_ledger, write_ledger

_SHOWN = 10


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
    """

    dataset: str
    origin: str
    classes: list[str]
    train_images: int
    test_images: int
    train_bytes: int
    test_bytes: int
    seconds: float


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
        out_clean: folder of the training variant. What is there is replaced if it is a variant, else refused.
        out_test: folder of the test variant, likewise.
        mirror: folder with data sets already downloaded, or None; without it downloads are kept below HOME/downloads.
        progress: told the file or the split, how much is done, and of how much.
        dataset: the name the manifests carry, when it is not `name` (a folder of one's own has one).
        ledger: the file that a growing source's ledger is read from and written to; None: all begins anew.

    Raises:
        NotFound: no data set of this name.
        ParameterError: a parameter is unknown or can not be used.
        DatasetError: the source is not laid out as expected, or is damaged.
        UnsupportedImage: images can not be used; the first ten are named with the reason.
        DownloadError: the official address could not be read.
        UsageError: an output folder holds something else than a variant.
        DatasetError: the ledger is damaged.
    """
    start = time.monotonic()
    module = get(name)
    parameters = check_parameters(module.Parameters, params, name)
    place = Place(mirror, settings().home_path("downloads"), progress)
    before = read_ledger(ledger) if ledger else None
    looks = fingerprint(name, params)  # before it is read: what changes meanwhile is seen the next time
    with (
        replace_directory(out_clean, MANIFEST_NAME) as clean,
        replace_directory(out_test, MANIFEST_NAME) as test,
        module.open_source(parameters, place) as source,
    ):
        if before is not None and not before.continues(name, parameters.shard_size, source.classes):
            before = None
        problems: list[str] = []
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
        )
    if ledger is not None:
        empty = Ledger(source=name, shard_size=parameters.shard_size)  # of what never grows nothing is to be known
        write_ledger(ledger, plan.model_copy(update={"fingerprint": looks}) if looks is not None else empty)
    return report


def fingerprint(name: str, params: Mapping[str, Any]) -> str | None:
    """What a source that grows looks like now (`GrowingModule.fingerprint`); None: it never grows.

    Raises:
        NotFound, ParameterError, DatasetError: as `download_dataset`.
    """
    module = get(name)
    parameters = check_parameters(module.Parameters, params, name)
    return module.fingerprint(parameters) if isinstance(module, GrowingModule) else None


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


def _names(split: Split) -> list[str]:
    return split.names if split.names is not None else [str(index) for index in range(len(split.labels))]


@dataclass(frozen=True)
class _Writer:
    """Writes one split as shards; images that can not be used are noted and left out, for the caller to refuse."""

    source: Split
    split: str
    problems: list[str]
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
                self.problems.append(error.what.rstrip("."))
                continue
            self.pixels[key] = digest_of(png)
            yield Sample(f"{key:09d}", png, labels[self.source.labels[index]])


def _empty_manifest(dataset: str, split: str, classes: list[str]) -> Manifest:
    """A manifest without shards: says early whether the names can be used."""
    try:
        return Manifest(dataset=dataset, split=split, classes=classes, shards=[])
    except ValidationError as error:
        problems = "; ".join(str(e["msg"]) for e in error.errors())
        raise DatasetError(
            f"The data set {dataset!r} can not be described: {problems}.", "Rename it, or its class folders."
        ) from error


def _refused(problems: list[str]) -> UnsupportedImage:
    more = f" ... and {len(problems) - _SHOWN} more" if problems[_SHOWN:] else ""
    return UnsupportedImage(
        f"{len(problems)} images can not be used: {'; '.join(problems[:_SHOWN])}{more}.",
        "Convert them to 8-bit RGB PNG or JPEG of at least 16 x 16 pixels, or take them out.",
    )
