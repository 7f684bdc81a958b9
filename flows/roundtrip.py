"""The way of a stranger and of an authorised user, tried for real after every pipeline run.

The published version is fetched as anyone may; without a grant its restoration is refused; with one, a request for its
first shard comes back and is, byte for byte, the shard that the restore stage made.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from flows import access
from flows.console import note
from flows.engine import flow
from flows.restore import serve_request
from flows.services import object_store
from storage.errors import DmcpError, NotAuthorised, NotFound
from storage.files import make_private, scratch_folder, sha256_file
from storage.objects import open_store
from storage.pull import pull
from storage.registry import Registry
from storage.settings import settings
from tasks.request import fetch_results, submit_request

VISITOR = access.VISITOR


@dataclass(frozen=True)
class RoundTrip:
    """What was seen: images fetched by anyone, the refusal without a grant, images that came back with one."""

    pulled: int
    refusal: str
    restored: int


@flow("round-trip")
def round_trip(dataset: str, version: str) -> RoundTrip:
    """Fetch, be refused, be granted, restore, compare.

    Raises:
        DmcpError: something else happened than should.
    """
    work = make_private(settings().home_path("work"), "round-trip")
    with object_store(), access.registry() as book, scratch_folder(work, "trip-") as folder:
        pulled = pull(open_store(settings(), "public"), dataset, folder / "pulled", version)
        shard = sorted((folder / "pulled").glob("*.tar"))[0].name
        token = _visitor(book)
        refusal = _refused(book, token, dataset, version, shard, work)
        with _granted(book, dataset):
            restored = _restored(book, token, dataset, version, shard, folder)
    found = RoundTrip(pulled.samples, refusal, restored)
    note(
        f"Tried: anyone fetches {found.pulled:,} protected images; without a grant: {found.refusal} With one: "
        f"{found.restored:,} images of {shard} came back, the same bytes as the restore stage's."
    )
    return found


def _visitor(book: Registry) -> str:
    """A fresh token of the visitor, who holds no grant."""
    try:
        book.get_user(VISITOR)
    except NotFound:
        return book.add_user(VISITOR, actor=access.PIPELINE_USER)
    return book.rotate_token(VISITOR, actor=access.PIPELINE_USER)


def _refused(book: Registry, token: str, dataset: str, version: str, shard: str, work: Path) -> str:
    with suppress(NotFound):
        book.revoke(VISITOR, dataset, actor=access.PIPELINE_USER)
    try:
        _submit(book, token, dataset, version, shard, work)
    except NotAuthorised as error:
        return error.what
    raise DmcpError(f"A user without a grant could request {dataset}.", "This must not happen: report it.")


@contextmanager
def _granted(book: Registry, dataset: str) -> Iterator[None]:
    book.grant(VISITOR, dataset, datetime.now(UTC) + timedelta(hours=1), actor=access.PIPELINE_USER)
    access.accept_current_terms(book, book.get_user(VISITOR), dataset)
    try:
        yield
    finally:
        book.revoke(VISITOR, dataset, actor=access.PIPELINE_USER)


def _restored(book: Registry, token: str, dataset: str, version: str, shard: str, folder: Path) -> int:
    request_id = _submit(book, token, dataset, version, shard, folder)
    serve_request(request_id)
    done = fetch_results(open_store(settings(), "private"), request_id, folder / "restored", folder)
    expected = settings().data_path(dataset, "recovered", shard)
    if sha256_file(folder / "restored" / shard) != sha256_file(expected):
        raise DmcpError(
            f"The restored {shard} is not the one in {expected.parent}.", "Run `dvc repro`, then try again."
        )
    return done.restored


def _submit(book: Registry, token: str, dataset: str, version: str, shard: str, work: Path) -> str:
    public, private = open_store(settings(), "public"), open_store(settings(), "private")
    return submit_request(
        book, private, token, f"{dataset}@{version}", work=work, public=public, subset=[shard], dataset=dataset
    )
