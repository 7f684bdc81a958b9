"""`dmcp publish` and `dmcp pull`: the protected version to the public bucket, and from there to anyone."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from flows import console
from flows.commands import common


def register(root: typer.Typer) -> None:
    """Add the commands to the command tree."""
    root.command(rich_help_panel="Owner")(publish)
    root.command(rich_help_panel="Anyone")(pull)


def publish(
    protected: Annotated[Path, typer.Argument(metavar="PROTECTED", help="A protected variant.")],
    terms: Annotated[Path | None, typer.Option(metavar="FILE", help="Licence terms, a text file.")] = None,
    contact: Annotated[str | None, typer.Option(help="How to ask for access, for the data card.")] = None,
    creator: Annotated[str | None, typer.Option(help="Who made it, for citations.")] = None,
    url: Annotated[str | None, typer.Option(help="The data set's page, for citations and search engines.")] = None,
    date: Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Its date, for citations.")] = None,
    dataset: Annotated[str | None, typer.Option(help="The data set's name; default: the manifest's.")] = None,
) -> None:
    """Publish a protected variant as an immutable version and make it the latest.

    Every image is checked first: what is not protected is never sent. Publishing the same again changes nothing.
    """
    from flows import access
    from storage.audit import open_audit_log
    from storage.croissant import About
    from storage.settings import settings
    from tasks.publish import publish_variant

    name = common.dataset_of(protected, dataset)
    text = terms.read_text(encoding="utf-8") if terms else None
    about = About(contact, creator, url, date.date() if date else None)
    with common.store_of("public") as store, console.progress(f"Publishing {name}") as progress:
        done = publish_variant(
            protected, store, name, text, progress, about=about, workers=min(8, settings().workers * 2)
        )
        with access.registry() as book:
            access.ensure_dataset(book, name, actor="local")
        with open_audit_log(settings()) as log:
            log.record("local", "version.publish", dataset=name, subject=done.id, details={"images": done.samples})
        place = store.where(f"{name}/versions/{done.id}/")
    console.finished(
        f"Published {done.dataset}@{done.id}: {done.samples:,} images, {console.size(done.bytes)}; "
        f"{done.shards_uploaded} shards sent, {done.shards_shared} were there.",
        [("version", place), ("the server", done.guarantee.explanation)],
        [f"anyone: dmcp pull {done.dataset} OUT", f"dmcp access grant USER {done.dataset}"],
    )


def pull(
    dataset: Annotated[str, typer.Argument(metavar="DATASET[@VERSION]", help="A published data set.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder, or that of an earlier pull.")],
    version: Annotated[str, typer.Option(help="A version's id; the same as DATASET@VERSION.")] = "latest",
) -> None:
    """Fetch a published data set: the protected images, each shard checked against the manifest."""
    from storage.pull import pull as fetch

    name, at, wanted = dataset.partition("@")
    with common.store_of("public") as store, console.progress(f"Fetching {dataset}") as progress:
        done = fetch(store, name, out, wanted if at else version, progress)
    console.finished(
        f"Fetched {done.dataset}@{done.id}: {done.samples:,} protected images, {console.size(done.bytes)}, all as the "
        f"manifest says; {done.shards_downloaded} shards came, {done.shards_kept} were there.",
        [("variant", console.shown(out)), ("terms", console.shown(out / "LICENSE"))],
        [
            f"with a token: dmcp request {console.shown(out)}",
            f"dmcp export {console.shown(out)} FOLDER --as imagefolder",
        ],
    )
