"""The texts that travel with a published version: a data card (README.md) and licence terms (LICENSE).

The card begins with the fields that Hugging Face reads: `datasets.load_dataset(FOLDER)` opens a version by them, with
the classes' names. They name the shards as they lie in the bucket, `../../shards/SHA256.tar`, so they hold in every
mirror of it; `pull`, which gives shards their own names again, has `local_card` say so.
"""

import re

import yaml

from storage.croissant import About, access, citation, shard_address
from storage.manifest import Manifest

DEFAULT_TERMS = """\
Terms of use

All rights in the original images stay with their owners. The images published here are protected: they look like the
originals and are of no use for training. You may look at them, keep copies and cite them. Restoring the original
images, or training models that approximate them, needs a written grant from the publisher of this data set.
"""

_CARD = """\
---
{fields}---

# {dataset} (protected)

{samples:,} images of {classes} classes, split `{split}`, in {shards} WebDataset shards ({megabytes:.1f} MB).
Version `{version}`.

**These images are protected.** They look like the originals, but a model trained on them does badly on real images.
The original of each image can be restored from the protected image alone, by a service that holds the key, for those
whom the publisher has authorised.

## Use what is here

    DMCP_S3_ENDPOINT=https://... DMCP_S3_PUBLIC_BUCKET=... dmcp pull {dataset} OUT --version {version}

fetches all shards and checks each against `manifest.json`; the version's id is the digest of `manifest.json` and
`LICENSE`, and `dmcp pull` checks that too. Endpoint and bucket are where you read this (DMCP_S3_PREFIX: what stands
before `{dataset}/` there). (This card and `croissant.json` repeat what they say and are not checked.)
In the folder OUT, and in a folder DATASET/versions/VERSION of any mirror of the bucket:

```python
import datasets
data = datasets.load_dataset("OUT", split="{split}")          # png, cls, __key__
```

```python
import glob, webdataset
shards = sorted(glob.glob("OUT/*.tar"))
data = webdataset.WebDataset(shards, shardshuffle=False).decode("pil").to_tuple("png", "cls")
```

```python
import json, mlcroissant                                       # in a mirror: without mapping
names = [shard["name"] for shard in json.load(open("OUT/manifest.json"))["shards"]]
data = mlcroissant.Dataset("OUT/croissant.json", mapping={{name: f"OUT/{{name}}" for name in names}})
images = data.records("images")                                # and "labels", by the same key
```

`dmcp export OUT FOLDER --as imagefolder` writes what torchvision's `ImageFolder` reads. Each sample is `KEY.png` and
`KEY.cls`, the index into the list of classes below.

## Ask for the originals

1. Ask for access: {contact}. You are given a token, and the address of the service that restores.
2. `dmcp remote login ADDRESS` asks for the token.
3. `dmcp remote restore SOURCE OUT` hands in the protected images you need, all or some, in any order and under any
   name, and fetches the restored ones. Each one is checked; one that was altered since it was protected is refused, so
   keep the PNG files as they are (do not resize, crop or re-encode them).
{payloads}
The terms are in `LICENSE`.

## Cite

    {citation}

## Classes

{names}
"""

_PAYLOADS = """
What undoes the protection of some images is sealed beside their pixels, in the PNG file and again in `payloads.jsonl`:
a PNG that was saved anew, pixel for pixel, can still be restored.
"""

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
_MORE = ((10**8, "10M<n<100M"), (10**9, "100M<n<1B"))
_SHARD = re.compile(rb"\.\./\.\./shards/([0-9a-f]{64})\.tar")


def terms_text(terms: str | None) -> str:
    """Licence terms as they are published: the given ones, or the default ones, with plain line ends."""
    text = DEFAULT_TERMS if terms is None or not terms.strip() else terms
    return "\n".join(line.rstrip() for line in text.strip().splitlines()) + "\n"


def data_card(version: str, manifest: Manifest, about: About, payloads: bool = False) -> str:
    """The README of a published version, in Markdown. The same arguments give the same text.

    Args:
        version: its id.
        manifest: what it holds.
        about: what the publisher says of it.
        payloads: whether there is a payloads.jsonl.
    """
    return _CARD.format(
        fields=yaml.safe_dump(_fields(manifest), sort_keys=False, allow_unicode=True, width=1000),
        dataset=manifest.dataset,
        version=version,
        samples=manifest.samples,
        classes=len(manifest.classes),
        split=manifest.split,
        shards=len(manifest.shards),
        megabytes=sum(shard.bytes for shard in manifest.shards) / 1e6,
        contact=access(about),
        payloads=_PAYLOADS if payloads else "",
        citation=citation(version, manifest, about),
        names="\n".join(f"{index}. {name}" for index, name in enumerate(manifest.classes)) or "(no labels)",
    )


def local_card(card: bytes, manifest: Manifest) -> bytes:
    """The card for a folder in which the shards have their own names; a card that names none stays as it is."""
    names = {shard.sha256.encode(): shard.name.encode() for shard in manifest.shards}
    return _SHARD.sub(lambda found: names.get(found[1], found[0]), card)


def _fields(manifest: Manifest) -> dict[str, object]:
    """What Hugging Face reads: how to find it, which files, and what is in them."""
    shards = [shard_address(shard.sha256) for shard in manifest.shards]
    features: list[dict[str, object]] = [{"name": "png", "dtype": "image"}]
    if manifest.classes:
        names = {str(index): name for index, name in enumerate(manifest.classes)}
        features.append({"name": "cls", "dtype": {"class_label": {"names": names}}})
    features += [{"name": "__key__", "dtype": "string"}, {"name": "__url__", "dtype": "string"}]
    return {
        "pretty_name": f"{manifest.dataset} (protected)",
        "license": "other",
        "license_name": "see-LICENSE",
        "license_link": "LICENSE",
        "task_categories": ["image-classification"],
        "size_categories": [next((name for most, name in _SIZES + _MORE if manifest.samples < most), "1B<n<10B")],
        "tags": ["webdataset", "protected"],
        "configs": [{"config_name": "default", "data_files": [{"split": manifest.split, "path": shards}]}],
        "dataset_info": {"features": features},
    }
