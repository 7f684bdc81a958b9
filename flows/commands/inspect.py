"""`dmcp verify` and `dmcp inspect`: look at what lies there, without any key."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows import console


def register(root: typer.Typer) -> None:
    """Add the commands to the command tree."""
    root.command(rich_help_panel="Anyone")(verify)
    root.command(rich_help_panel="Anyone")(inspect)


def verify(
    variant: Annotated[Path, typer.Argument(metavar="VARIANT", help="A folder of shards with manifest.json.")],
) -> None:
    """Check that every shard of a variant is the one its manifest names (size and SHA-256)."""
    from storage.manifest import verify_variant

    with console.progress("Checking shards") as progress:
        manifest = verify_variant(variant, progress)
    total = sum(shard.bytes for shard in manifest.shards)
    console.finished(
        f"{console.shown(variant)} is whole: {manifest.samples:,} images of {len(manifest.classes)} classes in "
        f"{len(manifest.shards)} shards, {console.size(total)}.",
        [("data set", manifest.dataset), ("split", manifest.split)],
        [f"dmcp export {console.shown(variant)} OUT --as imagefolder"],
    )


def inspect(
    images: Annotated[list[Path], typer.Argument(metavar="PNG...", help="One or more PNG files.")],
) -> None:
    """Show what a protected image says about itself in clear: profile, key id, image id.

    Exit code 7 when none of the files is a protected image.
    """
    from storage.errors import DmcpError, NoSuchPath
    from tasks.method.known import profile_of
    from tasks.restore import read_header

    rows: list[tuple[object, ...]] = []
    failures: list[DmcpError] = []
    for path in images:
        if path.is_dir():
            raise NoSuchPath(
                f"{path} is a folder; PNG files are needed.",
                f"Name files in it; of a variant's shards: dmcp export {path} FOLDER --as imagefolder, then those.",
            )
        try:
            header = read_header(path.read_bytes(), str(path))
        except DmcpError as error:
            failures.append(error)
            rows.append((console.shown(path), f"not readable: {type(error).__name__}", *[None] * 4))
            continue
        profile = profile_of(header)
        rows.append(
            (
                console.shown(path),
                f"{profile.name}, format {header.version}",
                header.key_id.hex(),
                header.image_id.hex(),
                header.payload_bytes,
                profile.describe(header),
            )
        )
    if len(failures) == len(images) == 1:
        raise failures[0]
    console.table(("file", "profile", "key id", "image id", "payload bytes", "how"), rows)
    if len(failures) == len(images):
        raise typer.Exit(7)
    console.say("Next: dmcp key list shows which data set a key id belongs to; dmcp request hands images in")
