"""`dmcp protect`: one variant becomes a protected one, without the rest of the pipeline."""

from __future__ import annotations

import json
import os
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from flows import console
from flows.commands import common

if TYPE_CHECKING:
    from storage.manifest import Manifest
    from tasks.params import Params, ProtectParams, SurrogateParams

PANEL = "Of the version, from s3:// to s3://"


def register(root: typer.Typer) -> None:
    """Add the command to the command tree."""
    root.command(rich_help_panel="Owner")(protect)


def protect(
    clean: Annotated[
        str, typer.Argument(metavar="CLEAN", help="A clean variant, shards with manifest.json: a folder or an s3://.")
    ],
    protected: Annotated[
        str, typer.Argument(metavar="PROTECTED", help="The folder to make (again); or the s3:// to publish at.")
    ],
    surrogate: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="A surrogate, model.pt, of the same classes; without one, one is trained on CLEAN.",
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="The data set: its key and its entry in params.yaml. Default: the manifest's.")
    ] = None,
    sets: common.Set = None,
    terms: Annotated[Path | None, typer.Option(metavar="FILE", help="Licence terms.", rich_help_panel=PANEL)] = None,
    contact: Annotated[str | None, typer.Option(help="How to ask for access.", rich_help_panel=PANEL)] = None,
    creator: Annotated[str | None, typer.Option(help="Who made it.", rich_help_panel=PANEL)] = None,
    url: Annotated[str | None, typer.Option(help="The data set's page.", rich_help_panel=PANEL)] = None,
    date: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Its date.", rich_help_panel=PANEL)
    ] = None,
) -> None:
    """Protect a variant under the data set's newest key. Images that nothing fits are left out and reported.

    Parameters are those of params.yaml; --set changes them, as in --set exact.set.amplitude=10 (or, for the network
    that is trained first, --set surrogate.epochs=3). PROTECTED is replaced only if it is an earlier protected variant
    of this data set; the test split, and what is protected already, is refused.

    From one s3://BUCKET/PREFIX to another, a shard at a time: CLEAN is never copied here as a whole, and what is made
    is published there, as `dmcp publish` does it. That needs --surrogate.
    """
    from storage.croissant import About
    from storage.files import write_atomic

    about = About(contact, creator, url, date.date() if date else None)
    values = common.parse_sets(sets)
    check_sets(values, surrogate)
    if streams(clean, protected, said=terms is not None or about != About()):
        from flows.commands import protect_stream

        protect_stream.run(clean, protected, surrogate, dataset, sets, terms, about)
        return
    source, target = Path(clean), Path(protected)
    manifest = _manifest(source, dataset)
    _check_folders(source, target, manifest)
    over = {"surrogate": values.pop("surrogate", {}), "protect": values}
    params = common.params_for(manifest.dataset, over)
    key_id = ready_key(manifest.dataset)
    _tell_large(source, manifest, getattr(params.protect, params.protect.profile).perturbation.steps)
    model = ready_surrogate(surrogate, manifest, params.protect) if surrogate else _train(source, manifest, params)
    metrics = _run(source, target, model, params.protect, key_id)
    place = Path(os.path.abspath(target))  # noqa: PTH100 - `.` has no name, and a link keeps its own
    report = place.with_name(f"{place.name}.report.json")
    write_atomic(report, json.dumps(metrics, indent=2).encode() + b"\n")
    _tell(manifest.dataset, target, report, metrics)


def _tell_large(source: Path, manifest: Manifest, steps: int) -> None:
    """What large images will take, said before hours are spent on them."""
    import psutil

    from storage.settings import settings
    from tasks.large_images import LARGE, described, measure

    sizes = measure(manifest, source)
    if sizes.image <= LARGE:
        return
    from tasks.learning.device import resolve_device, resolve_precision  # torch takes seconds to load

    device = resolve_device(settings().device)
    if device.type == "cpu":
        precision = resolve_precision("auto", device)
        console.note(described(sizes, steps, settings().workers, psutil.virtual_memory().available, precision))


def _run(source: Path, target: Path, model: Path, section: ProtectParams, key_id: str) -> dict[str, Any]:
    """`flows.protect.run_protect`, with Prefect, whose import takes seconds: mistakes are told before."""
    from flows.protect import run_protect
    from flows.services import prefect_server

    with prefect_server():
        return run_protect(source, target, model, section, key_id)


def check_sets(values: dict[str, Any], surrogate: Path | None) -> None:
    """Raises UsageError when parameters are given of a surrogate that is not trained."""
    from storage.errors import UsageError

    if surrogate is not None and "surrogate" in values:
        raise UsageError(
            "--set surrogate... says how one is trained, and --surrogate names one that is.", "Leave one of them out."
        )


def ready_key(dataset: str) -> str:
    """The id of the data set's newest key, which the vault gives: better known now than when a surrogate is trained.

    Raises:
        UnknownKey, VaultLocked: it does not.
    """
    from flows.access import data_key
    from storage.keys import open_vault
    from storage.settings import settings

    key_id = open_vault(settings()).current(dataset).key_id
    data_key(key_id)
    return key_id


def ready_surrogate(path: Path, manifest: Manifest, section: ProtectParams) -> Path:
    """The surrogate that was named, when it and the method's parameters fit together and to the variant.

    Raises:
        ParameterError, UsageError, DatasetError: they do not.
    """
    from tasks.protect import method_named
    from tasks.protect_checks import check_surrogate, doubts

    info = check_surrogate(path, manifest, method_named(section.model_dump()).layer)
    _warn(doubts(path, info.architecture, len(info.classes)))
    return path


def _warn(sentences: list[str]) -> None:
    for sentence in sentences:
        console.note(f"Warning: {sentence}")


def _check_folders(source: Path, target: Path, manifest: Manifest) -> None:
    """See that the source is clean and that nothing is destroyed. Raises InputError, UsageError."""
    from tasks.protect_checks import check_clean, check_split, check_target

    check_split(manifest, str(source))
    check_target(source, target, manifest)
    check_clean(manifest, str(source), lambda shard: _open_shard(source / shard))


def streams(clean: str, protected: str, said: bool) -> bool:
    """Whether it goes from address to address; `said`: the version's texts are given.

    Raises:
        UsageError: one is an address and the other a folder, or a folder is to be published.
    """
    from storage.addresses import is_address
    from storage.errors import UsageError

    if is_address(clean) != is_address(protected):
        raise UsageError(
            "CLEAN and PROTECTED are both folders, or both addresses (s3://BUCKET/PREFIX).",
            "A folder that is protected is sent by `dmcp publish`.",
        )
    if said and not is_address(clean):
        raise UsageError("A folder is made, not published.", "Give --terms and the rest to `dmcp publish`.")
    return is_address(clean)


def _manifest(clean: Path, wanted: str | None) -> Manifest:
    """What is to be protected.

    Raises:
        CorruptManifest: no variant; the cure for a folder of images is in the message.
        UsageError: another name is wanted than the variant has.
    """
    from storage.errors import CorruptManifest, UsageError
    from storage.manifest import MANIFEST_NAME, read_manifest

    if clean.is_dir() and not (clean / MANIFEST_NAME).exists():
        raise CorruptManifest(
            f"{clean} is no variant: it has no {MANIFEST_NAME}.",
            f"If it is a folder of class folders: dmcp data get imagefolder OUT --path {clean} --dataset NAME",
        )
    manifest = read_manifest(clean)
    if wanted not in (None, manifest.dataset):
        raise UsageError(
            f"{clean} holds the data set {manifest.dataset}, not {wanted}.",
            f"Leave --dataset out, or build the variant under that name: dmcp data get ... --dataset {wanted}",
        )
    return manifest


def _open_shard(path: Path) -> BinaryIO:
    """A shard's file. Raises CorruptShard where there is none."""
    from storage.errors import CorruptShard

    try:
        return path.open("rb")
    except FileNotFoundError as error:
        raise CorruptShard(f"The shard {path} is missing.", "Fetch or build the variant again.") from error


def _train(clean: Path, manifest: Manifest, params: Params) -> Path:
    """A surrogate of this variant, trained when all that is known before fits together.

    Raises:
        ParameterError: parameters do not fit together.
    """
    from tasks.protect import method_named
    from tasks.protect_checks import check_network, doubts

    section, classes = params.surrogate, len(manifest.classes)
    check_network(section, classes, method_named(params.protect.model_dump()).layer)
    model = _surrogate(clean, manifest.dataset, section)
    _warn(doubts(model, section.architecture, classes))
    return model


def _surrogate(clean: Path, dataset: str, section: SurrogateParams) -> Path:
    """A surrogate trained on this variant with these parameters; one that was trained before is used again."""
    import hashlib

    from storage.files import sha256_file
    from storage.manifest import MANIFEST_NAME
    from storage.settings import settings
    from tasks.kept_surrogates import KEPT, serving
    from tasks.surrogate import train_surrogate

    facts = sha256_file(clean / MANIFEST_NAME) + section.model_dump_json()
    folder = settings().home_path(*KEPT, hashlib.sha256(facts.encode()).hexdigest()[:16])
    if (folder / "model.pt").exists():
        console.note(f"The surrogate trained before on {console.shown(clean)} is used again.")
        return folder / "model.pt"
    pipelines = settings().data_path(dataset, "surrogate")
    if other := serving(clean, [*folder.parent.glob("*/"), pipelines], section):
        console.note(f"Images only came into {console.shown(clean)}, or none: the surrogate of before is used again.")
        return other / "model.pt"
    beside = clean.resolve().parent / "test"
    test = beside if (beside / MANIFEST_NAME).exists() else clean
    with console.progress(f"No surrogate is given: training {section.architecture} on {console.shown(clean)}") as bars:
        metrics = train_surrogate(clean, test, folder, section, device=settings().device, progress=bars)
    console.note(f"Surrogate: {metrics['test_accuracy']:.1%} of {metrics['n_test']:,} images right; it stays private.")
    return folder / "model.pt"


def tell_left_out(metrics: dict[str, Any]) -> None:
    """How many images were left out, and why."""
    if metrics["left_out"]:
        reasons = Counter(entry["reason"] for entry in metrics["left_out"])
        console.table(("left out", "reason"), [(count, reason) for reason, count in reasons.most_common()])


def _tell(name: str, protected: Path, report: Path, metrics: dict[str, Any]) -> None:
    """What was protected, and what was left out and why."""
    from flows.meter import took

    tell_left_out(metrics)
    folder = console.shown(protected)
    console.finished(
        f"Protected {metrics['protected']:,} of {metrics['images']:,} images of {name} under the key "
        f"{metrics['key_id']} in {took(metrics)}.",
        [("protected", folder), ("report", console.shown(report))],
        [f"dmcp publish {folder}", f"dmcp inspect IMAGE.png (dmcp export {folder} OUT --as imagefolder gives images)"],
    )
