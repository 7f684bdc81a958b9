"""What is looked at before a variant is protected, because it would be found out hours later, or never.

Torch is imported by what looks at networks alone.

Protecting replaces the target as a whole, so of what lies there only an earlier protected variant of the same data set
and split is given up.
"""

import json
import tarfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from storage.errors import (
    CorruptManifest,
    CorruptShard,
    InputError,
    NotProtected,
    ParameterError,
    UnsupportedFormat,
    UsageError,
)
from storage.manifest import MANIFEST_NAME, Manifest, read_manifest
from storage.shards import BAD_TAR, forwards
from tasks.growth import basis_of
from tasks.restore import read_header

if TYPE_CHECKING:
    from tasks.models_io import ModelInfo

TEST = "test"
"""The split that models are tested on: it stays as it is."""


class Readable(Protocol):
    """What shards are read from: a file, or what comes from a bucket."""

    def read(self, size: int, /) -> bytes:
        """The next bytes, fewer than asked for at the end only."""


# --- where it goes ---------------------------------------------------------------------------------------------------


def check_target(source: Path, target: Path, manifest: Manifest) -> None:
    """See that making `target` destroys nothing but an earlier protected variant.

    Args:
        source: folder of the clean variant.
        target: folder that is to be made or replaced; links are followed.
        manifest: the clean variant's.

    Raises:
        UsageError: `target` is the source, holds it or lies in it; or it holds something else than a protected variant
            of this data set and split.
    """
    # As what the link leads to, and as what stands in its own place: the latter is what is replaced.
    for place in (target.resolve(), target.parent.resolve() / target.name):
        if _lies_in(place, source) or _lies_in(source.resolve(), place):
            raise UsageError(
                f"{target} is {source}, or one of them lies in the other: the clean images would be destroyed.",
                "Name a folder of its own for the protected variant.",
            )
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target} is a file, not a folder.", "Name another folder.")
    if target.is_dir() and any(target.iterdir()):
        why = _not_ours(target, manifest)
        if why:
            raise UsageError(
                f"{target} holds {why}; only an earlier protected variant of {manifest.dataset}, split "
                f"{manifest.split}, is replaced.",
                "Name another folder, or remove this one first.",
            )


def _lies_in(inner: Path, outer: Path) -> bool:
    """Whether a folder, by its absolute path, is the other or lies in it, whatever that is called."""
    return outer.exists() and any(place.exists() and place.samefile(outer) for place in (inner, *inner.parents))


def _not_ours(target: Path, manifest: Manifest) -> str:
    """What a folder holds that is no earlier protected variant; empty when it is one."""
    if not (target / MANIFEST_NAME).is_file():
        return f"something else (there is no {MANIFEST_NAME} in it)"
    try:
        held = read_manifest(target)
    except CorruptManifest:
        return f"something else (its {MANIFEST_NAME} can not be read)"
    if (held.dataset, held.split) != (manifest.dataset, manifest.split):
        return f"the data set {held.dataset}, split {held.split}"
    for shard in held.shards:
        try:
            if _begins_clean(target / shard.name):
                return f"images that are not protected ({shard.name})"
        except InputError as error:
            return f"what can not be told from clean images ({error.what.rstrip('.')})"
    return ""


def _begins_clean(shard: Path) -> bool:
    """Whether the first image of a shard is not protected; not so where there is no shard, or no image in it."""
    if not shard.exists():
        return False
    with shard.open("rb") as file:
        png = first_image(file, shard.name)
    return png is not None and not is_protected(png, shard.name)


# --- what is protected -----------------------------------------------------------------------------------------------


def check_split(manifest: Manifest, where: str) -> None:
    """See that it is not the test split.

    Raises:
        UsageError: it is; models trained on protected images are tested on clean ones, so nothing would be measured.
    """
    if manifest.split == TEST:
        raise UsageError(
            f"{where} is the test split of {manifest.dataset}, which is never protected: models are tested on it.",
            "Name the variant that is trained on (clean, beside it).",
        )


def check_clean(manifest: Manifest, where: str, open_shard: Callable[[str], AbstractContextManager[Readable]]) -> None:
    """See that a variant is not protected already, by the first image of each shard.

    Args:
        where: what to call the variant in a message.
        open_shard: gives a shard by its name.

    Raises:
        UsageError: an image carries a protection header: protected once more, it would never come back clean.
        CorruptShard, UnsupportedImage: a shard or its first image can not be read.
    """
    for shard in manifest.shards:
        with open_shard(shard.name) as file:
            png = first_image(file, shard.name)
        if png is not None and is_protected(png, f"the first image of {shard.name}"):
            raise UsageError(
                f"{where} is protected already: the first image of {shard.name} carries a protection header.",
                "Name the clean variant; what lies there is published as it is: dmcp publish",
            )


def first_image(shard: Readable, name: str) -> bytes | None:
    """The PNG of the first image of a shard; None where it holds none. No more is read than that takes.

    Args:
        shard: read from its beginning, never backwards.
        name: what to call it in a message.

    Raises:
        CorruptShard: it is no tar file, or is cut off.
    """
    try:
        with tarfile.open(fileobj=shard, mode="r|") as tar:  # type: ignore[call-overload]  # all it needs is read
            for member in forwards(tar):
                content = tar.extractfile(member) if member.isreg() and not member.issparse() else None
                if content is not None and member.name.endswith(".png"):
                    return content.read()
    except BAD_TAR as error:
        raise CorruptShard(
            f"The shard {name} is no tar file, or cut off ({error}).", "Build the variant again."
        ) from error
    return None


def is_protected(png: bytes, name: str) -> bool:
    """Whether an image carries a protection header, be it one that this release does not know.

    Raises:
        UnsupportedImage: it is no PNG that could.
    """
    try:
        read_header(png, name)
    except NotProtected:
        return False
    except UnsupportedFormat:
        return True
    return True


# --- the surrogate ---------------------------------------------------------------------------------------------------


def check_network(section: Any, classes: int, layer: str) -> None:
    """See that a network that is still to be trained can be the surrogate.

    Args:
        section: section `surrogate` of params.yaml, a mapping or an object.
        classes: how many the data set has.
        layer: what is pushed: see `tasks.learning.features.Features`.

    Raises:
        ParameterError: a value can not be used, or the network has no such layer.
    """
    from tasks.learning.features import Features
    from tasks.learning.models import Normalized, build_model
    from tasks.training_job import NetworkParams

    wanted = NetworkParams.read(section)
    network = build_model(wanted.architecture, classes, wanted.stem)
    Features(Normalized(network, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), layer, "fp32")


def check_surrogate(path: Path, manifest: Manifest, layer: str) -> "ModelInfo":
    """See that a trained network can be the surrogate of a variant; what it is.

    Args:
        path: its model.pt.
        layer: as in `check_network`.

    Raises:
        DatasetError: the file is missing, damaged, or no model of this project.
        UsageError: it was trained for other classes.
        ParameterError: the network has no such layer, or too few classes for its logits.
    """
    from tasks.learning.features import LOGITS, Features
    from tasks.models_io import load_model

    loaded = load_model(path)
    known = loaded.info.classes
    if known != manifest.classes[: len(known)]:
        raise UsageError(
            f"{path} was trained for other classes ({_some(known)}) than {manifest.dataset} has "
            f"({_some(manifest.classes)}).",
            "Name a surrogate of this data set, or leave --surrogate out: then one is trained.",
        )
    # In a data set that grew, new classes come last and take the targets of old ones: where the record says so.
    if layer == LOGITS and basis_of(manifest, path).classes > len(known):
        raise ParameterError(
            f"{path} knows the first {len(known)} of the {len(manifest.classes)} classes of {manifest.dataset}, and no "
            "record beside it (trained_on.json) says that the data set grew since.",
            "Name a surrogate of all classes, or leave --surrogate out: then one is trained.",
        )
    Features(loaded.model, layer, "fp32")
    return loaded.info


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4:,} more" if names[4:] else "")


def doubts(surrogate: Path, architecture: str, classes: int) -> list[str]:
    """Why little is to be expected of a surrogate, a sentence each; accuracies are those that lie beside it.

    Args:
        surrogate: its model.pt.
        architecture: as in params.yaml.
        classes: how many it tells apart.
    """
    found = []
    if architecture == "linear":
        found.append("A linear surrogate protects nothing (docs/decisions/0006-amplitude.md).")
    try:
        metrics = json.loads(surrogate.with_name("metrics.json").read_bytes())
        accuracy, images = float(metrics["test_accuracy"]), int(metrics["n_test"])
    except (OSError, ValueError, KeyError, TypeError):
        return found  # not known: nothing is said
    if is_guessing(accuracy, images, classes):
        found.append(
            f"The surrogate gets {accuracy:.1%} of {images:,} images right, which guessing among {classes} classes "
            "may give as well: expect no protection. Train it for longer, or on more images."
        )
    return found


def is_guessing(accuracy: float, images: int, classes: int) -> bool:
    """Whether guessing gives this share of right answers, or more, at least once in twenty times."""
    chance = 1 / max(1, classes)
    return accuracy <= chance + 1.645 * sqrt(chance * (1 - chance) / max(1, images))
