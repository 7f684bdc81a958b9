"""What is looked at before a variant is protected, because it would be found out hours later, or never.

Protecting replaces the target as a whole, so of what lies there only an earlier protected variant of the same data set
and split is given up.
"""

import tarfile
from pathlib import Path
from typing import BinaryIO

from storage.errors import CorruptManifest, CorruptShard, InputError, NotProtected, UnsupportedFormat, UsageError
from storage.manifest import MANIFEST_NAME, Manifest, read_manifest
from storage.shards import BAD_TAR, forwards
from tasks.restore import read_header


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


def first_image(shard: BinaryIO, name: str) -> bytes | None:
    """The PNG of the first image of a shard; None where it holds none. No more is read than that takes.

    Args:
        shard: read from its beginning, never backwards.
        name: what to call it in a message.

    Raises:
        CorruptShard: it is no tar file, or is cut off.
    """
    try:
        with tarfile.open(fileobj=shard, mode="r|") as tar:
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
