"""Writing what came back of a request: PNGs under their own names, or shards like those handed in."""

import csv
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from storage.errors import CorruptManifest, CorruptShard, InputError, NotFound, UsageError
from storage.files import Progress, replace_directory, write_atomic
from storage.manifest import Manifest, write_manifest
from storage.objects import ObjectStore
from storage.shards import Sample, ShardInfo, read_shard, write_shard
from tasks.request_index import (
    INDEX_NAME,
    REFUSED_NAME,
    REPORT_NAME,
    RefusedFile,
    RequestIndex,
    RequestReport,
    attempt_of,
    name_fault,
    parse_index,
    parse_report,
    request_key,
    result_name,
)

FetchShard = Callable[[ShardInfo], Path]
"""Gives the local, verified file of a result shard."""


@dataclass(frozen=True)
class Unpacked:
    """What was written to `out`, and the report that lies there: how many images, what is missing and why."""

    out: Path
    report: RequestReport

    @property
    def restored(self) -> int:
        """How many images were written."""
        return self.report.restored

    @property
    def refused(self) -> list[RefusedFile]:
        """What is missing and why, under the requester's own names; of very many (`report.unnamed`) the first."""
        return self.report.refused


def read_results(store: ObjectStore, request_id: str) -> tuple[RequestIndex, RequestReport]:
    """What was handed in and what became of it, from the private bucket.

    Raises:
        NotFound: the request was not served yet.
        CorruptManifest: what lies there is not what was put there.
    """
    try:
        report = parse_report(store.get_bytes(_last_report(store, request_id)))
        index = parse_index(store.get_bytes(request_key(request_id, INDEX_NAME)))
    except NotFound as error:
        raise NotFound(f"There is no result of request {request_id} yet.", "Restore it: dmcp restore.") from error
    if report.request_id != request_id:
        raise CorruptManifest(f"The report of request {request_id} is another's.", "Restore it again.")
    return index, report


def _last_report(store: ObjectStore, request_id: str) -> str:
    """Object key of the report of the last attempt that left one. Raises NotFound."""
    keys = [info.key for info in store.list(request_key(request_id, "")) if info.key.endswith(f"/{REPORT_NAME}")]
    if not keys:
        raise NotFound(f"Request {request_id} has no report.")
    return max(keys, key=attempt_of)


def unpack_results(
    index: RequestIndex, report: RequestReport, fetch: FetchShard, out: Path, progress: Progress | None = None
) -> Unpacked:
    """Write restored images to `out`, with `refused.csv` and `report.json` beside them; whole or not at all.

    Args:
        index: what was handed in.
        report: what became of it.
        fetch: called once for each result shard, in order; the file is read and not kept.
        out: a folder that does not exist yet, or is empty.
        progress: told the shard's name and the images written so far.

    Raises:
        UsageError: `out` holds something.
        CorruptShard, CorruptManifest, InputError: a result is not what the report and the index say.
    """
    check_out(out)
    results = {result.name: result for result in report.results}
    written: list[ShardInfo] = []
    restored = 0
    with replace_directory(out) as folder:
        for number, entry in enumerate(index.shards):
            info = results.pop(result_name(number), None)
            if info is None:
                continue
            samples = read_shard(fetch(info))
            if len(samples) != info.samples:
                raise CorruptShard(
                    f"{info.name} holds {len(samples)} samples, not {info.samples}.", "Restore it again."
                )
            if entry.target is None:
                _write_files(folder, index, samples)
            elif samples:
                written.append(write_shard(folder / entry.target, (own_key(index, sample) for sample in samples)))
            restored += len(samples)
            if progress is not None:
                progress(info.name, restored, report.restored)
        if results:
            raise CorruptShard(f"{min(results)} belongs to no input shard.", "Make the request again.")
        if index.variant is not None:
            _write_manifest(folder, index, written)
        mine = summary(index, report, restored)
        write_atomic(folder / REFUSED_NAME, refused_table(mine))
        write_atomic(folder / REPORT_NAME, summary_json(mine))
    return Unpacked(out, mine)


def check_out(out: Path) -> None:
    """Raises UsageError when `out` exists and holds something: nothing of a user's is ever replaced."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists and is not empty.", "Name a folder that does not exist yet.")


def _write_files(folder: Path, index: RequestIndex, samples: list[Sample]) -> None:
    for sample in samples:
        name = index.names.get(sample.key, f"{sample.key}.png")
        if name_fault(name):
            raise InputError(f"The result {name!a} can not be written: {name_fault(name)}.", "Make the request again.")
        path = folder.joinpath(*name.split("/"))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                file.write(sample.png)
        except FileExistsError:
            raise InputError(
                f"The result {name!a} has the same name as another on this file system.",
                "Hand in such images in separate requests.",
            ) from None


def own_key(index: RequestIndex, sample: Sample) -> Sample:
    """The sample under the key that the requester knows."""
    return Sample(index.names.get(sample.key, sample.key), sample.png, sample.label)


def _write_manifest(folder: Path, index: RequestIndex, written: list[ShardInfo]) -> None:
    assert index.variant is not None
    head = index.variant
    with _as_corrupt():
        manifest = Manifest(dataset=head.dataset, split=head.split, classes=head.classes, shards=written)
    write_manifest(folder, manifest)


@contextmanager
def _as_corrupt() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise InputError("The request's index describes no variant.", "Make the request again.") from error


def named_refusals(index: RequestIndex, report: RequestReport) -> list[RefusedFile]:
    """The report's refusals, under the names that the requester knows instead of sample keys."""
    targets = _targets(index) if index.layout == "shards" else {}
    named = []
    for refusal in report.refused:
        key = refusal.name
        name = index.names.get(key, key)
        if key in targets:
            name = f"{targets[key]}/{name}.png"
        named.append(RefusedFile(name=name, error=refusal.error, reason=refusal.reason.replace(key, name)))
    return named


def _targets(index: RequestIndex) -> dict[str, str]:
    """Which shard each numbered sample came from: numbers run through the shards in order."""
    numbers = iter(index.names)
    return {
        number: entry.target
        for entry in index.shards
        for _, number in zip(range(entry.shard.samples), numbers, strict=False)
        if entry.target is not None
    }


def refused_table(report: RequestReport) -> bytes:
    """`refused.csv`: a line for each file that the report names, then one for each kind that has more."""
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("name", "error", "reason"))
    writer.writerows((r.name, r.error, r.reason) for r in report.refused)
    writer.writerows(("", error, and_more(count)) for error, count in report.unnamed.items())
    return table.getvalue().encode()


def and_more(count: int) -> str:
    """For people, where refused images of a kind are counted and not named."""
    return f"and {count:,} more, which are counted and not named"


def summary(index: RequestIndex, report: RequestReport, restored: int) -> RequestReport:
    """The requester's copy of the report: under own names, with what was refused on the way in, without shards."""
    refused = [*index.refused, *named_refusals(index, report)]
    return RequestReport(
        request_id=report.request_id,
        images=restored + len(refused) + sum(report.unnamed.values()),
        restored=restored,
        refused=refused,
        unnamed=report.unnamed,
    )


def summary_json(report: RequestReport) -> bytes:
    """`report.json`, as the requester gets it."""
    return report.model_dump_json(indent=2, exclude={"results", "attempts"}).encode() + b"\n"
