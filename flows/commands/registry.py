"""`dmcp registry`: the schema of the registry's database, and what is over of what it knows (operator)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from flows import console

if TYPE_CHECKING:
    from storage.settings import Settings

app = typer.Typer(
    no_args_is_help=True, help="The registry: its schema, the way to the newest, and removing what is over."
)


def register(root: typer.Typer) -> None:
    """Add the group to the command tree."""
    root.add_typer(app, name="registry", rich_help_panel="Owner")


@app.command()
def version() -> None:
    """Say which schema the registry has and which this release needs; nothing is made or changed."""
    from storage.registry import registry_url
    from storage.registry_schema import schema_state
    from storage.settings import settings

    state = schema_state(registry_url(settings()))
    then = []
    if state.found is None:
        what = "There is no registry yet: it is made when it is first used."
    elif state.newest:
        what = "The registry has the newest schema."
    elif state.upgradable:
        what = "An earlier release made the registry: it needs an upgrade."
        then = ["back it up, stop whatever uses it, then: dmcp registry upgrade"]
    else:
        what = "A later release made the registry: use that one."
    console.finished(what, [("schema", state.found or "-"), ("needed", state.head), ("database", state.url)], then)


@app.command()
def upgrade() -> None:
    """Bring a registry that an earlier release made to this release's schema, keeping all that it holds; or make one.

    It happens in one transaction: after a failure the registry is as it was. A SQLite file is copied first, to a file
    beside it; of a PostgreSQL database make a backup before.
    """
    from storage.registry import Registry, registry_url
    from storage.registry_schema import schema_state
    from storage.settings import settings

    before = schema_state(registry_url(settings()))
    with Registry(registry_url(settings()), migrate=True) as book:
        after = book.schema()
        if before.newest:
            console.finished(f"The registry has the newest schema already ({after.found}).", [("database", book.url)])
            return
        done = (
            "Made the registry, with"
            if before.found is None
            else f"Upgraded the registry from schema {before.found} to"
        )
        console.finished(f"{done} schema {after.found}.", [("database", book.url)])


@app.command()
def sweep() -> None:
    """Remove uploads, inputs and results whose time is over, as the gateway does every hour.

    DMCP_UPLOADS_DAYS and DMCP_RESULTS_DAYS say how long things are kept; 0: for ever. What is pending or running is
    never touched; what was removed can be restored again from the protected images.
    """
    from flows.commands import common
    from flows.sweeper import sweep as remove
    from storage.objects import open_store
    from storage.registry import open_registry
    from storage.settings import settings

    conf = settings()
    with common.object_store(), open_registry(conf) as book:
        done = remove(conf, book, open_store(conf, "private"))
    kept = [(name, f"{days:g} days" if days else "for ever") for name, days in _kept(conf)]
    rows = [
        ("uploads", done.uploads),
        ("cancelled requests' results", done.cancelled),
        ("inputs of requests that are over", done.inputs),
        ("requests with their results", done.requests),
        ("files that belonged to nothing", done.strays),
        ("uploads that were cut off", done.unfinished),
        ("work folders", done.folders),
    ]
    what = "Removed what was over." if done.anything else "Nothing was over."
    console.finished(what, [(name, str(count)) for name, count in rows if count] + kept)


def _kept(conf: Settings) -> tuple[tuple[str, float], ...]:
    return ("uploads and inputs are kept", conf.uploads_days), ("results are kept", conf.results_days)
