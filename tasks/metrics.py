"""The records that the stages leave below `data/DATASET/metrics/`, and the evaluation that is made of them.

Accuracies are shares between 0 and 1 everywhere; percent is a matter of showing. Fields that a later release adds are
let through; fields that the evaluation needs are checked, and a record that lacks one is refused by name.
"""

from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from storage.errors import DatasetError

VariantName = Literal["clean", "protected", "recovered"]
VARIANTS: tuple[VariantName, ...] = ("clean", "protected", "recovered")

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


# --- what the stages write -------------------------------------------------------------------------------------------


class TrainMetrics(_Record):
    """`metrics/train-VARIANT-SEED.json`: one model."""

    variant: VariantName
    seed: int
    train_accuracy: Share
    test_accuracy: Share
    peak_test_accuracy: Share
    epochs: Annotated[int, Field(ge=1)]
    seconds: Annotated[float, Field(ge=0)]
    recipe: str
    architecture: str
    stem: str
    n_train: Count
    n_test: Count
    device: str = ""
    precision: str = ""
    mlflow_run: str | None = None


class NamedReason(_Record):
    """One image that was left out or refused, and why."""

    key: str
    reason: str


class Histogram(_Record):
    """`counts[i]` values lie from `edges[i]` up to, but not including, `edges[i + 1]`."""

    edges: list[float] = []
    counts: list[Count] = []


class PayloadSizes(_Record):
    """Bytes that the images' payloads take."""

    min: float
    mean: float
    max: float
    histogram: Histogram = Histogram()


class ProtectMetrics(_Record):
    """`metrics/protect.json`: the whole protect stage."""

    images: Count
    protected: Count
    left_out: list[NamedReason] = []
    rungs: dict[str, Count] = {}
    spilled: Count = 0
    payload_bytes: PayloadSizes | None = None
    capacity_bytes: float | None = None
    seconds: dict[str, float] = {}
    wall_seconds: float | None = None
    fresh: Count | None = None
    workers: int | None = None


class RestoreMetrics(_Record):
    """`metrics/restore.json`: the whole restore stage."""

    images: Count
    restored: Count
    refused: list[NamedReason] = []
    seconds: dict[str, float] = {}
    wall_seconds: float | None = None
    fresh: Count | None = None
    workers: int | None = None


# --- what the evaluation makes of them -------------------------------------------------------------------------------


class Stat(_Record):
    """Mean and sample standard deviation (n - 1; None for a single seed) over n seeds."""

    mean: float
    std: float | None
    n: int


class VariantAccuracy(_Record):
    """Accuracies of the models trained on one variant, over seeds; the per-seed values in the order of `seeds`."""

    seeds: list[int]
    train: Stat
    last: Stat
    peak: Stat
    last_by_seed: list[float]
    n_train: int
    seconds: float


class Setting(_Record):
    """How all compared models were trained; it is the same for every variant, or the evaluation refuses."""

    recipe: str
    architecture: str
    stem: str
    epochs: int
    n_test: int
    device: str = ""
    precision: str = ""


class Quality(_Record):
    """PSNR (dB, over the images that differ) and SSIM of `images` sampled pairs; definitions in `tasks.quality`."""

    images: int
    identical_share: float | None
    psnr_mean: float | None
    psnr_std: float | None
    psnr_min: float | None
    ssim_mean: float | None
    ssim_std: float | None
    ssim_min: float | None


class Fidelity(_Record):
    """How far a variant's pixels are from the clean ones: sample errors over every image, quality over a sample."""

    images: int
    bit_exact: int
    bit_exact_share: float | None
    max_sample_error: int | None
    mean_sample_error: float | None
    labels_changed: int
    quality: Quality


class Bounds(_Record):
    """What the protected images' own headers promise of the recovered samples, and whether it was kept.

    Attributes:
        images: recovered images by the largest absolute error their header allows (JSON has text keys).
        broken: recovered images with a sample beyond it.
        unknown: recovered images whose protected version has no readable header.
    """

    images: dict[int, Count]
    broken: Count
    unknown: Count

    @property
    def largest(self) -> int | None:
        """The largest error that any header allows."""
        return max(self.images, default=None)


class StageTime(_Record):
    """Time of one stage: `steps` in seconds of one thread, summed over shards; `wall` from start to end.

    The steps are of all images, the clock's time only of `fresh` ones: those that no run before had done.
    """

    steps: dict[str, float]
    wall: float | None
    fresh: int | None = None
    workers: int | None


class Counts(_Record):
    """Images on their way through the stages."""

    clean: int
    protected: int
    recovered: int
    left_out: int
    refused: int
    left_out_reasons: dict[str, int]
    refused_reasons: dict[str, int]


class Evaluation(_Record):
    """`metrics/evaluation.json`: what was measured on one data set.

    Attributes:
        rungs: images by the way that worked for them.
        spilled: images whose payload travels beside the pixels.
        digests: of the variants (and the test split), as DVC and MLflow name them.
    """

    format: Literal["dmcp-evaluation/1"] = "dmcp-evaluation/1"
    dataset: str
    split: str
    classes: int
    counts: Counts
    quality_sample: int
    quality_seed: int
    bounds: Bounds
    setting: Setting
    accuracy: dict[VariantName, VariantAccuracy]
    fidelity: dict[Literal["protected", "recovered"], Fidelity]
    rungs: dict[str, int]
    spilled: int = 0
    payload_bytes: PayloadSizes | None
    capacity_bytes: float | None
    times: dict[Literal["protect", "restore"], StageTime]
    digests: dict[str, str]

    @property
    def promised(self) -> bool:
        """Whether every protected image's header promises exact pixels, and none was left out."""
        return self.bounds.largest == 0 and not self.bounds.unknown and not self.counts.left_out

    @property
    def identical(self) -> bool:
        """Whether the recovered variant is the clean one, byte for byte: one digest."""
        return self.digests.get("clean") == self.digests.get("recovered")


RecordType = TypeVar("RecordType", bound=BaseModel)


def read_record(path: Path, kind: type[RecordType]) -> RecordType:
    """Read one JSON record.

    Raises:
        DatasetError: the file is missing, is no JSON, or lacks a field that is needed (named).
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise DatasetError(f"{path} is missing.", "Run the stage that writes it: dvc repro.") from error
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors()[:4])
        raise DatasetError(
            f"{path} can not be used ({problems}).", "Run its stage again: dvc repro --force."
        ) from error


def read_evaluation(dataset_dir: Path) -> Evaluation:
    """The evaluation of a data set's folder (`data/DATASET`).

    Raises:
        DatasetError: as `read_record`.
    """
    return read_record(dataset_dir / "metrics" / "evaluation.json", Evaluation)
