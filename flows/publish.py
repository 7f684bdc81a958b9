"""Publishing: an effect, not a stage. The protected variant becomes an immutable version in the public bucket."""

from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flows import access
from flows.console import note, progress
from flows.engine import flow
from flows.services import object_store
from flows.stage import stage_main
from storage.audit import open_audit_log
from storage.datacard import terms_text
from storage.errors import CorruptManifest, NotFound
from storage.manifest import read_manifest
from storage.objects import open_store
from storage.publication import read_version
from storage.settings import settings
from tasks.publish import publish_variant


def publish(dataset: str) -> None:
    """Publish data/DATASET/protected and make it the latest version."""
    publish_folder(str(settings().data_path(dataset, "protected")), dataset)


def latest_published(dataset: str) -> str | None:
    """The latest version, when it is what lies in data/DATASET/protected; else None. Shards are not looked at."""
    try:
        version, manifest, terms = read_version(open_store(settings(), "public"), dataset)
    except (NotFound, CorruptManifest):
        return None
    same = manifest == read_manifest(settings().data_path(dataset, "protected")) and terms == terms_text(None)
    return version if same else None


@flow("publish")
def publish_folder(variant: str, dataset: str) -> dict[str, Any]:
    """Publish a protected variant; what lies in the bucket already is not sent again.

    Returns:
        what `storage.publication.PublishedVersion` says.

    Raises:
        NotProtected, PayloadMissing: an image is not protected, or nobody could restore it; nothing was sent.
        PublicationConflict, ObjectStoreError: see `storage.publication.publish`.
    """
    with object_store(), progress(f"Publishing {dataset}") as bars:
        store = open_store(settings(), "public")
        done = publish_variant(Path(variant), store, dataset, None, bars, workers=settings().workers)
        with access.registry() as book:
            access.ensure_dataset(book, dataset)
        with closing(open_audit_log(settings())) as log:
            log.record("local", "version.publish", dataset=dataset, subject=done.id, details={"images": done.samples})
        place = store.where(f"{dataset}/versions/{done.id}/")
    note(
        f"Published {dataset}@{done.id}: {done.samples:,} images at {place}; {done.shards_uploaded} shards sent, "
        f"{done.shards_shared} were there. {done.guarantee.value}"
    )
    return asdict(done) | {"guarantee": done.guarantee.value}


if __name__ == "__main__":
    stage_main(publish)
