"""The rest of `dmcp access`: data sets and their terms, who asks for access and what becomes of it, usage."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from flows import console
from flows.commands import access as group

terms = typer.Typer(no_args_is_help=True, help="A data set's terms of use: the newest count, and must be accepted.")

Asked = Annotated[int, typer.Argument(metavar="ID", help="The access request's number, as `requests` shows it.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands to the group `access`."""
    for name, command in (
        ("datasets", datasets),
        ("register", register),
        ("transfer", transfer),
        ("ask", ask),
        ("requests", requests),
        ("approve", approve),
        ("deny", deny),
        ("usage", usage),
    ):
        app.command(name)(command)
    app.add_typer(terms, name="terms")


# --- data sets -------------------------------------------------------------------------------------------------------


def datasets() -> None:
    """List the data sets on record, with their owners."""
    with group.open_book() as book:
        rows = []
        for dataset in book.list_datasets():
            current = book.current_terms(dataset.name)
            number = None if current is None else current.version
            rows.append((dataset.name, dataset.owner.name, dataset.title or None, number))
    if not rows:
        console.finished("No data set is on record yet.", then=["dmcp access register DATASET OWNER"])
        return
    console.table(("data set", "owner", "title", "terms"), rows, right=("terms",))


def register(
    dataset: group.Dataset,
    owner: Annotated[str, typer.Argument(metavar="OWNER", help="A user with the role owner or operator.")],
    title: Annotated[str | None, typer.Option(help="One line about it.")] = None,
    description: Annotated[str | None, typer.Option(help="More about it.")] = None,
) -> None:
    """Put a data set on record as an owner's, who decides about it; again: with another title."""
    with group.open_book() as book:
        book.register_dataset(dataset, owner, title, description)
    console.finished(f"{dataset} is {owner}'s.", then=[f"dmcp access terms set {dataset} FILE"])


def transfer(
    dataset: group.Dataset,
    owner: Annotated[str, typer.Argument(metavar="OWNER", help="A user with the role owner or operator.")],
) -> None:
    """Make a data set another owner's."""
    with group.open_book() as book:
        book.transfer_dataset(dataset, owner)
    console.finished(f"{dataset} is {owner}'s now.")


# --- terms -----------------------------------------------------------------------------------------------------------


@terms.command("set")
def set_terms(
    dataset: group.Dataset,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The text; - reads it from the standard input.")],
) -> None:
    """Let new terms of use count from now on: users must accept them before anything more is restored for them."""
    text = sys.stdin.read() if str(file) == "-" else file.read_text()
    with group.open_book() as book:
        made = book.set_terms(dataset, text)
    console.finished(f"Version {made.version} of the terms of use of {dataset} counts now.")


@terms.command("show")
def show_terms(
    dataset: group.Dataset,
    number: Annotated[int | None, typer.Option("--number", min=1, help="An older version.")] = None,
) -> None:
    """Show a data set's terms of use."""
    with group.open_book() as book:
        book.get_dataset(dataset)
        found = book.current_terms(dataset) if number is None else book.get_terms(dataset, number)
    if found is None:
        console.finished(f"{dataset} has no terms of use.", then=[f"dmcp access terms set {dataset} FILE"])
        return
    console.note(f"Version {found.version}, of {found.created:%Y-%m-%d}:")
    console.say(found.text)


@terms.command("accept")
def accept_terms(
    dataset: group.Dataset,
    user: group.User,
    number: Annotated[int | None, typer.Option("--number", min=1, help="The version; else the newest.")] = None,
) -> None:
    """Record that a user accepted the terms, on paper for example."""
    from storage.errors import NotFound

    with group.open_book() as book:
        current = book.current_terms(dataset)
        if current is None:
            raise NotFound(f"{dataset} has no terms of use.", f"Set some: dmcp access terms set {dataset} FILE")
        accepted = current.version if number is None else number
        book.accept_terms(book.get_user(user).id, dataset, accepted)
    console.finished(f"It is on record that {user} accepted version {accepted} of the terms of {dataset}.")


# --- access requests -------------------------------------------------------------------------------------------------


def ask(
    user: group.User,
    dataset: group.Dataset,
    reason: Annotated[str, typer.Option(help="What for.")],
    days: group.Days = None,
    version: group.Version = None,
    classes: group.Classes = None,
    quota: group.Quota = None,
    renews: Annotated[int | None, typer.Option(metavar="GRANT", help="Renew this grant instead.")] = None,
) -> None:
    """Record that a user asks for access, for the owner to decide."""
    with group.open_book() as book:
        made = book.ask_access(
            book.get_user(user).id,
            dataset,
            reason,
            version=version,
            classes=classes or None,
            images=quota,
            days=days,
            renews=renews,
        )
    console.finished(
        f"Access request {made.id} is open.", then=[f"dmcp access approve {made.id}", f"dmcp access deny {made.id}"]
    )


def requests(
    state: Annotated[
        str | None, typer.Option(metavar="STATE", help="open, approved, denied or withdrawn; else all.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="For this data set only.")] = None,
) -> None:
    """List who asks for access to what, newest first."""
    from storage.errors import UsageError
    from storage.registry_models import ACCESS_STATES

    if state is not None and state not in ACCESS_STATES:
        raise UsageError(f"{state!a} is no state.", f"One of: {', '.join(ACCESS_STATES)}.")
    with group.open_book() as book:
        found = book.list_access_requests(state=state, dataset=dataset)  # type: ignore[arg-type]  # checked above
    rows = [
        (
            one.id,
            one.user.name,
            one.dataset if one.renews is None else f"{one.dataset} (renews grant {one.renews})",
            one.days,
            one.images,
            one.version,
            ", ".join(one.classes) if one.classes else None,
            one.state,
            one.reason.splitlines()[0][:80],
        )
        for one in found
    ]
    columns = ("id", "user", "data set", "days", "images", "version", "classes", "state", "reason")
    console.table(columns, rows, right=("id", "days", "images"))


def approve(
    request_id: Asked,
    days: group.Days = None,
    until: group.Until = None,
    quota: group.Quota = None,
    version: group.Version = None,
    classes: group.Classes = None,
    note: group.Note = None,
) -> None:
    """Give the grant that is asked for: as it is asked for, but for what is named here."""
    from storage.registry import AS_ASKED

    end = group.end_of(days, until)
    with group.open_book() as book:
        made = book.approve_access_request(
            request_id,
            expires=AS_ASKED if end is None else end,
            quota=AS_ASKED if quota is None else quota,
            version=AS_ASKED if version is None else version,
            classes=classes or AS_ASKED,
            note=note,
        )
    console.finished(
        f"{made.user.name} may have {made.dataset} restored {group.end_shown(made)} (grant {made.id}).",
        then=[f"dmcp access revoke --grant {made.id}, to take it back"],
    )


def deny(request_id: Asked, note: group.Note = None) -> None:
    """Refuse what is asked for."""
    with group.open_book() as book:
        book.deny_access_request(request_id, note)
    console.finished(f"Access request {request_id} is denied.")


def usage(
    dataset: Annotated[str | None, typer.Option(help="Of this data set only.")] = None,
    since: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], metavar="DATE", help="From this day on, in UTC.")
    ] = None,
) -> None:
    """Show how many images of what were restored for whom, by day."""
    with group.open_book() as book:
        found = book.usage(dataset=dataset, since=None if since is None else since.replace(tzinfo=UTC))
    rows = [(row.day, row.dataset, row.user, row.requests, f"{row.images:,}") for row in found]
    console.table(("day", "data set", "user", "requests", "images"), rows, right=("requests", "images"))
