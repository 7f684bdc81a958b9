"""Sample keys as people write them: which ones shards hold, and which image of the owner's own has which.

A key of `dmcp data get` has nine digits (`tasks.ledger.sample_key`); 17, 17.png and 000000017.png mean it too.
"""

import io
import tarfile
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from storage.errors import CorruptShard, NotFound
from storage.shards import BAD_TAR, forwards
from tasks.ledger import KEY_DIGITS, Ledger, sample_key
from tasks.protect_checks import Readable

_SHOWN = 10


@dataclass(frozen=True)
class OwnImage:
    """An image of the owner's: its key, its class, and its path below the folder that it was read from."""

    key: str
    class_name: str
    file: str


def plain_key(text: str) -> str:
    """The key that somebody means: without `.png`, and a number with all its digits."""
    key = text.removesuffix(".png")
    is_number = key.isascii() and key.isdigit() and len(key) < KEY_DIGITS
    return sample_key(int(key)) if is_number else key


def keys_in(shard: BinaryIO | Readable, name: str) -> list[str]:
    """The keys of a shard's images, in order; of a file the headers alone are read.

    Args:
        shard: a file, or what comes from a bucket.
        name: what to call it in a message.

    Raises:
        CorruptShard: it is no tar file, or is cut off.
    """
    mode = "r:" if isinstance(shard, io.IOBase) else "r|"
    try:
        with tarfile.open(fileobj=shard, mode=mode) as tar:  # type: ignore[call-overload]  # all it needs is read
            names = [member.name for member in forwards(tar)]
    except BAD_TAR as error:
        raise CorruptShard(
            f"The shard {name} is no tar file, or cut off ({error}).", "Fetch or build the variant again."
        ) from error
    return [member.removesuffix(".png") for member in names if member.endswith(".png")]


def find_keys(given: Sequence[str], shards: Iterable[Sequence[str]]) -> dict[str, str | None]:
    """For each text the key that it means, as it stands or as `plain_key`; None: no shard holds it.

    Args:
        given: keys as people write them.
        shards: the keys of one shard after the other; no more are asked for than it takes.
    """
    found: dict[str, str | None] = dict.fromkeys(given)
    left = list(found)
    for keys in shards:
        held = set(keys)
        for text in left:
            found[text] = next((key for key in (text.removesuffix(".png"), plain_key(text)) if key in held), None)
        left = [text for text in left if found[text] is None]
        if not left:
            break
    return found


def own_images(ledger: Ledger, split: str = "train") -> list[OwnImage]:
    """The images of a split, in the order of its shards; nothing of a source that never grows."""
    shards = ledger.splits[split].shards if split in ledger.splits else []
    images = (image for shard in shards for image in shard.images)
    return [OwnImage(sample_key(key), name.split("/", 1)[0], name) for key, name in images]


def images_named(ledger: Ledger, files: Sequence[str]) -> list[OwnImage]:
    """The training images of these file names, each written in full, from the class folder on, or its last part alone.

    Raises:
        NotFound: one is none of theirs.
    """
    images = own_images(ledger)
    matches = [[image for image in images if _is_called(image.file, file)] for file in files]
    missing = [file for file, match in zip(files, matches, strict=True) if not match]
    if missing:
        tests = {image.file for image in own_images(ledger, "test")}
        kept = any(_is_called(name, file) for name in tests for file in missing)
        more = f" and {len(missing) - _SHOWN} more" if missing[_SHOWN:] else ""
        raise NotFound(
            f"No image to be published is called {', '.join(missing[:_SHOWN])}{more}.",
            "It is one of the test split, which is never published."
            if kept
            else "Name files as they lie below the folder of class folders: CLASS/NAME.jpg.",
        )
    return list(dict.fromkeys(image for match in matches for image in match))


def _is_called(name: str, text: str) -> bool:
    text = unicodedata.normalize("NFC", text)
    return f"/{name}".endswith(f"/{text}") or text.endswith(f"/{name}")
