"""`dmcp remote owner`: what an owner decides, at a gateway elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from flows import console

if TYPE_CHECKING:
    from flows.gateway.schemas import GrantInfo

app = typer.Typer(no_args_is_help=True, help="The owner's side: requests for access, grants, usage.")

Number = Annotated[int, typer.Argument(metavar="NUMBER", help="The number of the request for access.")]
Dataset = Annotated[str | None, typer.Option(help="Only this data set.")]

GRANT_COLUMNS = ("grant", "user", "data set", "covers", "used", "quota", "until", "state")


def grant_row(grant: GrantInfo) -> tuple[object, ...]:
    """A grant as a row of GRANT_COLUMNS."""
    parts = [
        f"version {grant.version}" if grant.version else "",
        f"{len(grant.classes)} classes" if grant.classes else "",
    ]
    parts.append(f"{len(grant.samples)} samples" if grant.samples else "")
    covers = ", ".join(part for part in parts if part) or "all of it"
    state = "in force" if grant.in_force else "revoked" if grant.revoked else "not in force"
    until = f"{grant.expires:%Y-%m-%d}" if grant.expires else None
    return grant.id, grant.user, grant.dataset, covers, grant.used, grant.quota, until, state


@app.command()
def requests(
    every: Annotated[bool, typer.Option("--all", help="Those that were decided, too.")] = False,
) -> None:
    """List requests for access to your data sets."""
    from flows.client.problems import printable
    from flows.commands.remote import client

    with client() as gateway:
        found = list(gateway.asked(None if every else "open"))
    columns = ("number", "user", "data set", "days", "images", "state", "on", "reason")
    rows = [
        (r.id, r.user, r.dataset, r.days, r.images, r.state, f"{r.created:%Y-%m-%d}", printable(r.reason))
        for r in found
    ]
    console.table(columns, rows, right=("days", "images"))


@app.command()
def approve(
    number: Number,
    days: Annotated[int | None, typer.Option(min=1, max=36500, help="Another time than was asked for.")] = None,
    quota: Annotated[int | None, typer.Option(min=1, help="Another number of images than was asked for.")] = None,
    note: Annotated[str | None, typer.Option(help="A word to who asked.")] = None,
) -> None:
    """Approve a request: grant what was asked for, or less."""
    from flows.commands.remote import client

    changes = {"days": days, "quota": quota, "note": note}
    with client() as gateway:
        made = gateway.approve(number, **{name: value for name, value in changes.items() if value is not None})
    until = f" until {made.expires:%Y-%m-%d}" if made.expires else ""
    console.say(f"{made.user} may have {made.dataset} restored{until} (grant {made.id}).")


@app.command()
def deny(number: Number, note: Annotated[str, typer.Option(prompt="Why", help="The reason.")]) -> None:
    """Deny a request, with the reason."""
    from flows.commands.remote import client

    with client() as gateway:
        denied = gateway.deny(number, note)
    console.say(f"{denied.user} was denied {denied.dataset}.")


@app.command()
def grants(dataset: Dataset = None) -> None:
    """List the grants for your data sets."""
    from flows.commands.remote import client

    with client() as gateway:
        found = list(gateway.owned_grants(dataset))
    console.table(GRANT_COLUMNS, map(grant_row, found), right=("used", "quota"))


@app.command()
def revoke(grant: Annotated[int, typer.Argument(metavar="GRANT", help="The grant's number.")]) -> None:
    """End a grant now; restorations that run under it stop."""
    from flows.commands.remote import client

    with client() as gateway:
        ended = gateway.revoke_grant(grant)
    console.say(f"{ended.user} may have {ended.dataset} restored no longer under grant {ended.id}.")


@app.command()
def usage(
    dataset: Dataset = None, days: Annotated[int, typer.Option(min=1, max=3660, help="How far back.")] = 90
) -> None:
    """Show how many images who had restored, by day."""
    from flows.commands.remote import client

    with client() as gateway:
        found = gateway.usage(dataset, days)
    rows = [(row.day, row.dataset, row.user, row.requests, row.images) for row in found]
    console.table(("day", "data set", "user", "requests", "images"), rows, right=("requests", "images"))
