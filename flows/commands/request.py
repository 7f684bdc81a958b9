"""`dmcp request` and `dmcp restore`: protected images go in, the originals come back, for those who hold a grant."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows import console
from flows.commands import common

if TYPE_CHECKING:
    from tasks.request import Unpacked

PANEL = "Requester"


def register(root: typer.Typer) -> None:
    """Add the commands to the command tree."""
    root.command(rich_help_panel=PANEL)(request)
    root.command(rich_help_panel=PANEL)(restore)
    root.command(rich_help_panel=PANEL)(requests)


def request(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Folder of PNGs, folder of shards, tar, zip, one PNG, or a published DATASET\\[@VERSION].",
        ),
    ],
    token: Annotated[
        str | None,
        typer.Option(
            envvar="DMCP_TOKEN", show_envvar=True, help="Your token; better in DMCP_TOKEN, or typed in when asked."
        ),
    ] = None,
    subset: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Of a published version: only these keys (000000123) or shards, one a line."),
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="The data set the images belong to, if you know.")] = None,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Operator: read a variant folder where it lies, upload nothing.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the request's id and nothing else.")] = False,
) -> None:
    """Ask for images to be restored: checks the token, hands the images in, prints the request's id.

    Images may be any subset, renamed and in any order; PNG files must be as they were published. Where not one of them
    is protected, nothing is handed in (exit code 7).
    """
    from storage.files import make_private
    from storage.objects import open_store
    from storage.registry import open_registry
    from storage.settings import settings
    from tasks.request import submit_request

    secret = _token(token)
    wanted = lines_of(subset) if subset else None
    with (
        _own_registry(),
        _path_that_is_none(source),
        common.object_store(),
        console.progress("Handing in") as progress,
        open_registry(settings()) as registry,
    ):
        request_id = submit_request(
            registry,
            open_store(settings(), "private"),
            secret,
            source,
            work=make_private(settings().home_path("work"), "requests"),
            public=open_store(settings(), "public"),
            subset=wanted,
            dataset=dataset,
            in_place=in_place,
            look=True,
            progress=progress,
        )
        count = registry.get_request(request_id).images
    if quiet:
        console.say(request_id)
        return
    console.finished(
        f"Request {request_id} is recorded: {count:,} files of {source}.", then=[f"dmcp restore {request_id} OUT"]
    )


@contextmanager
def _own_registry() -> Iterator[None]:
    """Where a token is not known to this machine's own registry: say that it may be another's."""
    from storage.errors import BadToken
    from storage.settings import settings

    try:
        yield
    except BadToken as error:
        if settings().registry_url is not None:
            raise
        where = f"This asked this machine's own registry, {settings().home_path('registry.db')}."
        elsewhere = "For a token of another service: dmcp remote login URL, then dmcp remote restore SOURCE OUT."
        raise BadToken(error.what, f"{error.cure} {where} {elsewhere}") from error


@contextmanager
def _path_that_is_none(source: str) -> Iterator[None]:
    """Where a bare name is no path, and as a data set's name leads nowhere: say first that it is no path."""
    from storage.errors import NoGrant, NotFound

    try:
        yield
    except (NoGrant, NotFound) as error:
        if "@" in source or Path(source).exists():
            raise
        what = f"There is no file or folder {source} here, so it was taken for a published data set. {error.what}"
        raise type(error)(what, error.cure) from error


def _token(given: str | None) -> str:
    """The token: from the option or DMCP_TOKEN, else typed in without being shown.

    Raises:
        BadToken: none was given and there is no terminal to ask at.
    """
    from storage.errors import BadToken

    if given:
        return given.strip()
    if not sys.stdin.isatty():
        raise BadToken("No token is given.", "Set DMCP_TOKEN to the token you were handed.")
    return str(typer.prompt("Token", hide_input=True, err=True)).strip()


def lines_of(path: Path) -> list[str]:
    """The lines of a file that are not empty."""
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def restore(
    request_id: Annotated[str, typer.Argument(metavar="REQUEST", help="The id that `dmcp request` printed.")],
    out: Annotated[
        str, typer.Argument(metavar="OUT", help="A folder, or s3://BUCKET/PREFIX, that does not exist or is empty.")
    ],
    force: Annotated[
        bool, typer.Option("--force", help="Take over a request that is running, because its worker was killed.")
    ] = False,
) -> None:
    """Have a request restored and fetch the result: images under their own names, report.json and refused.csv.

    A worker restores it where one runs (dmcp up), else this process does. A request that failed is tried again. What
    was restored is fetched as long as a grant covers it, as often as is wished; each time is put on record.

    Exit code: 0 when the request was served, even if some images were refused (they are listed, with the reason); 7
    when all of them were refused; 5 without the key, 6 without a grant that is in force, 8 for an unknown request.
    """
    from flows.dispatch import serve
    from flows.handout import hand_out
    from storage.addresses import is_address
    from storage.files import make_private
    from storage.objects import open_store
    from storage.settings import settings
    from tasks.request import fetch_results
    from tasks.request_results import check_out

    if is_address(out):
        _restore_to(request_id, out, force)
        return
    check_out(Path(out))
    with common.object_store():
        with console.waiting("Restoring") as tell:
            serve(settings(), request_id, tell, force)
        hand_out(settings(), request_id, str(Path(out).resolve()))
        with console.progress("Fetching the result") as progress:
            work = make_private(settings().home_path("work"), "requests")
            done = fetch_results(open_store(settings(), "private"), request_id, Path(out), work, progress)
    tell_unpacked(f"Request {request_id}", done)


def _restore_to(request_id: str, address: str, force: bool) -> None:
    """`restore` to an address, a shard at a time."""
    from flows.dispatch import serve
    from flows.handout import hand_out
    from storage.addresses import open_private_address
    from storage.files import make_private
    from storage.objects import open_store
    from storage.settings import settings
    from tasks.request_deliver import check_place, deliver_results

    with common.object_store():
        place = open_private_address(settings(), address)
        check_place(place, request_id)
        with console.waiting("Restoring") as tell:
            serve(settings(), request_id, tell, force)
        hand_out(settings(), request_id, address)
        with console.progress("Delivering the result") as progress:
            work = make_private(settings().home_path("work"), "requests")
            mine = deliver_results(open_store(settings(), "private"), request_id, place, work, progress)
    refused = f", {mine.refusals:,} refused" if mine.refusals else ""
    where = [("images", address), ("report", place.where("report.json"))]
    console.finished(f"Request {request_id}: {mine.restored:,} images restored{refused}.", where)
    if mine.refused and not mine.restored:
        raise typer.Exit(7)


def tell_unpacked(what: str, done: Unpacked) -> None:
    """What came back of `what`, and why the rest did not. Raises typer.Exit(7) when nothing did."""
    from tasks.request_results import and_more

    if done.refused:
        groups: dict[tuple[str, str], list[str]] = {}
        for refusal in done.refused:
            groups.setdefault((refusal.error, _general(refusal.reason, refusal.name)), []).append(refusal.name)
        rows = [(len(names), error, reason, names[0]) for (error, reason), names in groups.items()]
        rows += [(count, error, and_more(count), "") for error, count in done.report.unnamed.items()]
        rows.sort(key=lambda row: -row[0])
        console.table(("refused", "kind", "reason", "for example"), rows, right=("refused",))
    out = console.shown(done.out)
    refused = f", {done.report.refusals:,} refused" if done.refused else ""
    where = [("report", f"{out}/report.json")]
    if done.restored:
        where.insert(0, ("images", out))
    if done.refused:
        where.append(("refused, one by one", f"{out}/refused.csv"))
    console.finished(f"{what}: {done.restored:,} images restored{refused}.", where, _next(done, out))
    if done.refused and not done.restored:
        raise typer.Exit(7)


def _next(done: Unpacked, out: str) -> list[str]:
    if not done.restored:
        return ["mend what the reasons say, then hand in again"]
    if (done.out / "manifest.json").exists():
        return [f"dmcp train {out} --test FOLDER", f"dmcp export {out} FOLDER --as imagefolder"]
    return ["use the images under the data set's terms"]


def _general(reason: str, name: str) -> str:
    """A reason without the image's name, so that equal ones count together."""
    return reason.replace(f"{name}.png", "it").replace(name, "it")


def requests(
    user: Annotated[str | None, typer.Option(help="Only this user's.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 20,
) -> None:
    """List restore requests, newest first (operator)."""
    from storage.registry import open_registry
    from storage.settings import settings

    with open_registry(settings()) as registry:
        found = registry.list_requests(user, limit=limit)
    if not found:
        console.finished("There is no request yet.", then=["dmcp request SOURCE"])
        return
    rows = [
        (
            r.id,
            r.user.name,
            r.source,
            r.state,
            r.images,
            r.restored,
            r.refused,
            f"{r.created:%Y-%m-%d %H:%M}",
            r.message,
        )
        for r in found
    ]
    columns = ("request", "user", "source", "state", "images", "restored", "refused", "made (UTC)", "message")
    console.table(columns, rows, right=("images", "restored", "refused"))
