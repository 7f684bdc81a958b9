"""`dmcp up`, `dmcp down`, `dmcp status`: the local stack, with the gateway for those who have a token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from flows import console

if TYPE_CHECKING:
    from flows.stack import Status

_TITLES = {
    "gateway": "gateway",
    "objects": "object store (S3)",
    "prefect": "Prefect",
    "worker": "Prefect worker",
    "mlflow": "MLflow",
}


def register(root: typer.Typer) -> None:
    """Add the commands to the command tree."""
    root.command(rich_help_panel="Local stack")(up)
    root.command(rich_help_panel="Local stack")(down)
    root.command(rich_help_panel="Local stack")(status)


def up() -> None:
    """Start gateway, object store, Prefect with a worker, and MLflow on loopback; what runs already is kept."""
    from flows import stack
    from storage.settings import settings

    with console.waiting("Starting") as tell:
        found = stack.up(settings(), tell)
    console.finished(
        "The local stack runs, reachable from this machine only.",
        [
            *((_TITLES[service.name], _place(service)) for service in found),
            ("every night", "02:00 UTC, what dmcp run published is brought up to date, and published where it grew"),
            ("logs", _logs()),
        ],
        [*_first_steps(), "dmcp run, dmcp request SOURCE, dmcp restore REQUEST OUT", "dmcp down stops it"],
    )


def _first_steps() -> list[str]:
    """How the first people get in, as long as there is nobody who could let them in through the gateway."""
    from storage.registry import open_registry
    from storage.settings import settings

    with open_registry(settings()) as registry:
        if any(user.role == "operator" and not user.disabled for user in registry.list_users()):
            return []
    return [
        "dmcp access add-user NAME --role operator   prints the first operator's token: log in with it at the gateway",
        "dmcp access add-user NAME --role owner      the same for the owner of a data set",
    ]


def down() -> None:
    """Stop the local stack. Nothing is lost: objects, runs and models stay on disk."""
    from flows import stack
    from storage.settings import settings

    with console.waiting("Stopping") as tell:
        stopped = stack.down(settings(), tell)
    if not stopped:
        console.finished("Nothing was running.", then=["dmcp up"])
        return
    names = ", ".join(_TITLES[name] for name in stopped)
    console.finished(f"Stopped: {names}.", then=["dmcp up starts it again, at the same addresses"])


def status() -> None:
    """Show what runs, and where."""
    from flows import stack
    from storage.settings import settings

    found = stack.status(settings())
    rows = [(_TITLES[s.name], s.state, s.address or None, s.pid, s.log or None) for s in found]
    console.table(("service", "state", "address", "pid", "log"), rows)
    if any(service.state == "stopped" for service in found):
        console.say("Next: dmcp up")


def _place(service: Status) -> str:
    if service.state == "elsewhere":
        return f"{service.address} (set elsewhere, left as it is)"
    return service.address or f"process {service.pid}"


def _logs() -> str:
    from storage.settings import settings

    return console.shown(settings().home_path("logs"))
