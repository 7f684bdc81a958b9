"""Publishing: an effect, not a stage. The protected variant becomes an immutable version in the public bucket."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from flows.console import note, progress
from flows.engine import flow
from flows.services import object_store
from flows.stage import stage_main
from storage.objects import open_store
from storage.settings import settings
from tasks.publish import publish_variant


def publish(dataset: str) -> None:
    """Publish data/DATASET/protected and make it the latest version."""
    publish_folder(str(settings().data_path(dataset, "protected")), dataset)


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
        place = store.where(f"{dataset}/versions/{done.id}/")
    note(
        f"Published {dataset}@{done.id}: {done.samples:,} images at {place}; {done.shards_uploaded} shards sent, "
        f"{done.shards_shared} were there. {done.guarantee.value}"
    )
    return asdict(done) | {"guarantee": done.guarantee.value}


if __name__ == "__main__":
    stage_main(publish)
