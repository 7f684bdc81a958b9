"""`dmcp publish`, `withdraw` and `pull`: the protected version to the public bucket, and from there to anyone."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

import typer

from flows import console
from flows.commands import common


def register(root: typer.Typer) -> None:
    """Add the commands to the command tree."""
    root.command(rich_help_panel="Owner")(publish)
    root.command(rich_help_panel="Owner")(withdraw)
    root.command(rich_help_panel="Anyone")(pull)


def publish(
    protected: Annotated[Path, typer.Argument(metavar="PROTECTED", help="A protected variant.")],
    terms: Annotated[Path | None, typer.Option(metavar="FILE", help="Licence terms, a text file.")] = None,
    contact: Annotated[str | None, typer.Option(help="How to ask for access, for the data card.")] = None,
    creator: Annotated[str | None, typer.Option(help="Who made it, for citations.")] = None,
    url: Annotated[str | None, typer.Option(help="The data set's page, for citations and search engines.")] = None,
    date: Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Its date, for citations.")] = None,
    dataset: Annotated[str | None, typer.Option(help="The data set's name; default: the manifest's.")] = None,
    earlier: Annotated[
        Literal["refuse", "withdraw", "keep"] | None,
        typer.Option(
            help="What becomes of public versions that show the same images otherwise: both together would give them "
            "away. Default: DMCP_EARLIER_VERSIONS; else refuse, and in the embedded store withdraw."
        ),
    ] = None,
) -> None:
    """Publish a protected variant as an immutable version and make it the latest.

    Every image is checked first: what is not protected is never sent. Publishing the same again changes nothing. Terms
    and what else is said of the data set stay those of the latest version until others are given.
    """
    from flows.publish import WHY, publish_once
    from storage.croissant import About

    name = common.dataset_of(protected, dataset)
    text = terms.read_text(encoding="utf-8") if terms else None
    about = About(contact, creator, url, date.date() if date else None)
    with common.store_of("public") as store, console.progress(f"Publishing {name}") as progress:
        done, gone = publish_once(protected, store, name, text, progress=progress, about=about, earlier=earlier)
        place = store.where(f"{name}/versions/{done.id}/")
    console.finished(
        f"Published {done.dataset}@{done.id}: {done.samples:,} images, {console.size(done.bytes)}; "
        f"{done.shards_uploaded} shards sent, {done.shards_shared} were there.",
        [
            ("version", place),
            ("the server", done.guarantee.explanation),
            *((f"withdrew {version.id}", WHY) for version in gone),
        ],
        [f"anyone: dmcp pull {done.dataset} OUT", f"dmcp access grant USER {done.dataset}"],
    )


def withdraw(
    dataset: Annotated[str, typer.Argument(metavar="DATASET@VERSION", help="A published version.")],
) -> None:
    """Take a version out of the public bucket. Copies that were made remain, and are restored as before."""
    from flows.publish import take_back
    from storage.errors import UsageError

    name, at, version = dataset.partition("@")
    if not at or version == "latest":
        raise UsageError(f"{dataset} names no version.", "Name it by its id, as in cifar10@0123456789abcdef.")
    with common.store_of("public") as store:
        gone = take_back(store, name, version)
    console.finished(
        f"Withdrew {name}@{gone.id}: {gone.images:,} images; {gone.shards} shards that no other version has are gone.",
        [
            ("copies", "remain where they were made, and can be restored as before"),
            *([] if gone.images else [("its shards", "stay: its manifest can not be read, so they may be another's")]),
        ],
        ["dmcp publish PROTECTED"],
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
