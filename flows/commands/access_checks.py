"""What a grant is given for, looked at beforehand: a mistyped name would be a grant for nothing, seen by nobody."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from flows import console
from flows.commands import common

if TYPE_CHECKING:
    from storage.manifest import Manifest
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


def check_published(dataset: str, version: str | None, classes: Sequence[str] | None) -> None:
    """That the version is published, and has these classes; where nothing is published, there is nothing to check.

    Raises:
        NotFound: something is published, and not this version, or without such a class.
        UsageError: it can be no version's id.
    """
    from storage.registry_grants import checked_version

    checked_version(version)
    manifest = _published(dataset, version) if version or classes else None
    if manifest is None:
        return
    from storage.errors import NotFound

    if missing := sorted(set(classes or ()) - set(manifest.classes)):
        raise NotFound(
            f"{dataset} as published has no class {_listed([ascii(name[:64]) for name in missing])}.",
            f"Its classes: {_listed(manifest.classes)}. {AHEAD}",
        )


def _published(dataset: str, version: str | None) -> Manifest | None:
    """The manifest of the version (None: the latest); None where nothing is published, or the store is out of reach."""
    from storage.errors import EnvironmentFault, NotFound
    from storage.versions import list_versions, read_version

    try:
        with common.store_of("public") as store:
            try:
                ids = [made.id for made in list_versions(store, dataset)]
            except NotFound:
                return None
            if version is not None and version not in ids:
                raise NotFound(
                    f"No version {version} of {dataset} is published.", f"Published: {_listed(ids)}. {AHEAD}"
                )
            return read_version(store, dataset, version or ids[0])[1]
    except EnvironmentFault as error:
        console.note(f"Version and classes were not checked against what is published: {error.what}")
        return None


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
