"""Keys and grants, as the stages use them: which key a data set is protected under, and who may have it restored.

`data/DATASET/key_id.txt` holds the public id of the data set's key, for DVC to see: protect and restore depend on it.
The key itself never leaves the vault but into the memory of the thread that seals or opens.
"""

from contextlib import suppress
from pathlib import Path

from flows.console import note
from storage.audit import open_audit_log
from storage.errors import NotFound, UnknownKey, UsageError
from storage.files import write_atomic
from storage.keys import DataKeyRecord, Vault, open_vault
from storage.names import check_key_id
from storage.registry import Registry, Role, User, open_registry
from storage.settings import Settings, settings
from tasks.method.seal import DataKey

PIPELINE_USER = "pipeline"
"""The built-in user for whom the restore stage asks. Its grants stand in `dmcp access list` like all others."""

VISITOR = "visitor"
"""The built-in user of the trial after a pipeline run (`flows/roundtrip.py`), whose grant lasts as long as that."""

BUILT_IN = (PIPELINE_USER, VISITOR)
"""Whose requests are served by the process that asks, and by no other."""

OWNER_USER = "owner"
"""The built-in user who owns the data sets of this pipeline, until they are transferred to someone else."""


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
        key_id = make_key(vault, dataset, PIPELINE_USER).key_id
        note(f"Made the key {key_id} for {dataset} in {vault.path}: back it up, nothing is restored without it.")
    if key_id != before:
        if before is not None:
            note(f"{dataset} is protected under the key {key_id} from now on, no longer under {before}.")
        write_atomic(path, f"{key_id}\n".encode())
    return key_id


def make_key(vault: Vault, dataset: str, actor: str) -> DataKeyRecord:
    """Make a data set's next key. The audit log names it before the vault holds it: no key is ever without its entry.

    Raises:
        EnvironmentFault: the log can not be written; no key is made.
        UsageError, VaultLocked, KeyVaultError, WorkspaceBusy: as `Vault.create`.
    """
    with open_audit_log(settings()) as log:

        def announce(record: DataKeyRecord) -> None:
            log.record(actor, "key.create", dataset=dataset, subject=record.key_id, details={"epoch": record.epoch})

        return vault.create(dataset, announce=announce)


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
        raise UnknownKey(
            f"{dataset} has no key yet.",
            f"Run: dmcp run --dataset {dataset}, which takes the one that `dmcp key create` made, or makes it.",
        ) from None
    if all(record.key_id != key_id for record in open_vault(settings()).list()):
        raise _lost(dataset, key_id)
    return key_id


def data_key(key_id: str) -> DataKey:
    """The key itself, out of the vault. Raises UnknownKey, VaultLocked."""
    vault = open_vault(settings())
    return DataKey(vault.secret(key_id), vault.dataset_of(key_id))


def ensure_pipeline_access(registry: Registry, dataset: str) -> User:
    """The user of the restore stage, with a grant for the data set.

    The owner runs the pipeline on the owner's own machine and vault, so running it is the authorisation, and the
    acceptance of the owner's own terms; both are put on record here, and revoking the grant (`dmcp access revoke
    pipeline DATASET`) lasts until the pipeline runs again.
    """
    ensure_dataset(registry, dataset)
    pipeline = ensure_user(registry, PIPELINE_USER)
    registry.grant(PIPELINE_USER, dataset, actor=PIPELINE_USER)
    accept_current_terms(registry, pipeline, dataset)
    return pipeline


def ensure_dataset(registry: Registry, dataset: str, *, actor: str = PIPELINE_USER) -> None:
    """Put a data set that the registry does not know on record, as the user OWNER_USER's: nobody else can claim it."""
    try:
        registry.get_dataset(dataset)
    except NotFound:
        ensure_user(registry, OWNER_USER, "owner")
        registry.register_dataset(dataset, OWNER_USER, actor=actor)


def adopt_datasets(registry: Registry, conf: Settings | None = None) -> None:
    """Put the data sets of which this vault holds keys on record, as far as the registry does not know them.

    Keys may be older than the registry, or made by an earlier release; a data set that has a key here is not free for
    whoever registers its name first.

    Raises:
        KeyVaultError: the vault can not be read.
    """
    known = {dataset.name for dataset in registry.list_datasets()}
    for name in sorted({record.dataset for record in open_vault(conf or settings()).list()} - known):
        ensure_dataset(registry, name)


def ensure_user(registry: Registry, name: str, role: Role = "user") -> User:
    """A built-in user, made if missing; the token is thrown away, so nobody can come in its name before it gets one."""
    try:
        return registry.get_user(name)
    except NotFound:
        with suppress(UsageError):  # another run made it meanwhile
            registry.add_user(name, role, actor=PIPELINE_USER)
        return registry.get_user(name)


def accept_current_terms(registry: Registry, user: User, dataset: str) -> None:
    """Accept the data set's terms for a built-in user, who is the owner in another coat."""
    terms = registry.current_terms(dataset)
    if terms is not None:
        registry.accept_terms(user.id, dataset, terms.version, actor=PIPELINE_USER)


def prepare(dataset: str) -> None:
    """What the stages need besides data: the key that protects, and the grant of the pipeline's own user."""
    ensure_key(dataset)
    with registry() as book:
        adopt_datasets(book)
        ensure_pipeline_access(book, dataset)


def registry() -> Registry:
    """The registry of these settings."""
    return open_registry(settings())
