"""`dmcp key`: the data sets' keys and the vault that holds them. No command ever shows a key, only its public id."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows import console

if TYPE_CHECKING:
    from pydantic import SecretStr

    from storage.key_encryption import Unlock
    from storage.keys import DataKeyRecord, Vault

app = typer.Typer(no_args_is_help=True, help="Keys and their vault (owner). Keys stay in it; only ids are shown.")

Name = Annotated[str | None, typer.Argument(metavar="DATASET", help="The data set's name.")]
NameOption = Annotated[str | None, typer.Option("--dataset", help="The same, as an option.")]

NEW_PASSPHRASE = "DMCP_VAULT_NEW_PASSPHRASE"
BACKUP_PASSPHRASE = "DMCP_VAULT_BACKUP_PASSPHRASE"


def register(root: typer.Typer) -> None:
    """Add the group to the command tree."""
    root.add_typer(app, name="key", rich_help_panel="Owner")


def _vault() -> Vault:
    from storage.keys import open_vault
    from storage.settings import settings

    return open_vault(settings())


@app.command()
def create(name: Name = None, dataset: NameOption = None) -> None:
    """Make the data set's key: its first, or its next (older ones stay and keep restoring what they protected)."""
    from flows import access
    from storage.errors import UsageError
    from storage.settings import settings

    wanted = dataset or name
    if wanted is None:
        raise UsageError("No data set is named.", "Say which: dmcp key create DATASET")
    vault = _vault()
    record = access.make_key(vault, wanted, "local")
    folder = console.shown(settings().data_path(record.dataset))
    console.finished(
        f"Made key {record.key_id}, number {record.epoch} of {record.dataset}.",
        [("vault", console.shown(vault.path)), ("unlocked by", _unlocked_by(vault))],
        [
            "dmcp key backup FILE, on another disk; and keep what unlocks the vault in a second place",
            f"dmcp protect {folder}/clean {folder}/protected",
        ],
    )
    with access.registry() as book:
        access.ensure_dataset(book, record.dataset, actor="local")
        access.adopt_datasets(book)


def _unlocked_by(vault: Vault) -> str:
    opened = vault.read()
    kind = opened.contents.key_encryption.kind if opened else "key-file"
    if kind == "passphrase":
        return "the passphrase DMCP_VAULT_PASSPHRASE"
    if kind == "key-file":
        return console.shown(vault.unlock.key_file)
    return str(opened.contents.key_encryption) if opened else ""


@app.command(name="list")
def list_keys() -> None:
    """List the keys: public id, data set, number, when it was made."""
    vault = _vault()
    records = vault.list()
    if not records:
        there = vault.path.exists()
        console.finished(
            "The vault holds no key yet." if there else "There is no vault here yet.",
            [("vault", vault.path)],  # whole: which folder it lies in is what may be wrong
            [
                "where you made one elsewhere: go to that folder, or set DMCP_HOME",
                "else: dmcp key create DATASET",
            ],
        )
        return
    rows = [(r.key_id, r.dataset, r.epoch, f"{r.created:%Y-%m-%d %H:%M} UTC") for r in records]
    console.table(("key id", "data set", "number", "made"), rows, right=("number",))


@app.command()
def check(
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="A backup instead of the vault.")] = None,
    passphrase: Annotated[
        bool, typer.Option("--passphrase", help=f"The backup has a passphrase of its own ({BACKUP_PASSPHRASE}).")
    ] = False,
) -> None:
    """Open every key, in the vault or in a backup: what opens now is not lost."""
    from storage.key_safety import check as opening

    vault = _backup_at(file, passphrase) if file else _vault()
    records = opening(vault)
    opens = "its passphrase" if file and passphrase else _unlocked_by(vault)
    console.finished(
        f"All keys open: {_count(records)}.", [("vault", console.shown(vault.path)), ("unlocked by", opens)]
    )


@app.command()
def rotate(
    to: Annotated[
        str, typer.Option("--to", metavar="URI", help="passphrase:, file:PATH, aws-kms://... or hashivault://...")
    ],
    keep: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep a copy of the vault as it is now; by default none is.")
    ] = None,
) -> None:
    """Lock the vault with another key: every data key is wrapped anew; the keys and all images stay as they are.

    A new passphrase is asked for, or taken from DMCP_VAULT_NEW_PASSPHRASE.
    """
    from storage.key_encryption import Unlock
    from storage.key_safety import rotate as rotating
    from storage.settings import settings

    vault = _vault()
    phrase = _new_passphrase(NEW_PASSPHRASE, "New passphrase") if to == "passphrase:" else None
    unlock = Unlock.parse(to, settings().vault_key_file or settings().home_path("vault.key"), phrase)
    with _audit_key_follows(vault, phrase):
        done = rotating(vault, unlock, keep)
    opens = {"passphrase": "the new passphrase", "key-file": console.shown(unlock.key_file)}
    where = [("vault", console.shown(vault.path)), ("unlocked by", opens.get(str(unlock.kek), done.after))]
    if keep is not None:
        where.append(("as it was", console.shown(keep)))
    console.finished(
        f"Locked the vault anew: {_count(done.keys)}.",
        where,
        [
            _what_to_set(unlock, to),
            "restart what runs (dmcp down, dmcp up), then dmcp key check",
            "back up anew, then destroy older backups if the old key is out: it still opens them",
        ],
    )
    _record("key.rotate", str(vault.path.name), {"from": done.before, "to": done.after, "keys": len(done.keys)})


@contextmanager
def _audit_key_follows(vault: Vault, phrase: SecretStr | None) -> Iterator[None]:
    """The audit log's signing key is locked with the vault's passphrase: it goes along, first, and back on failure.

    Killed in between, the vault opens as before, and rotating again finds the signing key locked anew already.
    """
    from dataclasses import replace

    from storage.audit_keys import audit_home
    from storage.errors import VaultLocked
    from storage.settings import settings

    opened = vault.read()
    if opened is None or (phrase is None and opened.contents.key_encryption.kind != "passphrase"):
        yield
        return
    home = audit_home(settings())
    done = replace(home, passphrase=phrase)
    try:
        home.lock_anew(phrase)
    except VaultLocked:
        if phrase is None:
            raise
        done.lock_anew(phrase)
    try:
        yield
    except BaseException:
        done.lock_anew(home.passphrase)
        raise


def _what_to_set(unlock: Unlock, uri: str) -> str:
    if unlock.kek == "passphrase":
        return "set DMCP_VAULT_PASSPHRASE to the new one wherever the vault is used"
    shown = f"file:{unlock.key_file.resolve()}" if unlock.kek == "key-file" else f"'{uri}'"
    return f"set DMCP_VAULT_KEK={shown} wherever the vault is used"


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A new file, best on another disk.")],
    passphrase: Annotated[
        bool, typer.Option("--passphrase", help=f"Lock the copy with a passphrase of its own ({BACKUP_PASSPHRASE}).")
    ] = False,
) -> None:
    """Copy the vault to a file, and open every key in it.

    The copy opens with what opens the vault; --passphrase makes one that opens with a passphrase alone, for a safe.
    """
    from storage.key_safety import backup as copying

    vault = _vault()
    phrase = _new_passphrase(BACKUP_PASSPHRASE, "Passphrase of the backup") if passphrase else None
    records = copying(vault, file, phrase)
    opens = "its passphrase" if passphrase else _unlocked_by(vault)
    flag = " --passphrase" if passphrase else ""
    console.finished(
        f"Backed up the vault: {_count(records)}; each was opened from the copy.",
        [("backup", console.shown(file)), ("opens with", opens)],
        [
            "keep the copy and what opens it in two different places",
            f"to look at it: dmcp key check {console.shown(file)}{flag}",
            f"to put it back: dmcp key restore {console.shown(file)}{flag}",
        ],
    )
    _record("key.backup", file.name, {"keys": len(records), "passphrase": passphrase})


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A backup.")],
    passphrase: Annotated[
        bool, typer.Option("--passphrase", help=f"The backup has a passphrase of its own ({BACKUP_PASSPHRASE}).")
    ] = False,
    merge: Annotated[bool, typer.Option("--merge", help="Keep keys of the vault that the backup lacks.")] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Take the place of a vault that does not open (it is kept beside).")
    ] = False,
) -> None:
    """Put the keys of a backup into the vault, or make the vault from it where there is none. No key is dropped."""
    from storage.key_safety import restore as restoring

    vault = _vault()
    done = restoring(vault, _backup_at(file, passphrase), merge=merge, replacing=replace)
    where = [("vault", console.shown(vault.path)), ("unlocked by", _unlocked_by(vault))]
    if done.aside is not None:
        where.append(("as it was", console.shown(done.aside)))
    what = f"Restored {_count(done.added)}; the vault now holds {_count(done.keys)}."
    console.finished(what if done.added else f"The vault holds all of it already: {_count(done.keys)}.", where)
    details = {"added": [record.key_id for record in done.added], "replaced": done.aside is not None}
    _record("key.restore", file.name, details)


# --- what they share -------------------------------------------------------------------------------------------------


def _count(records: Sequence[DataKeyRecord]) -> str:
    datasets = len({record.dataset for record in records})
    keys = "1 key" if len(records) == 1 else f"{len(records)} keys"
    return f"{keys} of {datasets} data set{'' if datasets == 1 else 's'}" if records else "no key"


def _backup_at(file: Path, passphrase: bool) -> Vault:
    from dataclasses import replace

    from storage.keys import Vault

    unlock = _vault().unlock
    if passphrase:
        unlock = replace(unlock, passphrase=_passphrase(BACKUP_PASSPHRASE, "Passphrase of the backup"))
    return Vault(file, unlock)


def _new_passphrase(variable: str, what: str) -> SecretStr:
    return _passphrase(variable, what, twice=True)


def _passphrase(variable: str, what: str, twice: bool = False) -> SecretStr:
    """A passphrase from the environment, else from the terminal, where it is not shown."""
    from pydantic import SecretStr

    from storage.errors import SettingsError

    given = os.environ.get(variable)
    if not given and sys.stdin.isatty():
        given = typer.prompt(what, hide_input=True, confirmation_prompt=twice, err=True)
    if not given:
        raise SettingsError("No passphrase is given, and there is no terminal to ask at.", f"Set {variable}.")
    return SecretStr(given)


def _record(action: str, subject: str, details: dict[str, object]) -> None:
    """Put it into the audit log: after it was done, and was said; a log that fails then is an error of its own."""
    from storage.audit import open_audit_log
    from storage.settings import settings

    with open_audit_log(settings()) as log:
        log.record("local", action, subject=subject, details=details)
