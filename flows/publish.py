"""Publishing: an effect, not a stage. The protected variant becomes an immutable version in the public bucket."""

from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from flows import access
from flows.console import note, progress
from flows.engine import flow
from flows.services import object_store
from flows.stage import stage_main
from storage.audit import open_audit_log
from storage.croissant import About
from storage.datacard import terms_text
from storage.errors import CorruptManifest, NotFound, PublicationConflict
from storage.files import Progress
from storage.manifest import Manifest, read_manifest
from storage.objects import ObjectStore, open_store
from storage.overlaps import Withdrawn, images_of, overlapping, refusal, remove_leftovers, withdraw
from storage.publication import PublishedVersion, read_version
from storage.settings import settings
from storage.versions import missing_shards, said_before, version_id
from tasks.publish import publish_variant

T = TypeVar("T")
Earlier = Literal["refuse", "withdraw", "keep"]
"""What becomes of published versions that show the same images in another way (storage/overlaps.py)."""


def publish(dataset: str) -> None:
    """Publish data/DATASET/protected and make it the latest version."""
    publish_folder(str(settings().data_path(dataset, "protected")), dataset)


def latest_published(dataset: str) -> str | None:
    """The latest version, when it is what lies in data/DATASET/protected and nothing is left to do for it; else None.

    That is to put it on record, to withdraw what must not be public beside it, and to send shards that are gone.
    """
    store, mine = open_store(settings(), "public"), read_manifest(settings().data_path(dataset, "protected"))
    try:
        version, manifest, _ = read_version(store, dataset)
    except (NotFound, CorruptManifest):
        return None
    if manifest != mine or missing_shards(store, dataset, mine) or not _is_on_record(dataset, version):
        return None
    return None if policy(None) == "withdraw" and overlapping(store, dataset, mine) else version


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
        terms: licence terms; None: those of the latest version, or the default ones.
        about: for the data card and croissant.json; what it leaves out is taken from the latest version.
        earlier: what becomes of versions that show the same images otherwise; None: what the settings say.

    Returns:
        the version, and those that were withdrawn.

    Raises:
        VersionsOverlap: there are such versions, and they are to be refused; nothing was sent.
        CorruptManifest: a version in the bucket is damaged, so that nothing can be told; or the variant is.
        As `tasks.publish.publish_variant`.
    """
    manifest = read_manifest(variant)
    others = check_overlap(store, dataset, manifest, earlier)
    mine = [shard.sha256 for shard in manifest.shards]
    terms, about = carried_over(store, dataset, terms, about)
    workers = min(8, settings().workers * 2)
    return and_then(
        lambda: publish_variant(
            variant,
            store,
            dataset,
            terms,
            progress,
            about=about,
            before_sending=lambda: clear_leftovers(store, dataset, mine, earlier),
            workers=workers,
        ),
        store,
        manifest,
        terms,
        others,
    )


def and_then(
    publishing: Callable[[], T], store: ObjectStore, manifest: Manifest, terms: str | None, others: list[str]
) -> tuple[T, list[Withdrawn]]:
    """Publish, and what that entails: the version goes on record, the others are withdrawn.

    That is done as well where the version is complete and another one is the latest. Raises as `publish_once`.
    """
    dataset, version = manifest.dataset, version_id(manifest, terms_text(terms))
    conflict: PublicationConflict | None = None
    try:
        done = publishing()
    except PublicationConflict as error:
        conflict = error
        try:
            read_version(store, dataset, version)
        except (NotFound, CorruptManifest):
            raise error from None
    put_on_record(dataset, "version.publish", version, manifest.samples)
    gone = [take_back(store, dataset, other) for other in others]
    if conflict is not None:
        raise conflict
    return done, gone


def carried_over(store: ObjectStore, dataset: str, terms: str | None, about: About | None) -> tuple[str | None, About]:
    """Terms and what is said of a data set, completed by what the latest version says.

    So a data set that grows keeps both when the pipeline publishes it.

    Raises:
        CorruptManifest: the latest version is damaged; not asked where all is given.
    """
    said = {name: value for name, value in vars(about or About()).items() if value is not None}
    if terms is not None and len(said) == len(fields(About)):
        return terms, About(**said)
    try:
        old_terms, old_about = said_before(store, dataset)
    except CorruptManifest as error:
        given = "or say --terms, --contact, --creator, --url and --date here"
        raise CorruptManifest(error.what, f"Withdraw it (dmcp withdraw {dataset}@VERSION), {given}.") from error
    return old_terms if terms is None else terms, replace(old_about, **said)


def clear_leftovers(store: ObjectStore, dataset: str, mine: Iterable[str], earlier: Earlier | None = None) -> None:
    """Remove what a publication that was cut off left in the bucket: it may show the same images otherwise."""
    if policy(earlier) != "keep" and (removed := remove_leftovers(store, dataset, mine)):
        note(f"Removed {removed} shards of {dataset} that an earlier publication left behind.")


def check_overlap(store: ObjectStore, dataset: str, manifest: Manifest, earlier: Earlier | None = None) -> list[str]:
    """Ids of the versions that are to be withdrawn once this variant is published.

    Raises:
        VersionsOverlap: as `publish_once`.
    """
    what = policy(earlier)
    found = overlapping(store, dataset, manifest) if what != "keep" else []
    if found and what == "refuse":
        raise refusal(f"{dataset}@{found[0]}")
    return found


def policy(asked: Earlier | None = None) -> Earlier:
    """What becomes of versions that show the same images otherwise, as it was asked for or the settings say."""
    # The embedded store serves nobody but this machine, and is for trying things out.
    return asked or settings().earlier_versions or ("withdraw" if settings().s3_endpoint is None else "refuse")


def take_back(store: ObjectStore, dataset: str, version: str) -> Withdrawn:
    """Put on record that a version is withdrawn, and withdraw it. Raises as `storage.overlaps.withdraw`.

    In this order: a withdrawal that was cut off and is not on record looks, at night, like a publication that was lost.
    """
    put_on_record(dataset, "version.withdraw", version, images_of(store, dataset, version))
    return withdraw(store, dataset, version)


def put_on_record(dataset: str, action: str, version: str, images: int) -> None:
    """The data set in the registry, and what was done with a version in the audit log."""
    with access.registry() as book:
        access.ensure_dataset(book, dataset, actor="local")
    with closing(open_audit_log(settings())) as log:
        log.record("local", action, dataset=dataset, subject=version, details={"images": images})


def was_withdrawn(dataset: str) -> bool:
    """Whether the version that was published last was withdrawn since."""
    with closing(open_audit_log(settings())) as log:
        published = log.entries(dataset=dataset, action="version.publish", newest=True, limit=1)
        gone = log.entries(dataset=dataset, action="version.withdraw", newest=True)
    return any(w.subject == p.subject and w.seq > p.seq for p in published for w in gone)


def _is_on_record(dataset: str, version: str) -> bool:
    with closing(open_audit_log(settings())) as log:
        entries = log.entries(dataset=dataset, action="version.publish", newest=True)
    return any(entry.subject == version for entry in entries)


if __name__ == "__main__":
    stage_main(publish)
