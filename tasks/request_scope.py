"""What a grant covers, as far as the images of a request go: their number, their keys, the classes sealed in them.

A class is known for sure from the label that profile `exact` seals with an image; what a requester states beside it is
not believed. A label is a number, and its name is what the published manifests say: for a request of a published
version that version's, for anything else all versions' of the data set, withdrawn ones too (copies of them are restored
as well), where those that know the number must agree.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

from storage.errors import CorruptManifest, NotFound, OutOfScope, QuotaExceeded
from storage.manifest import read_manifest
from storage.objects import ObjectStore
from storage.policies import check_image
from storage.registry import Grant, Registry
from storage.versions import class_lists

ClassLists = Callable[[str], list[list[str]]]
"""Data set to the lists of class names that hold for it."""


def authorise_images(registry: Registry, user_id: int, dataset: str, version: str | None, images: int) -> Grant:
    """The grant under which up to so many images may be restored.

    Under a grant for some classes or samples, fewer than are asked for may be in the end: it need not have them all
    left beforehand. What is charged in the end is decided when it is charged.

    Raises:
        NotAuthorised: there is none.
    """
    try:
        return registry.authorise(user_id, dataset, version=version, images=images)
    except QuotaExceeded as error:
        grant = registry.authorise(user_id, dataset, version=version)
        if grant.left == 0 or (grant.classes is None and grant.samples is None):
            raise error from None
        return grant


def check_covered(grant: Grant, key: str, label: int | None, lists: ClassLists) -> None:
    """Whether a grant's scope covers one restored image.

    Args:
        grant: what was authorised.
        key: the sample's key; a grant for some samples serves requests of a published version only, whose keys are so.
        label: the one that was sealed with it.
        lists: where names of classes come from; asked only when the grant is for some classes.

    Raises:
        OutOfScope: it does not, or it can not be told.
    """
    name = None
    if grant.classes is not None and label is not None:
        names = {names[label] for names in _lists(lists, grant.dataset) if label < len(names)}
        if len(names) != 1:
            raise OutOfScope(
                f"The grant covers some classes only, and which class the label {label} of {grant.dataset} is can not "
                f"be told: {'its versions disagree' if names else 'no published version says so'}.",
                "Request a published version by its name, or ask the owner for a grant without that bound.",
            )
        name = names.pop()
    check_image(grant, key=key, class_name=name)


def _lists(lists: ClassLists, dataset: str) -> list[list[str]]:
    """Lists of names, or OutOfScope where it can not be told what some class is called."""
    try:
        return lists(dataset)
    except CorruptManifest as error:
        raise OutOfScope(f"The grant covers some classes only. {error.what}", error.cure) from error


def published_classes(
    public: Callable[[], ObjectStore], version: str | None, local: Callable[[str], Path]
) -> ClassLists:
    """Class names from the public bucket; where nothing ever was published, from the variant in `local(dataset)`.

    Args:
        public: opens the public bucket; called when it is first needed.
        version: the published version that the request names.
        local: the folder of a data set's protected variant on this machine.
    """

    @cache
    def lists(dataset: str) -> list[list[str]]:
        try:
            return class_lists(public(), dataset, version)
        except NotFound:
            try:
                return [read_manifest(local(dataset)).classes] if version is None else []
            except CorruptManifest:
                return []

    return lists
