"""`dmcp audit`: look at the audit log, prove that nothing in it was changed, take it out (operator, auditor)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows import console
from flows.commands import common

if TYPE_CHECKING:
    from storage.audit import AuditLog, AuditVerdict
    from storage.audit_chain import Anchors
    from storage.audit_checkpoints import Checkpoint

app = typer.Typer(no_args_is_help=True, help="The audit log: look at it, verify it, export it, anchor it (operator).")

Dataset = Annotated[str | None, typer.Option(help="Only what is about this data set.")]
Actor = Annotated[str | None, typer.Option(help="Only what this user, or part of the service, did.")]
Action = Annotated[str | None, typer.Option(help="Only this action, such as grant.create, or a group of them: grant.")]
Request = Annotated[str | None, typer.Option(help="Only what is about this restore request.")]
After = Annotated[int, typer.Option(min=0, metavar="NUMBER", help="Only entries after this one.")]


def register(root: typer.Typer) -> None:
    """Add the group to the command tree."""
    root.add_typer(app, name="audit", rich_help_panel="Owner")


def _log() -> AuditLog:
    from storage.audit import open_audit_log
    from storage.settings import settings

    return open_audit_log(settings())


@app.command()
def show(
    last: Annotated[int, typer.Option(min=1, max=100_000, help="How many entries, the newest ones.")] = 50,
    after: After = 0,
    dataset: Dataset = None,
    actor: Actor = None,
    action: Action = None,
    request: Request = None,
) -> None:
    """Show the newest entries: who did what, when, with which data set and request."""
    with _log() as log:
        found = log.entries(after, last, dataset=dataset, actor=actor, action=action, request_id=request, newest=True)
    if not found:
        console.finished("There is no such entry in the audit log.")
        return
    rows = [(e.seq, e.time, e.actor, e.action, e.dataset, e.request_id, _line(e.subject), e.details) for e in found]
    headings = ("number", "time", "actor", "action", "data set", "request", "subject", "details")
    console.table(headings, rows, right=("number",))


def _line(text: str) -> str:
    """On one line, without what a terminal would obey: subjects hold names that others chose."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


@app.command()
def verify(
    public_key: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The public key(s) that checkpoints are signed under; default HOME/audit.pub."
        ),
    ] = None,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A copy of a checkpoint that was kept elsewhere. Repeatable."),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="Check an export (JSON lines, of all entries), not the database."),
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Do not ask the object store: only the checkpoints kept here are known.")
    ] = False,
) -> None:
    """Check every entry, the chain between them, and the signed checkpoints. Exit code 3: something was changed.

    The private key is not needed. Entries after the last checkpoint are chained, but nothing outside the database
    vouches for them yet.
    """
    _check_there([path for path in (public_key, *(checkpoint or ()), export) if path is not None])
    with _log() as log:
        anchors = _anchors(log, public_key, checkpoint or [], offline)
        with console.progress("Verifying") as progress:
            if export is None:
                verdict = log.verify(anchors, progress)
            else:
                from storage.audit_chain import check_chain
                from storage.audit_export import read_export

                verdict = check_chain(read_export(export), anchors)
    _show_verdict(verdict)
    verdict.check()


def _check_there(paths: list[Path]) -> None:
    """That the files to check by are there: of `verify`, exit code 3 means an altered log and nothing else."""
    from storage.errors import SettingsError

    for path in paths:
        if not path.is_file():
            raise SettingsError(f"There is no file {path}, so nothing was verified.", "Check the path.")


def _anchors(log: AuditLog, public_key: Path | None, copies: list[Path], offline: bool) -> Anchors:
    from storage.audit_checkpoints import read_anchors
    from storage.audit_keys import read_public_keys

    pinned = read_public_keys(public_key) if public_key is not None else log.home.pinned()
    others = [_copy(path) for path in copies]
    if offline:
        return read_anchors(None, pinned, log.home, others)
    with common.store_of("private") as store:
        return read_anchors(store, pinned, log.home, others)


def _copy(path: Path) -> Checkpoint:
    from storage.audit_checkpoints import decode_checkpoint
    from storage.errors import AuditBroken

    found = decode_checkpoint(path.read_bytes())
    if found is None:
        raise AuditBroken(f"{path} is no checkpoint.", "Name a file as it was copied from audit/checkpoints/.")
    return found


def _show_verdict(verdict: AuditVerdict) -> None:
    for line in verdict.notes:
        console.note(line)
    if not verdict.ok:
        console.note(f"{verdict.entries:,} entries hold together up to the fault; {verdict.anchored:,} are anchored.")
        return
    anchored = f"{verdict.anchored:,} ({verdict.anchored_at})" if verdict.anchored else "none"
    console.finished(
        f"The audit log verifies: {verdict.entries:,} entries.",
        [
            ("last hash", verdict.head),
            ("checkpoints", f"{verdict.checkpoints:,}"),
            ("anchored up to entry", anchored),
            ("entries since", f"{verdict.since:,}"),
        ],
        ["dmcp audit checkpoint"] if verdict.since else [],
    )


@app.command(name="export")
def export_log(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write, or - for stdout.")],
    form: Annotated[
        str | None,
        typer.Option("--format", metavar="FORMAT", help="jsonl or csv; default: by the file's name, else jsonl."),
    ] = None,
    after: After = 0,
    dataset: Dataset = None,
    actor: Actor = None,
    action: Action = None,
    request: Request = None,
) -> None:
    """Write the log to a file, as JSON lines or CSV. All of it as JSON lines can be verified like the log itself."""
    from storage.audit_export import FORMATS, export_file
    from storage.audit_export import export as stream
    from storage.errors import UsageError

    named = form or ("csv" if out.suffix.lower() == ".csv" else "jsonl")
    chosen = next((known for known in FORMATS if known == named), None)
    if chosen is None:
        raise UsageError(f"--format {named} is unknown.", f"One of: {', '.join(FORMATS)}.")
    filters: dict[str, Any] = {"dataset": dataset, "actor": actor, "action": action, "request_id": request}
    with _log() as log:
        links = log.links(after, **filters)
        if str(out) == "-":
            stream(links, sys.stdout.buffer, chosen)
            sys.stdout.buffer.flush()
            return
        count = export_file(links, out, chosen)
    whole = chosen == "jsonl" and not after and not any(filters.values())
    console.finished(
        f"Wrote {count:,} entries.",
        [("file", console.shown(out))],
        [f"dmcp audit verify --from {out}"] if whole else [],
    )


@app.command()
def checkpoint() -> None:
    """Anchor the log now: sign its last entry's hash and put that into the object store. Makes the key if need be."""
    from storage.audit_checkpoints import UNCONDITIONAL, conditional

    with _log() as log, common.store_of("private") as store:
        made = log.checkpoint(store)
        if made is None:
            console.finished("The audit log is empty: there is nothing to anchor.")
            return
        where = store.where(made.key)
        if conditional(log.home) is False:
            console.note(UNCONDITIONAL)
    console.finished(
        f"Entry {made.seq:,} and all before it are anchored, signed {made.time} under key {made.key_id}.",
        [("checkpoint", where), ("public key", console.shown(log.home.public))],
        ["keep a copy of checkpoint and public key where nobody of this machine can change them"],
    )
