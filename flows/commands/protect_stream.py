"""`dmcp protect s3://... s3://...`: from a clean variant in one bucket to a published version in another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows import console
from flows.commands import common

if TYPE_CHECKING:
    from storage.croissant import About
    from storage.manifest import Manifest


def run(
    source: str,
    target: str,
    surrogate: Path | None,
    dataset: str | None,
    sets: list[str] | None,
    terms: Path | None,
    about: About,
) -> None:
    """Protect and publish, a shard at a time; arguments as those of `dmcp protect`.

    Raises:
        UsageError: no surrogate is given, or one of other classes; another data set's name than the variant has; or
            what lies there is the test split, or protected already; or the target is not the public bucket.
        DmcpError: as `flows.protect_stream.run_protect_stream`.
    """
    from flows.commands.protect import ready_key, ready_surrogate
    from flows.protect_stream import run_protect_stream
    from flows.services import prefect_server
    from storage.errors import UsageError
    from storage.files import write_atomic
    from storage.settings import settings

    if surrogate is None:
        raise UsageError(
            "From s3:// to s3:// no surrogate is trained: that takes the whole variant.",
            "Train one on a part that fits (dmcp train PART --test TEST) and name its model.pt: --surrogate FILE",
        )
    manifest = _manifest(source, target, dataset)
    name = manifest.dataset
    params = common.params_for(name, {"protect": common.parse_sets(sets)}).protect
    key_id = ready_key(name)
    ready_surrogate(surrogate, manifest, params)
    text = terms.read_text(encoding="utf-8") if terms else None
    with prefect_server():
        metrics = run_protect_stream(source, target, surrogate, params, key_id, text, about)
    report = settings().data_path(name, "protected.report.json")
    write_atomic(report, json.dumps(metrics, indent=2).encode() + b"\n")
    _tell(name, target, report, metrics)


def _manifest(source: str, target: str, wanted: str | None) -> Manifest:
    """What is to be protected, as the manifest in the bucket has it.

    Raises:
        UsageError: another name is wanted than the variant has, or it is the test split, or protected already; or the
            target is not where this installation publishes.
    """
    from storage.addresses import open_address, open_public_address, read_remote_manifest
    from storage.errors import UsageError
    from storage.settings import settings
    from tasks.protect_checks import check_clean, check_split

    with common.object_store():
        open_public_address(settings(), target)
        place = open_address(settings(), source)
        manifest = read_remote_manifest(place)
        if wanted not in (None, manifest.dataset):
            raise UsageError(f"{source} holds the data set {manifest.dataset}, not {wanted}.", "Leave --dataset out.")
        check_split(manifest, source)
        check_clean(manifest, source, lambda name: common.arriving(place, name))
    return manifest


def _tell(name: str, target: str, report: Path, metrics: dict[str, Any]) -> None:
    from flows.commands.protect import tell_left_out

    tell_left_out(metrics)
    console.finished(
        f"Protected {metrics['protected']:,} of {metrics['images']:,} images of {name} under the key "
        f"{metrics['key_id']} in {metrics['wall_seconds']:.0f} s; {metrics['shards_sent']} shards were made, "
        f"{metrics['shards_there']} were there.",
        [
            ("published", f"{target.rstrip('/')}/{name}/versions/{metrics['version']}/"),
            ("report", console.shown(report)),
            ("the server", metrics["guarantee"]),
        ],
        [f"anyone: dmcp pull {name} OUT", f"dmcp access grant USER {name}"],
    )
