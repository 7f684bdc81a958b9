"""Publishing: an effect, not a stage. The protected variant becomes an immutable version in the public bucket."""

from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from flows import access
from flows.console import note, progress
from flows.engine import flow
from flows.services import object_store
from flows.stage import stage_main
from storage.audit import open_audit_log
from storage.croissant import About
from storage.datacard import terms_text
from storage.errors import CorruptManifest, NotFound, VersionsOverlap
from storage.files import Progress
from storage.manifest import Manifest, read_manifest
from storage.objects import ObjectStore, open_store
from storage.overlaps import Withdrawn, overlapping, withdraw
from storage.publication import PublishedVersion, read_version
from storage.settings import settings
from tasks.publish import publish_variant

Earlier = Literal["refuse", "withdraw", "keep"]
"""What becomes of published versions that show the same images in another way (storage/overlaps.py)."""


def publish(dataset: str) -> None:
    """Publish data/DATASET/protected and make it the latest version."""
    publish_folder(str(settings().data_path(dataset, "protected")), dataset)


def latest_published(dataset: str) -> str | None:
    """The latest version, when it is what lies in data/DATASET/protected and nothing is left to withdraw; else None.

    Shards are not looked at.
    """
    store, mine = open_store(settings(), "public"), read_manifest(settings().data_path(dataset, "protected"))
    try:
        version, manifest, terms = read_version(store, dataset)
    except (NotFound, CorruptManifest):
        return None
    if manifest != mine or terms != terms_text(None):
        return None
    return None if _earlier(None) == "withdraw" and overlapping(store, dataset, mine) else version


@flow("publish")
def publish_folder(variant: str, dataset: str) -> dict[str, Any]:
    """Publish a protected variant; what lies in the bucket already is not sent again.

    Returns:
        what `storage.publication.PublishedVersion` says.

    Raises:
        NotProtected, PayloadMissing: an image is not protected, or nobody could restore it; nothing was sent.
        VersionsOverlap: see `publish_once`.
        PublicationConflict, ObjectStoreError: see `storage.publication.publish`.
    """
    with object_store(), progress(f"Publishing {dataset}") as bars:
        store = open_store(settings(), "public")
        done, gone = publish_once(Path(variant), store, dataset, progress=bars)
        place = store.where(f"{dataset}/versions/{done.id}/")
    note(
        f"Published {dataset}@{done.id}: {done.samples:,} images at {place}; {done.shards_uploaded} shards sent, "
        f"{done.shards_shared} were there. {done.guarantee.value}"
    )
    for version in gone:
        note(f"Withdrew {dataset}@{version.id}: {WHY}")
    return asdict(done) | {"guarantee": done.guarantee.value}


WHY = "it showed the same images otherwise, and both together would give them away."


def publish_once(
    variant: Path,
    store: ObjectStore,
    dataset: str,
    terms: str | None = None,
    *,
    progress: Progress | None = None,
    about: About | None = None,
    earlier: Earlier | None = None,
) -> tuple[PublishedVersion, list[Withdrawn]]:
    """Publish a variant, put it on record, and withdraw what must not be public beside it.

    Args:
        earlier: what becomes of versions that show the same images otherwise; None: what the settings say.

    Returns:
        the version, and those that were withdrawn.

    Raises:
        VersionsOverlap: there are such versions, and they are to be refused; nothing was sent.
        CorruptManifest: a version in the bucket is damaged, so that nothing can be told; or the variant is.
        As `tasks.publish.publish_variant`.
    """
    others = check_overlap(store, dataset, read_manifest(variant), earlier)
    done = publish_variant(
        variant, store, dataset, terms, progress, about=about, workers=min(8, settings().workers * 2)
    )
    put_on_record(dataset, "version.publish", done.id, done.samples)
    return done, [take_back(store, dataset, version) for version in others]


def check_overlap(store: ObjectStore, dataset: str, manifest: Manifest, earlier: Earlier | None = None) -> list[str]:
    """Ids of the versions that are to be withdrawn once this variant is published.

    Raises:
        VersionsOverlap: as `publish_once`.
    """
    what = _earlier(earlier)
    found = overlapping(store, dataset, manifest) if what != "keep" else []
    if found and what == "refuse":
        raise VersionsOverlap(
            f"{dataset}@{found[0]} is public and shows the same images otherwise. Who has an image of both versions "
            "can compute most of the clean one, without any key.",
            "Withdraw the earlier version by publishing with --earlier withdraw (or `dmcp withdraw`), which does not "
            "reach copies that were made; where both may be public all the same: --earlier keep. Without the command: "
            "DMCP_EARLIER_VERSIONS.",
        )
    return found


def _earlier(asked: Earlier | None) -> Earlier:
    # The embedded store serves nobody but this machine, and is for trying things out.
    return asked or settings().earlier_versions or ("withdraw" if settings().s3_endpoint is None else "refuse")


def take_back(store: ObjectStore, dataset: str, version: str) -> Withdrawn:
    """Withdraw a version and put that on record. Raises as `storage.overlaps.withdraw`."""
    gone = withdraw(store, dataset, version)
    put_on_record(dataset, "version.withdraw", gone.id, gone.images)
    return gone


def put_on_record(dataset: str, action: str, version: str, images: int) -> None:
    """The data set in the registry, and what was done with a version in the audit log."""
    with access.registry() as book:
        access.ensure_dataset(book, dataset, actor="local")
    with closing(open_audit_log(settings())) as log:
        log.record("local", action, dataset=dataset, subject=version, details={"images": images})


if __name__ == "__main__":
    stage_main(publish)
