"""Restore requests: what a requester hands in, and how the results get back under the requester's own names.

    request_id = submit_request(registry, private, token, "my-images", work=work)     # folder, shard folder, tar, zip
    request_id = submit_request(registry, private, token, "cifar10@latest", work=work, public=public)
    request_id = submit_request(registry, private, token, "data/x/protected", work=work, in_place=True)   # operator

Whoever serves the request (a flow, which checks the grant for every key that it is asked to use):

    index = fetch_index(private, registry.get_request(request_id))
    for number, entry in enumerate(index.shards):
        path = fetch_input(private, request_id, index, entry, work, public)
        samples = wanted(index, read_shard(path))                   # restore these
        infos.append(write_shard(work / result_name(number), restored))
        put_result(private, request_id, work, infos[-1])
    put_report(private, make_report(request_id, index, infos, restored_keys, refused))

and the requester again:

    unpacked = fetch_results(private, request_id, out, work)

Submitting checks the token and that the user holds a grant at all, so that nobody uploads in vain; it decides nothing.
The request is recorded last: one that was cut off half-way leaves no request, and what it uploaded is removed.
`tasks/request_index.py` says what lies in the bucket.
"""

import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from storage.errors import CorruptManifest, CorruptShard, DmcpError, NoGrant, NotFound, UsageError
from storage.files import Progress, sha256_file
from storage.objects import ObjectStore
from storage.registry import Registry, Request, User, new_request_id
from storage.shards import Sample, ShardInfo
from storage.transfer import Meter, in_parallel
from storage.versions import shard_key
from tasks.request_index import (
    INDEX_NAME,
    REPORT_NAME,
    InputShard,
    Local,
    Published,
    RefusedFile,
    RequestIndex,
    RequestReport,
    Uploaded,
    parse_index,
    parse_report,
    request_key,
    result_name,
)
from tasks.request_pack import PackedSource, pack_source
from tasks.request_results import Unpacked, check_out, unpack_results
from tasks.request_sources import Limits
from tasks.request_variants import local_index, parse_published, published_index

__all__ = [
    "InputShard",
    "Limits",
    "PackedSource",
    "RefusedFile",
    "RequestIndex",
    "RequestReport",
    "Unpacked",
    "fetch_index",
    "fetch_input",
    "fetch_results",
    "make_report",
    "pack_source",
    "put_report",
    "put_result",
    "result_name",
    "submit_request",
    "unpack_results",
    "wanted",
]

TRANSFERS = 4  # files uploaded at once


# --- the requester ---------------------------------------------------------------------------------------------------


def submit_request(
    registry: Registry,
    store: ObjectStore,
    token: str,
    source: str | Path,
    *,
    work: Path,
    public: ObjectStore | None = None,
    subset: Sequence[str] | None = None,
    dataset: str | None = None,
    in_place: bool = False,
    shard_size: int = 1000,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> str:
    """Hand in a restore request and return its id.

    Args:
        registry: checks the token and records the request.
        store: the private bucket; created when missing.
        token: the requester's.
        source: a path that exists (folder of PNGs, folder of shards, tar, zip, one PNG), or a published version:
            `DATASET@VERSION`, `DATASET@latest`, or `DATASET` where no path is called so.
        work: a folder for shards on their way; what is put there is removed again.
        public: the public bucket, for published versions.
        subset: of a published version or a local variant, the sample keys or shard names that are wanted.
        dataset: the data set it is about, where the requester says so: then the grant for it is checked beforehand.
        in_place: read a local variant where it lies, uploading nothing: for who serves the request on this machine.
        shard_size: images in an input shard of loose files.
        limits: what is taken at most.
        progress: told images packed, then bytes uploaded.

    Raises:
        BadToken, NoGrant, GrantExpired, GrantRevoked: the requester may not have anything (or this) restored.
        InputError, CorruptManifest: the source holds nothing that could be restored.
        NotFound: no such published version, or it has no shard of such a name.
        UsageError: a subset of loose files, or a name that makes no sense.
        ObjectStoreError: the upload failed; nothing of it stays.
    """
    user = registry.authenticate(token)
    published = None if in_place else parse_published(source)
    _check_grants(registry, user, published[0] if published else dataset)
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work, prefix="request-") as name:
        if published is not None:
            index = published_index(_public(public), *published, subset)
        elif in_place:
            index = local_index(Path(source), subset)
        elif subset is not None:
            raise UsageError("A subset of loose files can not be named.", "Hand in only the files that are wanted.")
        else:
            index = pack_source(Path(source), Path(name), shard_size, limits, progress).index
        if index.variant is not None and not isinstance(index.origin, Uploaded):
            dataset = index.variant.dataset
            registry.check_grant(user.id, dataset)
        return _record(registry, store, user, index, str(source), dataset, subset, Path(name), progress)


def fetch_results(
    store: ObjectStore, request_id: str, out: Path, work: Path, progress: Progress | None = None
) -> Unpacked:
    """Download what was restored for a request and write it to `out`, see `unpack_results`.

    Raises:
        NotFound: the request was not served yet.
        UsageError: `out` holds something.
        CorruptShard, CorruptManifest: what lies in the bucket is not what was put there.
        ObjectStoreError: the server failed.
    """
    check_out(out)
    try:
        report = parse_report(store.get_bytes(request_key(request_id, REPORT_NAME)))
        index = parse_index(store.get_bytes(request_key(request_id, INDEX_NAME)))
    except NotFound as error:
        raise NotFound(f"There is no result of request {request_id} yet.", "Restore it: dmcp restore.") from error
    if report.request_id != request_id:
        raise CorruptManifest(f"The report of request {request_id} is another's.", "Restore it again.")
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work, prefix="results-") as name:
        folder = Path(name)

        def fetch(info: ShardInfo) -> Path:
            path = folder / "result.tar"  # one at a time
            store.get_file(request_key(request_id, info.name), path, info.sha256, info.bytes)
            return path

        return unpack_results(index, report, fetch, out, progress)


# --- whoever serves it -----------------------------------------------------------------------------------------------


def fetch_index(store: ObjectStore, request: Request) -> RequestIndex:
    """The index of a request's input.

    Raises:
        CorruptManifest: it is missing, not valid, or not what the registry recorded: an index decides which files of
            this machine or of the public bucket are read, so it is believed only where the registry says the same.
    """
    try:
        index = parse_index(store.get_bytes(request_key(request.id, INDEX_NAME)))
    except NotFound as error:
        raise CorruptManifest(f"Request {request.id} has no input any more.", "Make the request again.") from error
    same_source = isinstance(index.origin, Uploaded) or index.origin.source == request.source
    if index.origin.kind != request.kind or not same_source:
        raise CorruptManifest(f"The input of request {request.id} is not what was requested.", "Make it again.")
    return index


def fetch_input(
    store: ObjectStore,
    request_id: str,
    index: RequestIndex,
    entry: InputShard,
    work: Path,
    public: ObjectStore | None = None,
) -> Path:
    """The verified file of one input shard: downloaded into `work`, or where it lies when it is a local variant's.

    Raises:
        CorruptShard: its size or SHA-256 is not the index's.
        NotFound: it is gone.
        ObjectStoreError: the server failed.
    """
    shard, origin = entry.shard, index.origin
    if isinstance(origin, Local):
        local = Path(origin.source, entry.target or shard.name)
        if not local.is_file() or sha256_file(local) != shard.sha256:
            raise CorruptShard(f"{local} is not what was requested: it changed.", "Make the request again.")
        return local
    path = work / shard.name
    if isinstance(origin, Published):
        _public(public).get_file(shard_key(origin.dataset, shard), path, shard.sha256, shard.bytes)
    else:
        store.get_file(request_key(request_id, shard.name), path, shard.sha256, shard.bytes)
    return path


def wanted(index: RequestIndex, samples: Iterable[Sample]) -> list[Sample]:
    """The samples of an input shard that the request asks for."""
    if index.keys is None:
        return list(samples)
    keys = set(index.keys)
    return [sample for sample in samples if sample.key in keys]


def put_result(store: ObjectStore, request_id: str, folder: Path, info: ShardInfo) -> None:
    """Upload one result shard, `folder/result-NNNNNN.tar`."""
    store.put_file(folder / info.name, request_key(request_id, info.name), info.sha256, "application/x-tar")


def make_report(
    request_id: str,
    index: RequestIndex,
    results: Sequence[ShardInfo],
    restored: Iterable[str],
    refused: Sequence[RefusedFile],
) -> RequestReport:
    """The report of a served request.

    Args:
        request_id: the request.
        index: its input.
        results: the result shards; those without a sample are left out and need not be put.
        restored: keys of the restored samples.
        refused: the others, named by their sample keys. Keys asked for that are in neither are added as not found.
    """
    known = {*restored, *(refusal.name for refusal in refused)}
    absent = [
        RefusedFile(name=key, error="NotFound", reason="there is no sample of this key")
        for key in index.keys or ()
        if key not in known
    ]
    return RequestReport(
        request_id=request_id,
        images=index.images,
        restored=sum(info.samples for info in results),
        results=[info for info in results if info.samples],
        refused=[*refused, *absent],
    )


def put_report(store: ObjectStore, report: RequestReport) -> str:
    """Upload the report, which makes the results readable, and return its object key."""
    key = request_key(report.request_id, REPORT_NAME)
    store.put_bytes(key, report.model_dump_json().encode(), content_type="application/json")
    return key


# --- inside ----------------------------------------------------------------------------------------------------------


def _check_grants(registry: Registry, user: User, dataset: str | None) -> None:
    """That the user may have this data set, or (None) any at all, restored; else why not."""
    if dataset is not None:
        registry.check_grant(user.id, dataset)
    elif not registry.datasets_granted(user.id):
        grants = registry.list_grants(user.name)
        if not grants:
            raise NoGrant(
                f"{user.name} holds no grant.", f"An owner can give one: dmcp access grant {user.name} DATASET"
            )
        registry.check_grant(user.id, max(grants, key=lambda grant: grant.created).dataset)


def _record(
    registry: Registry,
    store: ObjectStore,
    user: User,
    index: RequestIndex,
    source: str,
    dataset: str | None,
    subset: Sequence[str] | None,
    folder: Path,
    progress: Progress | None,
) -> str:
    """Upload input and index, then record the request; after an error remove what was uploaded."""
    request_id = new_request_id()
    origin = index.origin
    uploads = [entry.shard for entry in index.shards] if isinstance(origin, Uploaded) else []
    meter = Meter("upload", sum(shard.bytes for shard in uploads), progress)

    def upload(shard: ShardInfo) -> None:
        key = request_key(request_id, shard.name)
        store.put_file(folder / shard.name, key, shard.sha256, "application/x-tar", meter.add)

    store.ensure_bucket()
    try:
        in_parallel(upload, uploads, TRANSFERS)
        data = index.model_dump_json().encode()
        store.put_bytes(request_key(request_id, INDEX_NAME), data, content_type="application/json")
        return registry.create_request(
            user.id,
            origin.kind,
            dataset,
            source if isinstance(origin, Uploaded) else origin.source,
            subset,
            images=index.images + len(index.refused),
            request_id=request_id,
        )
    except BaseException:
        for name in [INDEX_NAME, *(shard.name for shard in uploads)]:
            with suppress(DmcpError):
                store.delete(request_key(request_id, name))
        raise


def _public(public: ObjectStore | None) -> ObjectStore:
    if public is None:
        raise UsageError("A published version is asked for and no public bucket is given.", "Name the public store.")
    return public
