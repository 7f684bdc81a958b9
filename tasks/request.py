"""Restore requests: what a requester hands in, and how the results get back under the requester's own names.

    request_id = submit_request(registry, private, token, "my-images", work=work)     # folder, shard folder, tar, zip
    request_id = submit_request(registry, private, token, "cifar10@latest", work=work, public=public)
    request_id = submit_request(registry, private, token, "data/x/protected", work=work, in_place=True)   # operator
    request_id = hand_in(registry, private, user, path, work=work, shown="holiday.zip")   # the gateway, for its caller

Whoever serves the request (a flow, which checks the grant for every key that it is asked to use, charges the grant and
makes an entry in the audit log before it puts a result):

    index = fetch_index(private, registry.get_request(request_id))
    for number, entry in enumerate(index.shards):
        path = fetch_input(private, request_id, index, entry, work, public)
        samples = wanted(index, read_shard(path))                   # restore these
        infos.append(write_shard(work / result_name(number), restored))
        put_result(private, request_id, work, infos[-1], attempt)
    attempts = dict.fromkeys((info.name for info in infos), attempt)
    put_report(private, make_report(request_id, index, infos, restored_keys, refused, attempts), attempt)

and the requester again:

    unpacked = fetch_results(private, request_id, out, work)

`tasks/request_submit.py` is about handing in, `tasks/request_results.py` and `tasks/request_archive.py` about what came
back, and `tasks/request_index.py` says what lies in the bucket.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from storage.errors import CorruptManifest, CorruptShard, NotFound
from storage.files import Progress, scratch_folder, sha256_file
from storage.objects import ObjectStore
from storage.registry import Request
from storage.shards import Sample, ShardInfo
from storage.versions import shard_key
from tasks.request_index import (
    INDEX_NAME,
    NAMED_REFUSALS,
    REPORT_NAME,
    InputShard,
    Local,
    Published,
    RefusedFile,
    RequestIndex,
    RequestReport,
    Uploaded,
    attempt_key,
    parse_index,
    request_key,
    result_key,
    result_name,
)
from tasks.request_pack import PackedSource, pack_source
from tasks.request_results import Unpacked, check_out, read_results, unpack_results
from tasks.request_sources import Limits, upload_limits
from tasks.request_submit import hand_in, open_public, submit_request, version_of

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
    "hand_in",
    "make_report",
    "pack_source",
    "put_report",
    "put_result",
    "result_name",
    "submit_request",
    "unpack_results",
    "upload_limits",
    "version_of",
    "wanted",
]


# --- the requester ---------------------------------------------------------------------------------------------------


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
    index, report = read_results(store, request_id)
    with scratch_folder(work, "results-") as folder:

        def fetch(info: ShardInfo) -> Path:
            path = folder / "result.tar"  # one at a time
            store.get_file(result_key(report, info), path, info.sha256, info.bytes)
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
        open_public(public).get_file(shard_key(origin.dataset, shard), path, shard.sha256, shard.bytes)
    else:
        store.get_file(request_key(request_id, shard.name), path, shard.sha256, shard.bytes)
    return path


def wanted(index: RequestIndex, samples: Iterable[Sample]) -> list[Sample]:
    """The samples of an input shard that the request asks for."""
    if index.keys is None:
        return list(samples)
    keys = set(index.keys)
    return [sample for sample in samples if sample.key in keys]


def put_result(store: ObjectStore, request_id: str, folder: Path, info: ShardInfo, attempt: int = 0) -> None:
    """Upload one result shard, `folder/result-NNNNNN.tar`, as this attempt's."""
    store.put_file(folder / info.name, attempt_key(request_id, info.name, attempt), info.sha256, "application/x-tar")


def make_report(
    request_id: str,
    index: RequestIndex,
    results: Sequence[ShardInfo],
    restored: Iterable[str],
    refused: Sequence[RefusedFile],
    attempts: Mapping[str, int] | None = None,
) -> RequestReport:
    """The report of a served request.

    Args:
        request_id: the request.
        index: its input.
        results: the result shards; those without a sample are left out and need not be put.
        restored: keys of the restored samples.
        refused: the others, named by their sample keys. Keys asked for that are in neither are added as not found.
            The report names the first `NAMED_REFUSALS` of them.
        attempts: which attempt put each result, by its name.
    """
    known = {*restored, *(refusal.name for refusal in refused)}
    absent = [
        RefusedFile(name=key, error="NotFound", reason="there is no sample of this key")
        for key in index.keys or ()
        if key not in known
    ]
    lost = [*refused, *absent]
    return RequestReport(
        request_id=request_id,
        images=index.images,
        restored=sum(info.samples for info in results),
        results=[info for info in results if info.samples],
        attempts=dict(attempts or {}),
        refused=lost[:NAMED_REFUSALS],
        unnamed=dict(Counter(refusal.error for refusal in lost[NAMED_REFUSALS:])),
    )


def put_report(store: ObjectStore, report: RequestReport, attempt: int = 0) -> str:
    """Upload the report, which makes the results readable, as this attempt's, and return its object key."""
    key = attempt_key(report.request_id, REPORT_NAME, attempt)
    store.put_bytes(key, report.model_dump_json().encode(), content_type="application/json")
    return key
