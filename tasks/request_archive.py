"""What came back of a request as one stream: the files that `unpack_results` would write, one after the other.

    for name, content in result_files(index, report, fetch):    # report.json and refused.csv come last
        ...

A content is bytes, or the path of a file that holds until the next is asked for. One image is held in memory at a time.
On disk two files of a shard's size lie side by side at most, if the caller removes those that it was given (by its own
`fetch`, and here) before it fetches the next.
"""

from collections.abc import Iterator
from pathlib import Path

from storage.errors import CorruptShard
from storage.manifest import MANIFEST_NAME, Manifest, dump_manifest
from storage.shards import Sample, ShardFile, ShardInfo, write_shard
from tasks.request_index import REFUSED_NAME, REPORT_NAME, RequestIndex, RequestReport, result_name
from tasks.request_results import FetchShard, own_key, refused_table, summary, summary_json

__all__ = ["own_report", "result_files"]


def own_report(index: RequestIndex, report: RequestReport) -> RequestReport:
    """The report under the requester's own names, with what was refused on the way in."""
    return summary(index, report, report.restored)


def result_files(index: RequestIndex, report: RequestReport, fetch: FetchShard) -> Iterator[tuple[str, bytes | Path]]:
    """Names and contents of the restored files, then of manifest and report.

    Args:
        index: what was handed in.
        report: what became of it.
        fetch: called once for each result shard, in order; its file is replaced by this.

    Raises:
        CorruptShard: a result is not what the report says.
    """
    results = {result.name: result for result in report.results}
    written: list[ShardInfo] = []
    for number, entry in enumerate(index.shards):
        info = results.pop(result_name(number), None)
        if info is None:
            continue
        path = fetch(info)
        with ShardFile(path) as samples:
            if len(samples) != info.samples:
                raise CorruptShard(
                    f"{info.name} holds {len(samples)} samples, not {info.samples}.", "Restore it again."
                )
            if entry.target is None:
                yield from ((_name(index, sample), sample.png) for sample in samples)
            elif len(samples):
                renamed = path.with_name("renamed.tar")
                shard = write_shard(renamed, (own_key(index, sample) for sample in samples))
                written.append(ShardInfo(entry.target, shard.samples, shard.bytes, shard.sha256))
                yield entry.target, renamed
    if results:
        raise CorruptShard(f"{min(results)} belongs to no input shard.", "Make the request again.")
    if index.variant is not None:
        head = index.variant
        manifest = Manifest(dataset=head.dataset, split=head.split, classes=head.classes, shards=written)
        yield MANIFEST_NAME, dump_manifest(manifest)
    mine = own_report(index, report)
    yield REFUSED_NAME, refused_table(mine)
    yield REPORT_NAME, summary_json(mine)


def _name(index: RequestIndex, sample: Sample) -> str:
    return index.names.get(sample.key, f"{sample.key}.png")
