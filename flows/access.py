"""Keys and grants, as the stages use them: which key a data set is protected under, and who may have it restored.

`data/DATASET/key_id.txt` holds the public id of the data set's key, for DVC to see: protect and restore depend on it.
The key itself never leaves the vault but into the memory of the thread that seals or opens.
"""

from pathlib import Path

from flows.console import note
from storage.errors import NotFound, UnknownKey
from storage.files import write_atomic
from storage.keys import open_vault
from storage.names import check_key_id
from storage.registry import Registry, User, open_registry
from storage.settings import settings
from tasks.method.seal import DataKey

PIPELINE_USER = "pipeline"
"""The built-in user for whom the restore stage asks. Its grants stand in `dmcp access list` like all others."""


def key_id_file(dataset: str) -> Path:
    """Where the public id of the data set's key lies."""
    return settings().data_path(dataset, "key_id.txt")


def ensure_key(dataset: str) -> str:
    """The id of the key that the data set is protected under from now on: its newest, or its first, made here and now.

    Raises:
        UnknownKey: the data set was protected under a key that this vault lacks, and there is no newer one.
    """
    vault = open_vault(settings())
    path = key_id_file(dataset)
    before = check_key_id(path.read_text().strip()) if path.exists() else None
    try:
        key_id = vault.current(dataset).key_id
    except UnknownKey:
        if before is not None:
            raise _lost(dataset, before) from None
        key_id = vault.create(dataset).key_id
        note(f"Made the key {key_id} for {dataset} in {vault.path}: back it up, nothing is restored without it.")
    if key_id != before:
        if before is not None:
            note(f"{dataset} is protected under the key {key_id} from now on, no longer under {before}.")
        write_atomic(path, f"{key_id}\n".encode())
    return key_id


def _lost(dataset: str, key_id: str) -> UnknownKey:
    return UnknownKey(
        f"{dataset} was protected under the key {key_id}, which is not in the vault.",
        f"Restore the vault from your backup, or begin anew with `dmcp key create {dataset}`: "
        "what the old key protected is then restored by nobody.",
    )


def current_key_id(dataset: str) -> str:
    """The id that `ensure_key` wrote, for a key that the vault holds.

    Raises:
        UnknownKey: no id was written yet, or the vault does not hold that key.
    """
    try:
        key_id = check_key_id(key_id_file(dataset).read_text().strip())
    except FileNotFoundError:
        raise UnknownKey(f"{dataset} has no key yet.", f"Run: make run DATASET={dataset}, or dmcp run.") from None
    if all(record.key_id != key_id for record in open_vault(settings()).list()):
        raise _lost(dataset, key_id)
    return key_id


def data_key(key_id: str) -> DataKey:
    """The key itself, out of the vault. Raises UnknownKey, VaultLocked."""
    vault = open_vault(settings())
    return DataKey(vault.secret(key_id), vault.dataset_of(key_id))


def ensure_pipeline_access(registry: Registry, dataset: str) -> User:
    """The user of the restore stage, with a grant for the data set.

    The owner runs the pipeline on the owner's own machine and vault, so running it is the authorisation; it is put on
    record here, and revoking it (`dmcp access revoke pipeline DATASET`) lasts until the pipeline runs again.
    """
    try:
        registry.get_user(PIPELINE_USER)
    except NotFound:
        registry.add_user(PIPELINE_USER)  # its token is thrown away: nobody can hand in requests in its name
    registry.grant(PIPELINE_USER, dataset)
    return registry.get_user(PIPELINE_USER)


def prepare(dataset: str) -> None:
    """What the stages need besides data: the key that protects, and the grant of the pipeline's own user."""
    ensure_key(dataset)
    with registry() as book:
        ensure_pipeline_access(book, dataset)


def registry() -> Registry:
    """The registry of these settings."""
    return open_registry(settings())
