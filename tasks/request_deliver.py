"""Putting what came back of a request to an address in an object store, one result shard at a time.

The same files as `unpack_results` writes to a folder. `report.json` is put first, and says whose place it is; the
manifest comes last, so that whoever finds one finds all of its shards. A delivery that was cut off is done again: what
lies there already is not sent again.
"""

from pathlib import Path

from storage.errors import CorruptManifest, NotFound, ObjectStoreError, UsageError
from storage.files import Progress, scratch_folder
from storage.manifest import MANIFEST_NAME
from storage.objects import ObjectStore
from storage.s3_client import digest_bytes, digest_file
from storage.shards import ShardInfo
from tasks.request_archive import own_report, result_files
from tasks.request_index import REPORT_NAME, RequestReport, parse_report, result_key
from tasks.request_results import read_results, summary_json


def check_place(place: ObjectStore, request_id: str) -> None:
    """See that nothing of anybody else's is replaced; the bucket is made where it is missing.

    Raises:
        UsageError: something lies there that is not this request's.
        ObjectStoreError: the server failed.
    """
    place.ensure_bucket()
    if next(place.list(), None) is None:
        return
    try:
        if parse_report(place.get_bytes(REPORT_NAME)).request_id == request_id:
            return
    except (NotFound, CorruptManifest):
        pass
    raise UsageError(
        f"{place.where()} is not empty, and holds no result of request {request_id}.", "Name another prefix."
    )


def deliver_results(
    store: ObjectStore, request_id: str, place: ObjectStore, work: Path, progress: Progress | None = None
) -> RequestReport:
    """Copy what was restored for a request from the private bucket to `place`.

    Args:
        store: the private bucket.
        request_id: the request, served.
        place: where to; for a variant or a version its shards, under their names, and manifest.json.
        work: a folder for the shard on its way.
        progress: told the file's name and the bytes put so far.

    Returns:
        the report under the requester's own names.

    Raises:
        NotFound: the request was not served yet.
        UsageError: something else lies at `place`.
        CorruptShard, CorruptManifest: what lies in the private bucket is not what was put there.
        ObjectStoreError: a server failed.
    """
    index, report = read_results(store, request_id)
    check_place(place, request_id)
    mine = own_report(index, report)
    _begin(place, summary_json(mine))
    manifest, done = b"", 0
    with scratch_folder(work, "deliver-") as folder:

        def fetch(info: ShardInfo) -> Path:
            path = folder / "result.tar"
            path.unlink(missing_ok=True)  # it was read: two files lie here at most
            store.get_file(result_key(report, info), path, info.sha256, info.bytes)
            return path

        for name, content in result_files(index, report, fetch):
            if name == MANIFEST_NAME and isinstance(content, bytes):
                manifest = content
            elif name != REPORT_NAME:
                done += _put(place, name, content)
                if isinstance(content, Path):
                    content.unlink()
                if progress is not None:
                    progress(name, done, None)
    if index.variant is not None:
        _put(place, MANIFEST_NAME, manifest)
    return mine


def _begin(place: ObjectStore, report: bytes) -> None:
    """Put the report. Where another one lay, of an earlier try that restored less, its manifest goes first."""
    if not place.holds(REPORT_NAME, digest_bytes(report)):
        place.delete(MANIFEST_NAME)
        place.put_bytes(REPORT_NAME, report, content_type="application/json")


def _put(place: ObjectStore, name: str, content: bytes | Path) -> int:
    """Put a file unless it is there; its size. Afterwards the place holds it for certain."""
    digest = digest_file(content) if isinstance(content, Path) else digest_bytes(content)
    if place.holds(name, digest):
        return digest.size
    if isinstance(content, Path):
        place.put_file(content, name, digest.sha256, "application/x-tar")
        if not place.holds(name, digest):
            raise ObjectStoreError(f"{place.where(name)} is not what was uploaded.", "Try again; check the server.")
    else:
        place.put_bytes(name, content)
    return digest.size
