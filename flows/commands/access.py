"""`dmcp access`: users and their tokens, and who may have which data set restored, until when (operator).

Data sets, their terms, access requests and usage are in `flows/commands/access_datasets.py`, on the same group.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows import console

if TYPE_CHECKING:
    from storage.registry import Grant, Registry

app = typer.Typer(no_args_is_help=True, help="Users and grants: who may have what restored, until when (operator).")

User = Annotated[str, typer.Argument(metavar="USER", help="A user's name; an e-mail address in lower case will do.")]
Dataset = Annotated[str, typer.Argument(metavar="DATASET", help="The data set's name.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the token and nothing else.")]
Role = Annotated[str, typer.Option(metavar="ROLE", help="user, owner (of data sets) or operator.")]
Days = Annotated[int | None, typer.Option(min=1, max=36500, help="How many days from now.")]
Until = Annotated[
    datetime | None,
    typer.Option(formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"], metavar="DATE", help="Until when, in UTC."),
]
From = Annotated[
    datetime | None,
    typer.Option("--from", formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"], metavar="DATE", help="From when, in UTC."),
]
Version = Annotated[str | None, typer.Option(metavar="ID", help="One published version only.")]
Classes = Annotated[
    list[str] | None, typer.Option("--class", metavar="NAME", help="Images of this class only. Repeatable.")
]
Quota = Annotated[int | None, typer.Option(min=1, help="So many images in all.")]
Note = Annotated[str | None, typer.Option(help="A word to the user.")]


def register(root: typer.Typer) -> None:
    """Add the group to the command tree."""
    from flows.commands import access_datasets

    access_datasets.add_to(app)
    root.add_typer(app, name="access", rich_help_panel="Owner")


def open_book() -> Registry:
    """The registry of these settings, for as long as a `with` lasts."""
    from storage.registry import open_registry
    from storage.settings import settings

    return open_registry(settings())


def end_of(days: int | None, until: datetime | None) -> datetime | None:
    """The end that `--days` or `--until` means; None: none.

    Raises:
        UsageError: both are given.
    """
    from storage.errors import UsageError

    if days is not None and until is not None:
        raise UsageError("--days and --until are both given.", "Give one of them.")
    if days is not None:
        return datetime.now(UTC) + timedelta(days=days)
    return until.replace(tzinfo=UTC) if until else None


def end_shown(made: Grant) -> str:
    """Until when a grant holds, as part of a sentence."""
    return "without an end" if made.expires is None else f"until {made.expires:%Y-%m-%d %H:%M} UTC"


# --- users -----------------------------------------------------------------------------------------------------------


@app.command("add-user")
def add_user(user: User, role: Role = "user", days: Days = None, quiet: Quiet = False) -> None:
    """Add a user and print the token, which can not be shown again."""
    with open_book() as book:
        token = book.add_user(user, role, expires=end_of(days, None))  # type: ignore[arg-type]  # it checks
    _show_token(f"Added {user}.", token, quiet, [f"dmcp access grant {user} DATASET --days 90"])


@app.command("set-role")
def set_role(user: User, role: Annotated[str, typer.Argument(metavar="ROLE", help="user, owner or operator.")]) -> None:
    """Give a user another role: owners decide about their data sets, operators about everything."""
    with open_book() as book:
        book.set_role(user, role)  # type: ignore[arg-type]  # it checks
    console.finished(f"{user} has the role {role} now.")


@app.command()
def disable(user: User) -> None:
    """Shut a user out: their tokens and grants are worth nothing until `enable`."""
    with open_book() as book:
        book.set_disabled(user, True)
    console.finished(f"{user} is shut out.", then=[f"dmcp access enable {user}"])


@app.command()
def enable(user: User) -> None:
    """Let a user in again."""
    with open_book() as book:
        book.set_disabled(user, False)
    console.finished(f"{user} is let in.", then=["dmcp access list"])


# --- tokens ----------------------------------------------------------------------------------------------------------


@app.command("rotate-token")
def rotate_token(user: User, days: Days = None, quiet: Quiet = False) -> None:
    """Give a user a new token; all others are worth nothing from now on."""
    with open_book() as book:
        token = book.rotate_token(user, expires=end_of(days, None))
    _show_token(f"Made a new token for {user}; older ones no longer work.", token, quiet, [])


@app.command("add-token")
def add_token(
    user: User,
    label: Annotated[str, typer.Argument(metavar="LABEL", help="What it is for, such as a machine.")],
    days: Days = None,
    quiet: Quiet = False,
) -> None:
    """Give a user one more token; the others stay."""
    with open_book() as book:
        token = book.add_token(user, label, end_of(days, None))
    _show_token(f"Made one more token for {user}.", token, quiet, [f"dmcp access tokens {user}"])


@app.command()
def tokens(user: User) -> None:
    """List a user's tokens: their first characters, never the whole."""
    now = datetime.now(UTC)
    with open_book() as book:
        found = book.list_tokens(user)
    rows = [
        (
            token.id,
            f"{token.prefix}...",
            token.label,
            _day(token.created),
            _day(token.expires),
            _day(token.last_used),
            "in force" if token.in_force(now) else f"revoked {_day(token.revoked)}" if token.revoked else "expired",
        )
        for token in found
    ]
    console.table(("id", "token", "label", "made", "ends", "last used", "state"), rows, right=("id",))


@app.command("revoke-token")
def revoke_token(token_id: Annotated[int, typer.Argument(metavar="ID", help="As `tokens` shows it.")]) -> None:
    """End one token, now."""
    with open_book() as book:
        book.revoke_token(token_id)
    console.finished(f"Token {token_id} is worth nothing any more.")


def _show_token(what: str, token: str, quiet: bool, then: list[str]) -> None:
    if quiet:
        console.say(token)
        return
    hand_over = "hand the token over on a private channel; the user sets DMCP_TOKEN to it, or is asked for it"
    console.finished(f"{what} The token is shown this once:", [("token", token)], [hand_over, *then])


# --- grants ----------------------------------------------------------------------------------------------------------


@app.command()
def grant(
    user: User,
    dataset: Dataset,
    days: Days = None,
    until: Until = None,
    start: From = None,
    version: Version = None,
    classes: Classes = None,
    samples: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Only the samples of these keys (see `dmcp data keys`); needs --version."),
    ] = None,
    quota: Quota = None,
    note: Note = None,
    ahead: Annotated[
        bool, typer.Option("--ahead", help="Whether or not data set, version and classes are there yet.")
    ] = False,
) -> None:
    """Let a user have a data set restored, for some days, until a date, or without an end; all of it, or a part.

    Done again with the same bounds, it extends the grant, where it ends no earlier and is for no fewer images; where it
    ends later and is for fewer, or the other way round, it is another grant beside it. To take something away, revoke
    the grant and grant anew. The data set must be known here (on record, or with a key), and version, classes and
    samples be published where anything is.
    """
    from flows.commands.access_checks import check_dataset, check_published
    from tasks.sample_keys import plain_key

    keys = None if samples is None else samples.read_text(encoding="utf-8").split()
    with open_book() as book:
        if not ahead:
            check_dataset(book, dataset)
            keys = check_published(dataset, version, classes, keys)
        elif keys is not None:
            keys = [plain_key(key) for key in keys]
        made = book.grant(
            user,
            dataset,
            end_of(days, until),
            version=version,
            classes=classes or None,
            samples=keys,
            quota=quota,
            starts=None if start is None else start.replace(tzinfo=UTC),
            note=note,
        )
    parts = bounds(made)
    console.finished(
        f"{user} may have {dataset} restored {end_shown(made)}" + (f" ({parts})." if parts else "."),
        then=[f"as {user}: dmcp request SOURCE, then dmcp restore REQUEST OUT"],
    )


@app.command()
def renew(
    grant_id: Annotated[int, typer.Argument(metavar="GRANT", help="Its number, as `list` shows it.")],
    days: Days = None,
    until: Until = None,
    quota: Annotated[int | None, typer.Option(min=1, help="So many images in all, used ones included.")] = None,
) -> None:
    """Give a grant another end (none, without --days and --until), be it over already, and another quota."""
    with open_book() as book:
        made = book.renew_grant(grant_id, end_of(days, until), quota=quota)
    console.finished(f"{made.user.name} may have {made.dataset} restored {end_shown(made)}.")


@app.command()
def revoke(
    user: Annotated[str | None, typer.Argument(metavar="USER", help="Whose grants.")] = None,
    dataset: Annotated[str | None, typer.Argument(metavar="DATASET", help="For which data set.")] = None,
    grant_id: Annotated[int | None, typer.Option("--grant", metavar="GRANT", help="One grant, by its number.")] = None,
) -> None:
    """End a user's grants for a data set, or one grant, now."""
    from storage.errors import UsageError

    with open_book() as book:
        if grant_id is not None and user is None:
            book.revoke_grant(grant_id)
            what = f"Grant {grant_id} is worth nothing any more."
        elif grant_id is None and user is not None and dataset is not None:
            book.revoke(user, dataset)
            what = f"{user} may no longer have {dataset} restored."
        else:
            raise UsageError("It is not clear what to revoke.", "Name USER and DATASET, or --grant GRANT.")
    console.finished(what, then=["dmcp access list"])


@app.command(name="list")
def list_access() -> None:
    """List users and their grants, those that ended too."""
    with open_book() as book:
        users, granted = book.list_users(), book.list_grants()
    if not users:
        console.finished("There is no user yet.", then=["dmcp access add-user NAME"])
        return
    grants: dict[str, list[Grant]] = {}
    for made in granted:
        grants.setdefault(made.user.name, []).append(made)
    rows: list[tuple[object, ...]] = []
    for user in users:
        state = "disabled" if user.disabled else ""
        mine = grants.get(user.name, [])
        rows += [
            (user.name, user.role, g.dataset, g.id, end_shown(g), bounds(g) or None, state or _state(g)) for g in mine
        ]
        if not mine:
            rows.append((user.name, user.role, None, None, None, None, state or "no grant"))
    console.table(("user", "role", "data set", "grant", "granted", "bounds", "state"), rows, right=("grant",))


def bounds(made: Grant) -> str:
    """What a grant leaves out, for people."""
    parts = []
    if made.version is not None:
        parts.append(f"version {made.version}")
    if made.classes is not None:
        parts.append("classes " + ", ".join(made.classes))
    if made.samples is not None:
        parts.append(f"{len(made.samples):,} samples")
    if made.quota is not None:
        parts.append(f"{made.used:,} of {made.quota:,} images used")
    return "; ".join(parts)


def _state(made: Grant) -> str:
    now = datetime.now(UTC)
    if made.revoked is not None:
        return f"revoked {_day(made.revoked)}"
    if made.expires is not None and made.expires <= now:
        return "expired"
    return "in force" if made.starts <= now else f"begins {_day(made.starts)}"


def _day(moment: datetime | None) -> str | None:
    return None if moment is None else f"{moment:%Y-%m-%d}"
