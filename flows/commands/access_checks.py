"""What a grant is given for, looked at beforehand: a mistyped name would be a grant for nothing, seen by nobody."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from flows import console
from flows.commands import common

if TYPE_CHECKING:
    from storage.files import Progress
    from storage.manifest import Manifest
    from storage.objects import ObjectStore
    from storage.registry import Registry

AHEAD = "To grant what is not there yet: --ahead."
_SHOWN = 10


def check_dataset(book: Registry, dataset: str) -> None:
    """That the data set is on record, or has a key here.

    Raises:
        NotFound: neither; the message names those that are known.
        UsageError: the name can name no data set.
    """
    from storage.errors import KeyVaultError, NotFound
    from storage.keys import open_vault
    from storage.names import check_dataset_name
    from storage.settings import settings

    check_dataset_name(dataset)
    known = {made.name for made in book.list_datasets()}
    if dataset in known:
        return
    with suppress(KeyVaultError):  # a vault that does not open here names nothing
        known |= {record.dataset for record in open_vault(settings()).list()}
    if dataset not in known:
        raise NotFound(
            f"There is no data set {dataset}: none of this name is on record or has a key here.",
            f"Known: {_listed(sorted(known)) or 'none'}. {AHEAD}",
        )


def check_published(
    dataset: str, version: str | None, classes: Sequence[str] | None, samples: Sequence[str] | None
) -> list[str] | None:
    """That the version is published, and has these classes and samples, whose keys are returned in full.

    Where nothing is published, samples are looked for in the protected variant of this machine; without one, or when
    the store is out of reach, there is nothing to check.

    Raises:
        NotFound: something is published, and not this version, or without such a class or sample.
        UsageError: it can be no version's id.
    """
    from storage.errors import EnvironmentFault
    from storage.registry_grants import checked_version
    from tasks.sample_keys import plain_key

    checked_version(version)
    plain = None if samples is None else [plain_key(key) for key in samples]
    if not version and not classes:
        return plain
    try:
        with common.store_of("public") as store:
            manifest = _published(store, dataset, version)
            if manifest is not None:
                _check_classes(dataset, manifest, classes or ())
            return _found(store, dataset, manifest or _local(dataset), samples) if samples else plain
    except EnvironmentFault as error:
        console.note(f"Version, classes and samples were not checked against what is published: {error.what}")
        return plain


def _check_classes(dataset: str, manifest: Manifest, classes: Sequence[str]) -> None:
    from storage.errors import NotFound

    if missing := sorted(set(classes) - set(manifest.classes)):
        raise NotFound(
            f"{dataset} as published has no class {_listed([ascii(name[:64]) for name in missing])}.",
            f"Its classes: {_listed(manifest.classes)}. {AHEAD}",
        )


def _published(store: ObjectStore, dataset: str, version: str | None) -> Manifest | None:
    """The manifest of the version (None: the latest); None where nothing is published."""
    from storage.errors import NotFound
    from storage.versions import list_versions, read_version

    try:
        ids = [made.id for made in list_versions(store, dataset)]
    except NotFound:
        return None
    if version is not None and version not in ids:
        raise NotFound(f"No version {version} of {dataset} is published.", f"Published: {_listed(ids)}. {AHEAD}")
    return read_version(store, dataset, version or ids[0])[1]


def _found(store: ObjectStore, dataset: str, manifest: Manifest | None, samples: Sequence[str]) -> list[str]:
    """The keys in full of these samples. Raises NotFound when shards hold no such sample."""
    from storage.errors import NotFound
    from tasks.sample_keys import find_keys, plain_key

    if manifest is None:
        return [plain_key(key) for key in samples]
    with console.progress("Looking for the samples") as progress:
        found = find_keys(samples, _keys(store, dataset, manifest, progress))
    if missing := [ascii(key[:64]) for key, held in found.items() if held is None]:
        raise NotFound(
            f"{len(missing):,} of {len(found):,} keys are of no image of {dataset} as published: {_listed(missing)}.",
            f"Keys are what images are called in shards; of the owner's files: dmcp data keys FOLDER FILE. {AHEAD}",
        )
    return [key for key in found.values() if key is not None]


def _keys(store: ObjectStore, dataset: str, manifest: Manifest, progress: Progress) -> Iterator[list[str]]:
    """The keys of each shard: of this machine's own variant where it is the same, for that need not be fetched."""
    from storage.versions import shard_key
    from tasks.sample_keys import keys_in

    local, folder = _local(dataset), _folder(dataset)
    mine = {shard.sha256: folder / shard.name for shard in local.shards} if local else {}
    for number, shard in enumerate(manifest.shards):
        progress("", number, len(manifest.shards))
        path = mine.get(shard.sha256)
        if path is not None and path.is_file():
            with path.open("rb") as file:
                yield keys_in(file, shard.name)
        else:
            with common.arriving(store, shard_key(dataset, shard)) as stream:
                yield keys_in(stream, shard.name)


def _local(dataset: str) -> Manifest | None:
    from storage.errors import CorruptManifest
    from storage.manifest import read_manifest

    with suppress(CorruptManifest):
        found = read_manifest(_folder(dataset))
        return found if found.dataset == dataset else None
    return None


def _folder(dataset: str) -> Path:
    from storage.settings import settings

    return settings().data_path(dataset, "protected")


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
