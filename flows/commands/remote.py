"""`dmcp remote`: ask for access and have images restored by a gateway elsewhere, with nothing but a token."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows import console
from flows.commands import remote_owner

if TYPE_CHECKING:
    from flows.client import Client
    from flows.client.login import Login
    from flows.gateway.schemas import RestorationInfo

app = typer.Typer(no_args_is_help=True, help="Have images restored by a gateway elsewhere, with a token (requester).")
app.add_typer(remote_owner.app, name="owner")

Dataset = Annotated[str, typer.Argument(metavar="DATASET", help="The data set's name.")]
Request = Annotated[str, typer.Argument(metavar="REQUEST", help="The restoration's id.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the id and nothing else.")]
Reason = Annotated[str, typer.Option("--reason", prompt="Why", help="What it is needed for; the owner reads it.")]
Days = Annotated[int | None, typer.Option(min=1, max=36500, help="For how many days.")]
Images = Annotated[int | None, typer.Option(min=1, help="How many images, at most.")]
Subset = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Of a published version: only these keys (000000123) or shards, one a line."),
]
Of = Annotated[str | None, typer.Option("--dataset", help="The data set the images belong to, if you know.")]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="A folder that does not exist yet, or is empty.")]
Patience = Annotated[
    float, typer.Option(min=1, metavar="SECONDS", help="How long to wait, in all, for a connection that is broken.")
]


def register(root: typer.Typer) -> None:
    """Add the group to the command tree."""
    root.add_typer(app, name="remote", rich_help_panel="Requester")


@contextmanager
def client(patience: float = 60.0) -> Iterator[Client]:
    """The gateway that one is logged in to."""
    from flows.client import Client as Made
    from flows.client.login import current, home_folder

    login = current(home_folder())
    with Made(
        login.url, login.token.get_secret_value(), patience=patience, insecure=login.insecure, tell=console.note
    ) as made:
        yield made


# --- who one is ------------------------------------------------------------------------------------------------------


@app.command()
def login(
    url: Annotated[str, typer.Argument(metavar="URL", help="The gateway's address, as in https://dmcp.example")],
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Send the token over http:// to another machine.")
    ] = False,
) -> None:
    """Log in: the token is typed in (or taken from DMCP_TOKEN), checked, and kept in HOME/remote.json for you alone."""
    from pydantic import SecretStr

    from flows.client import Client as Made
    from flows.client.login import Login, home_folder, store

    token = _token()
    with Made(url, token, insecure=insecure, tell=console.note) as made:
        who = made.me()
        path = store(Login(url=made.url, token=SecretStr(token), insecure=insecure), home_folder())
    console.finished(f"Logged in at {made.url} as {who.name} ({who.role}).", [("kept in", console.shown(path))])


def _token() -> str:
    from storage.errors import BadToken

    if given := os.environ.get("DMCP_TOKEN", "").strip():
        return given
    if not sys.stdin.isatty():
        raise BadToken("No token is given.", "Set DMCP_TOKEN to the token you were handed.")
    return str(typer.prompt("Token", hide_input=True, err=True)).strip()


@app.command()
def logout() -> None:
    """Forget address and token. The token itself stays good: to end it, rotate it."""
    from flows.client.login import forget, home_folder

    console.say("Logged out." if forget(home_folder()) else "You were not logged in.")


@app.command()
def whoami() -> None:
    """Who the gateway takes you for, and what you may have restored."""
    with client() as gateway:
        who = gateway.me()
    held = ", ".join(who.datasets) or "nothing yet"
    console.finished(f"{who.name} ({who.role}) at {gateway.url}", [("may have restored", held)])


@app.command("rotate-token")
def rotate_token() -> None:
    """Get a new token and keep it; all others of yours are worth nothing from now on."""
    from pydantic import SecretStr

    from flows.client.login import current, home_folder, store

    home = home_folder()
    kept: Login = current(home)
    with client() as gateway:
        fresh = gateway.rotate_token()
    path = store(kept.model_copy(update={"token": SecretStr(fresh)}), home)
    console.finished("You have a new token.", [("kept in", console.shown(path))])


# --- data sets and access --------------------------------------------------------------------------------------------


@app.command()
def datasets() -> None:
    """List the data sets, and how you stand to each."""
    with client() as gateway:
        found = list(gateway.datasets())
    if not found:
        console.say("There is no data set yet.")
        return
    rows = [(d.name, d.title, d.owner, "granted" if d.granted else "", _terms(d.terms, d.accepted)) for d in found]
    console.table(("data set", "title", "owner", "access", "terms"), rows)


def _terms(version: int | None, accepted: int | None) -> str:
    if version is None:
        return "none"
    return "accepted" if accepted == version else "to be accepted"


@app.command()
def versions(dataset: Dataset) -> None:
    """List the published versions of a data set, the newest first."""
    with client() as gateway:
        found = gateway.versions(dataset)
    rows = [(v.id, f"{v.completed:%Y-%m-%d %H:%M}", "latest" if v.latest else "") for v in found]
    console.table(("version", "completed (UTC)", ""), rows)


@app.command()
def terms(
    dataset: Dataset,
    accept: Annotated[bool, typer.Option("--accept", help="Accept them, as they are shown.")] = False,
) -> None:
    """Show a data set's terms of use; accept them."""
    from flows.client.problems import printable

    with client() as gateway:
        found = gateway.terms(dataset)
        console.say(printable(found.text, len(found.text)))
        if accept:
            gateway.accept_terms(dataset, found.version)
    shown = f"the terms of {dataset}, version {found.version}"
    if accept or found.accepted:
        console.finished(f"You accepted {shown}.")
    else:
        console.finished(f"These are {shown}.", then=[f"dmcp remote terms {dataset} --accept"])


@app.command()
def ask(
    dataset: Dataset,
    reason: Reason,
    days: Days = None,
    images: Images = None,
    version: Annotated[str | None, typer.Option(help="Only this published version.")] = None,
    classes: Annotated[list[str] | None, typer.Option("--class", help="Only this class. Repeatable.")] = None,
) -> None:
    """Ask the owner for access to a data set, or to a part of it."""
    with client() as gateway:
        made = gateway.ask_access(dataset, reason, version=version, classes=classes or None, images=images, days=days)
    console.finished(f"You asked for {dataset} (number {made.id}); the owner decides.", then=["dmcp remote grants"])


@app.command()
def renew(
    grant: Annotated[int, typer.Argument(metavar="GRANT", help="The grant's number.")],
    reason: Reason,
    days: Days = None,
    images: Images = None,
) -> None:
    """Ask the owner to renew a grant."""
    with client() as gateway:
        made = gateway.ask_renewal(grant, reason, days=days, images=images)
    console.finished(f"You asked for grant {grant} to be renewed (number {made.id}); the owner decides.")


@app.command()
def grants() -> None:
    """List your grants, and what you asked for and is not decided or was denied."""
    with client() as gateway:
        held = list(gateway.grants())
        asked = [request for request in gateway.access_requests() if request.state in ("open", "denied")]
    console.table(remote_owner.GRANT_COLUMNS, map(remote_owner.grant_row, held), right=("used", "quota"))
    if asked:
        rows = [(r.id, r.dataset, r.state, f"{r.created:%Y-%m-%d}", r.note) for r in asked]
        console.table(("asked", "data set", "state", "on", "the owner says"), rows)


# --- restorations ----------------------------------------------------------------------------------------------------


@app.command()
def request(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Folder, tar, zip, PNG, or DATASET\\[@VERSION].")],
    subset: Subset = None,
    dataset: Of = None,
    patience: Patience = 60.0,
    quiet: Quiet = False,
) -> None:
    """Hand images in (or name a published version) and print the restoration's id; `fetch` gets the result."""
    from flows.client.restoring import hand_in

    wanted = _lines(subset)
    with client(patience) as gateway, console.progress("Handing in") as progress:
        info = hand_in(gateway, source, subset=wanted, dataset=dataset, progress=progress)
    if quiet:
        console.say(info.id)
    else:
        console.finished(f"Restoration {info.id} was started.", then=[f"dmcp remote fetch {info.id} OUT"])


def _lines(path: Path | None) -> list[str] | None:
    from flows.commands.request import lines_of

    return None if path is None else lines_of(path)


@app.command("list")
def list_restorations(
    state: Annotated[str | None, typer.Option(help="Only pending, running, done, failed or cancelled ones.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 20,
) -> None:
    """List your restorations, the newest first."""
    from itertools import islice

    with client() as gateway:
        found = list(islice(gateway.restorations(state), limit))
    if not found:
        console.finished("There is no restoration.", then=["dmcp remote restore SOURCE OUT"])
        return
    columns = ("restoration", "source", "state", "images", "restored", "refused", "made (UTC)", "message")
    console.table(columns, map(_row, found), right=("images", "restored", "refused"))


def _row(info: RestorationInfo) -> tuple[object, ...]:
    from flows.client.problems import printable

    made = f"{info.created:%Y-%m-%d %H:%M}"
    source, message = printable(info.source), printable(info.message) or None
    return info.id, source, info.state, info.images, info.restored, info.refused, made, message


@app.command()
def status(request: Request) -> None:
    """How far a restoration is."""
    with client() as gateway:
        _tell_state(gateway.restoration(request))


@app.command()
def wait(request: Request, patience: Patience = 60.0) -> None:
    """Wait until a restoration is over. Exit code: as `dmcp remote restore` would end."""
    from flows.client.restoring import check_over

    with client(patience) as gateway, console.progress("Waiting") as progress:
        info = gateway.wait(request, lambda i: progress("restoring", i.restored + i.refused, i.images or None))
    check_over(info)
    _tell_state(info)


def _tell_state(info: RestorationInfo) -> None:
    from flows.client.problems import printable

    then = {"done": [f"dmcp remote fetch {info.id} OUT"], "pending": [f"dmcp remote wait {info.id}"]}
    done = f"{info.restored:,} of {info.images:,} images restored, {info.refused:,} refused"
    where = [("message", printable(info.message))] if info.message else []
    console.finished(f"Restoration {info.id} is {info.state}: {done}.", where, then.get(info.state, []))


@app.command()
def cancel(request: Request) -> None:
    """Cancel a restoration that is not over."""
    with client() as gateway:
        info = gateway.cancel(request)
    console.say(f"Restoration {info.id} is {info.state}.")


@app.command()
def retry(request: Request) -> None:
    """Try again what failed, when its cause is mended, or now what waits for that; no image is charged twice."""
    with client() as gateway:
        info = gateway.retry(request)
    console.finished(f"Restoration {info.id} is {info.state}.", then=[f"dmcp remote wait {info.id}"])


@app.command()
def fetch(request: Request, out: Out, patience: Patience = 60.0) -> None:
    """Fetch what was restored: images under their own names, report.json and refused.csv.

    Broken off, the same command goes on. Exit codes are those of `dmcp restore`.
    """
    from flows.client import fetch as run
    from flows.commands.request import tell_unpacked

    with client(patience) as gateway, console.progress("Fetching") as progress:
        done = run(gateway, request, out, progress=progress)
    tell_unpacked(f"Restoration {request}", done)


@app.command()
def restore(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Folder, tar, zip, PNG, or DATASET\\[@VERSION].")],
    out: Out,
    subset: Subset = None,
    dataset: Of = None,
    patience: Patience = 60.0,
) -> None:
    """Have images restored in one go: hand in, wait, fetch. OUT holds them under their own names, with report.json.

    Broken off (the connection, the machine, Ctrl-C), the same command goes on: nothing is handed in twice, and only
    what is missing is fetched. A restoration that failed is tried again; no image is charged twice. What is remembered
    lies in OUT.dmcp-part until it is done.

    Exit code: 0 when it was served, even if some images were refused (they are listed, with the reason); 7 when all of
    them were refused; 6 without a grant that is in force, 4 when the gateway can not be reached.
    """
    from flows.client import restore as run
    from flows.commands.request import tell_unpacked

    wanted = _lines(subset)
    with client(patience) as gateway, console.progress("Restoring") as progress:
        done = run(gateway, source, out, subset=wanted, dataset=dataset, progress=progress)
    tell_unpacked(f"{source}", done)
