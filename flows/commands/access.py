"""`dmcp access`: who may have which data set restored, and until when (operator)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from flows import console

if TYPE_CHECKING:
    from storage.registry import Grant, Registry

app = typer.Typer(no_args_is_help=True, help="Users and grants: who may have what restored, until when (operator).")

User = Annotated[str, typer.Argument(metavar="USER", help="A user's name; an e-mail address in lower case will do.")]
Dataset = Annotated[str, typer.Argument(metavar="DATASET", help="The data set's name.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the token and nothing else.")]


def register(root: typer.Typer) -> None:
    """Add the group to the command tree."""
    root.add_typer(app, name="access", rich_help_panel="Owner")


def _registry() -> Registry:
    from storage.registry import open_registry
    from storage.settings import settings

    return open_registry(settings())


@app.command("add-user")
def add_user(user: User, quiet: Quiet = False) -> None:
    """Add a user and print the token, which can not be shown again."""
    token = _registry().add_user(user)
    _show_token(f"Added {user}.", token, quiet, [f"dmcp access grant {user} DATASET --days 90"])


@app.command("rotate-token")
def rotate_token(user: User, quiet: Quiet = False) -> None:
    """Give a user a new token; the old one is worth nothing from now on."""
    token = _registry().rotate_token(user)
    _show_token(f"Made a new token for {user}; the old one no longer works.", token, quiet, [])


def _show_token(what: str, token: str, quiet: bool, then: list[str]) -> None:
    if quiet:
        console.say(token)
        return
    hand_over = "hand the token over on a private channel; the user sets DMCP_TOKEN to it, or is asked for it"
    console.finished(f"{what} The token is shown this once:", [("token", token)], [hand_over, *then])


@app.command()
def grant(
    user: User,
    dataset: Dataset,
    days: Annotated[int | None, typer.Option(min=1, max=36500, help="How many days from now.")] = None,
    until: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"], metavar="DATE", help="Until when, in UTC."),
    ] = None,
) -> None:
    """Let a user have a data set restored, for some days, until a date, or without an end.

    Done again, it moves the end to the later of both dates; to shorten a grant, revoke it and grant anew.
    """
    from storage.errors import UsageError

    if days is not None and until is not None:
        raise UsageError("--days and --until are both given.", "Give one of them.")
    expires = until.replace(tzinfo=UTC) if until else None
    if days is not None:
        expires = datetime.now(UTC) + timedelta(days=days)
    made = _registry().grant(user, dataset, expires)
    console.finished(
        f"{user} may have {dataset} restored {_end(made)}.",
        then=[f"as {user}: dmcp request SOURCE, then dmcp restore REQUEST OUT"],
    )


def _end(made: Grant) -> str:
    return "without an end" if made.expires is None else f"until {made.expires:%Y-%m-%d %H:%M} UTC"


@app.command()
def revoke(user: User, dataset: Dataset) -> None:
    """End a user's grants for a data set, now."""
    _registry().revoke(user, dataset)
    console.finished(f"{user} may no longer have {dataset} restored.", then=["dmcp access list"])


@app.command(name="list")
def list_access() -> None:
    """List users and their grants, those that ended too."""
    registry = _registry()
    users = registry.list_users()
    if not users:
        console.finished("There is no user yet.", then=["dmcp access add-user NAME"])
        return
    grants: dict[str, list[Grant]] = {}
    for made in registry.list_grants():
        grants.setdefault(made.user.name, []).append(made)
    rows: list[tuple[object, ...]] = []
    for user in users:
        state = "disabled" if user.disabled else ""
        mine = grants.get(user.name, [])
        rows += [(user.name, f"{user.token_prefix}...", g.dataset, _end(g), state or _state(g)) for g in mine]
        if not mine:
            rows.append((user.name, f"{user.token_prefix}...", None, None, state or "no grant"))
    console.table(("user", "token", "data set", "granted", "state"), rows)


def _state(made: Grant) -> str:
    if made.revoked is not None:
        return f"revoked {made.revoked:%Y-%m-%d}"
    if made.expires is not None and made.expires <= datetime.now(UTC):
        return "expired"
    return "in force"
