"""`croissant.json`: a published version in the words of MLCommons Croissant 1.0, for the search engines and loaders.

It says what the manifest says (shards, sizes, digests, classes), what the terms are, and in Croissant's Responsible-AI
vocabulary what the images are of use for. Addresses are relative to the version's folder, `../../shards/SHA256.tar`, so
a mirror of the bucket needs no other file. They hold the digest because `mlcroissant` keeps what it unpacks by address
alone: with names like `train-000000.tar` it would mix up versions.

The record sets are `classes` (index and name), `images` (key and image) and `labels` (key and label): what belongs
together has the same key. One record set with both would need a join of two files by name, which `mlcroissant` 1.1
can not do for contents of an archive.

The same arguments give the same bytes. No key id, no time of making and nothing about the clean images is in it.
"""

import json
from dataclasses import dataclass
from datetime import date
from typing import Any

from storage.manifest import Manifest

SPECIFICATION = "http://mlcommons.org/croissant/1.0"
RESPONSIBLE_AI = "http://mlcommons.org/croissant/RAI/1.0"

USE = (
    "Looking at the images, keeping copies, citing them; restoring the originals, for those whom the publisher has "
    "authorised. Not training: a model trained on these images does badly on real ones."
)
LIMITS = (
    "The images are protected: each differs from its original by a perturbation made against training, and carries "
    "its original sealed. Accuracies measured on them say nothing about the originals. An image that is resized, "
    "cropped or encoded anew can not be restored."
)
MAKING = (
    "Each image was perturbed against a surrogate network, and what undoes that is encrypted and hidden in the image; "
    "the labels are the originals'."
)
MAINTENANCE = "A version never changes: its id is the digest of its manifest and terms. Corrections are new versions."


@dataclass(frozen=True)
class About:
    """What only the publisher knows of a data set.

    Attributes:
        contact: how to ask for access.
        creator: who made it, a person or an organisation.
        url: its page.
        published: its date, for citations. Croissant asks for creator, page and date; without them readers warn.
    """

    contact: str | None = None
    creator: str | None = None
    url: str | None = None
    published: date | None = None


def shard_address(sha256: str) -> str:
    """Where a shard lies as seen from a version's folder."""
    return f"../../shards/{sha256}.tar"


def croissant(version: str, manifest: Manifest, about: About) -> bytes:
    """The content of `croissant.json`: JSON-LD in UTF-8, a newline at the end.

    Args:
        version: the version's id.
        manifest: what it holds.
        about: what the publisher says of it.
    """
    described = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": [SPECIFICATION, RESPONSIBLE_AI],
        "name": manifest.dataset,
        "description": f"{manifest.samples:,} protected images of {len(manifest.classes)} classes, split "
        f"`{manifest.split}`. {LIMITS} {MAINTENANCE}",
        "version": f"1.0.0+{version}",
        "identifier": version,
        "license": {"@type": "sc:CreativeWork", "name": "Terms of use of this version", "url": "LICENSE"},
        "conditionsOfAccess": f"{_ACCESS}{access(about)}.",
        "citeAs": citation(version, manifest, about),
        "isLiveDataset": False,
        "keywords": ["images", "image classification", "WebDataset", "protected against training"],
        "rai:dataUseCases": USE,
        "rai:dataLimitations": LIMITS,
        "rai:dataManipulationProtocol": MAKING,
        "rai:dataReleaseMaintenancePlan": MAINTENANCE,
        **_publisher(about),
        "distribution": _distribution(manifest),
        "recordSet": _record_sets(manifest),
    }
    return json.dumps(described, indent=1, ensure_ascii=False).encode() + b"\n"


_ACCESS = "Protected images: anyone. Originals: "
_ASK = "write to whoever gave you the address of this data set"


def read_about(data: bytes) -> About:
    """What the publisher said of a version, of its `croissant.json`; nothing where that says nothing or is damaged."""
    try:
        said = json.loads(data)
        contact = said["conditionsOfAccess"].removeprefix(_ACCESS).removesuffix(".")
        day = said.get("datePublished")
        return About(
            contact=None if contact == _ASK else str(contact),
            creator=said["creator"]["name"] if "creator" in said else None,
            url=said.get("url"),
            published=None if day is None else date.fromisoformat(day),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return About()


def access(about: About) -> str:
    """How to ask for the originals, in words."""
    return about.contact or _ASK


def citation(version: str, manifest: Manifest, about: About) -> str:
    """BibTeX that names the version, so that what is cited can be fetched and checked."""
    fields = {
        "title": f"{manifest.dataset} (protected)",
        "author": about.creator and f"{{{about.creator}}}",
        "year": about.published and str(about.published.year),
        "url": about.url,
        "note": f"version {version}",
    }
    rows = ", ".join(f"{name} = {{{_plain(value)}}}" for name, value in fields.items() if value)
    return f"@misc{{{manifest.dataset}-{version}, {rows}}}"


def _plain(text: str) -> str:
    """On one line, and with every brace closed: the citation stays one entry."""
    line = " ".join(text.split())
    return line if line.count("{") == line.count("}") else line.translate({ord("{"): "(", ord("}"): ")"})


def _publisher(about: About) -> dict[str, Any]:
    known: dict[str, Any] = {}
    if about.creator:
        known["creator"] = {"@type": "sc:Organization", "name": about.creator}
    if about.url:
        known["url"] = about.url
    if about.published:
        known["datePublished"] = about.published.isoformat()
    return known


def _distribution(manifest: Manifest) -> list[dict[str, Any]]:
    """The shards, and the files in them: the images, and the labels where there are classes."""
    shards = [
        {
            "@type": "cr:FileObject",
            "@id": shard.name,
            "name": shard.name,
            "contentUrl": shard_address(shard.sha256),
            "contentSize": f"{shard.bytes} B",
            "encodingFormat": "application/x-tar",
            "sha256": shard.sha256,
        }
        for shard in manifest.shards
    ]
    inside = [{"@id": shard.name} for shard in manifest.shards]
    kinds = [("png-files", "*.png", "image/png"), ("cls-files", "*.cls", "text/plain")]
    files = [
        {
            "@type": "cr:FileSet",
            "@id": name,
            "name": name,
            "containedIn": inside,
            "encodingFormat": encoding,
            "includes": pattern,
        }
        for name, pattern, encoding in kinds[: 2 if manifest.classes else 1]
    ]
    return shards + files


def _record_sets(manifest: Manifest) -> list[dict[str, Any]]:
    images = _records(
        "images",
        _field("images/key", "sc:Text", "Names the image, and its label in `labels`.", _name_in("png")),
        _field("images/image", "sc:ImageObject", "The protected image, 8-bit RGB.", _content_of("png")),
    )
    if not manifest.classes:
        return [images]
    index = _field("classes/index", "sc:Integer", "The label.")
    name = _field("classes/name", "sc:Text", "What the class is called.")
    rows = [{"classes/index": i, "classes/name": title} for i, title in enumerate(manifest.classes)]
    classes = _records("classes", index, name, key="index") | {"dataType": "sc:Enumeration", "data": rows}
    labels = _records(
        "labels",
        _field("labels/key", "sc:Text", "The key of the image in `images`.", _name_in("cls")),
        _field("labels/label", "sc:Integer", "An index into `classes`.", _content_of("cls")),
    )
    return [classes, images, labels]


def _records(name: str, *fields: dict[str, Any], key: str = "key") -> dict[str, Any]:
    identity = {"@id": f"{name}/{key}"}
    return {"@type": "cr:RecordSet", "@id": name, "name": name, "key": identity, "field": list(fields)}


def _field(name: str, kind: str, text: str, source: dict[str, Any] | None = None) -> dict[str, Any]:
    described = {"@type": "cr:Field", "@id": name, "name": name.rpartition("/")[2], "description": text}
    return described | {"dataType": kind} | ({"source": source} if source else {})


def _name_in(ending: str) -> dict[str, Any]:
    return {
        "fileSet": {"@id": f"{ending}-files"},
        "extract": {"fileProperty": "filename"},
        "transform": {"regex": rf"^(.*)\.{ending}$"},
    }


def _content_of(ending: str) -> dict[str, Any]:
    return {"fileSet": {"@id": f"{ending}-files"}, "extract": {"fileProperty": "content"}}


# The context that the specification prescribes, word for word.
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "sc": "https://schema.org/",
    "conformsTo": "dct:conformsTo",
} | {
    name: f"cr:{name}"
    for name in (
        *("citeAs", "column", "equivalentProperty", "extract", "field", "fileObject", "fileProperty", "fileSet"),
        *("format", "includes", "isLiveDataset", "jsonPath", "key", "md5", "parentField", "path", "recordSet"),
        *("references", "regex", "repeated", "replace", "samplingRate", "separator", "source", "subField"),
        "transform",
    )
}
