"""`dmcp key`: make and list the data sets' keys. No command ever shows a key, only its public id."""

from __future__ import annotations

from typing import Annotated

import typer

from flows import console

app = typer.Typer(no_args_is_help=True, help="Make and list keys (owner). Keys stay in the vault; only ids are shown.")

Name = Annotated[str | None, typer.Argument(metavar="DATASET", help="The data set's name.")]
NameOption = Annotated[str | None, typer.Option("--dataset", help="The same, as an option.")]


def register(root: typer.Typer) -> None:
    """Add the group to the command tree."""
    root.add_typer(app, name="key", rich_help_panel="Owner")


@app.command()
def create(name: Name = None, dataset: NameOption = None) -> None:
    """Make the data set's key: its first, or its next (older ones stay and keep restoring what they protected)."""
    from storage.errors import UsageError
    from storage.keys import open_vault
    from storage.settings import settings

    wanted = dataset or name
    if wanted is None:
        raise UsageError("No data set is named.", "Say which: dmcp key create DATASET")
    vault = open_vault(settings())
    record = vault.create(wanted)
    folder = console.shown(settings().data_path(record.dataset))
    console.finished(
        f"Made key {record.key_id}, number {record.epoch} of {record.dataset}.",
        [("vault", console.shown(vault.path)), ("unlocked by", _unlocked_by())],
        [
            "back up the vault and what unlocks it, in two different places: without them nothing is ever restored",
            f"dmcp protect {folder}/clean {folder}/protected",
        ],
    )


def _unlocked_by() -> str:
    from storage.settings import settings

    if settings().vault_passphrase is not None:
        return "the passphrase DMCP_VAULT_PASSPHRASE"
    return console.shown(settings().vault_key_file or settings().home_path("vault.key"))


@app.command(name="list")
def list_keys() -> None:
    """List the keys: public id, data set, number, when it was made."""
    from storage.keys import open_vault
    from storage.settings import settings

    records = open_vault(settings()).list()
    if not records:
        console.finished("The vault holds no key yet.", then=["dmcp key create DATASET"])
        return
    rows = [(r.key_id, r.dataset, r.epoch, f"{r.created:%Y-%m-%d %H:%M} UTC") for r in records]
    console.table(("key id", "data set", "number", "made"), rows, right=("number",))
