"""Parameters: what decides the results, read from params.yaml and checked.

`params.yaml` has one section a stage, and below `datasets` what a data set has otherwise. `load_params` merges the two:
mappings key by key, everything else replaced. The sections have no defaults here, so that params.yaml (which DVC
watches) is all there is to know; settings (`storage/settings.py`) say where things run and never change a result.
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from storage.errors import DatasetError, ParameterError
from storage.names import check_dataset_name
from storage.settings import settings
from tasks.evidence.presets import EvidenceParams, PresetParams
from tasks.ledger import LEDGER_NAME, read_ledger

PARAMS_FILE = Path("params.yaml")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DownloadParams(_Section):
    """Where the images come from and how they are cut into shards; further keys belong to the data set's loader."""

    model_config = ConfigDict(extra="allow", frozen=True)

    source: str | None = Field(description="which loader reads it; null: the one of the data set's own name")
    shard_size: int = Field(ge=1, le=100_000, description="images a shard; what one task works on")
    train_limit: int | None = Field(ge=1, description="first so many training images; null: all")
    test_limit: int | None = Field(ge=1, description="first so many test images; null: all")


class SurrogateParams(_Section):
    """The network whose features the perturbation aims at, trained by the owner on the clean variant."""

    architecture: str
    stem: Literal["imagenet", "small"]
    recipe: Literal["paper", "modern"]
    epochs: int | None = Field(ge=1, le=10_000, description="null: the recipe's own")
    lr: float | None = Field(gt=0, le=100)
    batch_size: int | None = Field(ge=1, le=100_000)
    seed: int = Field(ge=0)
    snapshots: int = Field(ge=1, le=100, description="networks from along the training that take turns")
    image_size: int | None = Field(ge=16, le=4096, description="images are scaled to it; null: they have one size")
    keep: bool = Field(description="keep the trained one when images only came in: shards of before stay as they are")


class PerturbationParams(_Section):
    """Mirrors `tasks.method.perturbation.FspParameters`, which checks the ranges."""

    epsilon: float
    steps: int
    momentum: float
    targets: Literal["random", "furthest", "permuted", "permuted-mean"]
    library: int
    batch_size: int


class TransformParams(_Section):
    """Mirrors `tasks.method.paper.PaperParameters`, which checks what fits together."""

    block: Literal[1, 2, 4, 8]
    classes: Literal[1, 2, 4, 8, 16]
    step: int
    planes: Literal[1, 2, 3]


class PaperMethodParams(_Section):
    """Profile `paper`."""

    layer: str
    perturbation: PerturbationParams
    transform: TransformParams


class SignPerturbationParams(_Section):
    """Mirrors `tasks.method.sign_perturbation.SignParameters`, which checks the ranges."""

    pattern: Literal["bands", "none"]
    spread: float
    weight: float
    steps: int
    rate: float
    momentum: float
    smoothing: float
    flips: bool
    shift: int
    library: int
    batch_size: int


class ExactSetParams(_Section):
    """Mirrors `tasks.method.exact.ExactParameters`."""

    amplitude: int
    signs: Literal["shared", "rgb"]
    carrier: Literal["pixels", "chunk"]


class ExactMethodParams(_Section):
    """Profile `exact`."""

    layer: str
    perturbation: SignPerturbationParams
    set: ExactSetParams


class ProtectParams(_Section):
    """How the clean variant becomes the protected one; of `paper` and `exact` the one that `profile` names counts."""

    profile: Literal["paper", "exact"]
    paper: PaperMethodParams
    exact: ExactMethodParams


class TrainParams(_Section):
    """How the models are trained that show what protection does; the same for every variant."""

    architecture: str
    stem: Literal["imagenet", "small"]
    recipe: Literal["paper", "modern"]
    epochs: int | None = Field(ge=1, le=10_000, description="null: the recipe's own")
    lr: float | None = Field(gt=0, le=100)
    batch_size: int | None = Field(ge=1, le=100_000)
    image_size: int | None = Field(ge=16, le=4096, description="images are scaled to it; null: they have one size")


class EvaluateParams(_Section):
    """What is measured of pixels; accuracies come from training."""

    quality_images: int = Field(ge=1, description="images whose PSNR and SSIM are measured")
    grid_images: int = Field(ge=1, le=100, description="rows of the image grid")
    seed: int = Field(ge=0, description="draws both")


class Params(_Section):
    """All parameters of one data set. `seeds`: one model a variant and seed."""

    dataset: str
    seeds: list[int] = Field(min_length=1)
    download: DownloadParams
    surrogate: SurrogateParams
    protect: ProtectParams
    train: TrainParams
    evaluate: EvaluateParams
    evidence: EvidenceParams


SECTIONS = ("download", "surrogate", "protect", "train", "evaluate", "evidence")


def load_params(dataset: str, path: Path = PARAMS_FILE) -> Params:
    """The parameters of one data set: the common sections with the data set's own values laid over them.

    Raises:
        ParameterError: the file can not be read, knows no such data set, or a key is missing, unknown or out of range.
    """
    raw = _read(path)
    entry = _entry(raw, check_dataset_name(dataset), path)
    common = {name: value for name, value in raw.items() if name != "datasets"}
    merged = deep_merge(common, entry)
    try:
        return Params.model_validate({"dataset": dataset, **merged})
    except ValidationError as error:
        raise _explained(error, dataset, path) from error


def preset_named(params: Params, name: str) -> PresetParams:
    """A preset of the section `evidence`.

    Raises:
        ParameterError: there is none of this name.
    """
    presets = params.evidence.presets
    if name not in presets:
        raise ParameterError(f"The preset {name!r} is unknown.", f"Choose one of {', '.join(presets)}.")
    return presets[name]


def known_datasets(path: Path = PARAMS_FILE) -> list[str]:
    """Names of the data sets that params.yaml knows, in its order. Raises ParameterError."""
    datasets = _read(path).get("datasets")
    return list(datasets) if isinstance(datasets, dict) else []


def deep_merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `over` laid on top: mappings merge key by key, everything else is replaced."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = deep_merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ParameterError(f"{path} does not exist.", "Run the command in the project's folder.") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ParameterError(f"{path} can not be read: {error}.", "Correct it.") from error
    if not isinstance(raw, dict):
        raise ParameterError(f"{path} is no mapping.", "It needs the sections named in its own comments.")
    return raw


def _entry(raw: Mapping[str, Any], dataset: str, path: Path) -> dict[str, Any]:
    datasets = raw.get("datasets")
    known = datasets if isinstance(datasets, dict) else {}
    if "." in dataset:
        raise ParameterError(f"{path}: {dataset!r} holds a dot, which DVC takes for a level.", "Use '-' or '_'.")
    if dataset not in known:
        raise ParameterError(
            f"{path} knows no data set {dataset!r}.",
            f"It knows {', '.join(known) or 'none'}. For images of your own, in FOLDER, add below `datasets:`\n\n"
            f"{_own_entry(known, dataset)}",
        )
    entry = known[dataset]
    # DVC watches datasets.NAME.SECTION and stops when there is none, so a section without changes is written {}.
    missing = [name for name in SECTIONS if not isinstance(entry, dict) or not isinstance(entry.get(name), dict)]
    if missing:
        raise ParameterError(
            f"{path}: datasets.{dataset} has no section {missing[0]!r}.", f"Add `{missing[0]}: {{}}` to it."
        )
    return dict(entry)


def _own_entry(known: Mapping[str, Any], dataset: str) -> str:
    """The lines that make a folder of images a data set of params.yaml: those of its loader, under its own name.

    What `dmcp data get` built it with stands in its ledger; with anything else its images would move.
    """
    loader = _built_with(dataset) or {"source": "imagefolder", "path": "FOLDER"}
    common = known.get(loader["source"])
    sections = {"seeds": [0], **{name: {} for name in SECTIONS}}
    entry = deep_merge(deep_merge(sections, common if isinstance(common, dict) else {}), {"download": loader})
    text: str = yaml.safe_dump({dataset: entry}, sort_keys=False, default_flow_style=None, width=10_000)
    return "".join(f"  {line}\n" for line in text.splitlines())


def _built_with(dataset: str) -> dict[str, Any] | None:
    with suppress(DatasetError):
        ledger = read_ledger(settings().data_path(dataset, LEDGER_NAME))
        if ledger is not None and ledger.parameters is not None:
            return {"source": ledger.source, **ledger.parameters}
    return None


def _explained(error: ValidationError, dataset: str, path: Path) -> ParameterError:
    """The first problem, by the name that stands in params.yaml."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    cures = {
        "missing": f"Add {where} to the common sections, or below datasets.{dataset}.",
        "extra_forbidden": "Remove it, or correct its spelling.",
    }
    found = "" if first["type"] in cures else f" ({where} is {first['input']!r})"
    what = f"{path}, data set {dataset}: {where}: {first['msg']}{found}."
    return ParameterError(what, cures.get(first["type"], f"Correct it there, or below datasets.{dataset}."))
