"""The texts that travel with a published version: a data card (README.md) and licence terms (LICENSE)."""

from storage.manifest import Manifest

DEFAULT_TERMS = """\
Terms of use

All rights in the original images stay with their owners. The images published here are protected: they look like the
originals and are of no use for training. You may look at them, keep copies and cite them. Restoring the original
images, or training models that approximate them, needs a written grant from the publisher of this data set.
"""

_CARD = """\
---
license: other
license_name: see-LICENSE
task_categories:
- image-classification
---

# {dataset} (protected)

{samples:,} images of {classes} classes, split `{split}`, in {shards} WebDataset shards ({megabytes:.1f} MB).
Version `{version}`.

**These images are protected.** They look like the originals, but a model trained on them does badly on real images.
The original of each image can be restored from the protected image alone, by a service that holds the key, for those
whom the publisher has authorised.

## Use what is here

    dmcp pull {dataset} OUT --version {version}

fetches all shards and checks each against `manifest.json`. They open with `webdataset` and with Hugging Face
`load_dataset("webdataset", ...)`; each sample is `KEY.png` and `KEY.cls`, the index into the list of classes below.

## Ask for the originals

1. Ask for access: {contact}.
2. With the token you are given, hand in the protected images you need, all or some, in any order and under any name:
   `dmcp request SOURCE`.
3. `dmcp restore REQUEST OUT` returns the restored images. Each one is checked; an image that was altered since it was
   protected is refused, so keep the PNG files as they are (do not resize, crop or re-encode them).
{payloads}
The terms are in `LICENSE`.

## Classes

{names}
"""

_PAYLOADS = """
What undoes the protection of some images is sealed beside their pixels, in the PNG file and again in `payloads.jsonl`:
a PNG that was saved anew, pixel for pixel, can still be restored.
"""


def terms_text(terms: str | None) -> str:
    """Licence terms as they are published: the given ones, or the default ones, with plain line ends."""
    text = DEFAULT_TERMS if terms is None or not terms.strip() else terms
    return "\n".join(line.rstrip() for line in text.strip().splitlines()) + "\n"


def data_card(version: str, manifest: Manifest, contact: str | None, payloads: bool = False) -> str:
    """The README of a published version, in Markdown. The same version gives the same text.

    Args:
        version: its id.
        manifest: what it holds.
        contact: how to ask for access; None: the card says so in general words.
        payloads: whether there is a payloads.jsonl.
    """
    return _CARD.format(
        dataset=manifest.dataset,
        version=version,
        samples=manifest.samples,
        classes=len(manifest.classes),
        split=manifest.split,
        shards=len(manifest.shards),
        megabytes=sum(shard.bytes for shard in manifest.shards) / 1e6,
        contact=contact or "write to whoever gave you the address of this data set",
        payloads=_PAYLOADS if payloads else "",
        names="\n".join(f"{index}. {name}" for index, name in enumerate(manifest.classes)) or "(no labels)",
    )
