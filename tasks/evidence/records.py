"""The records of the evaluation suite: what a cell asks, what was measured, and all of one preset together.

Accuracies and shares lie between 0 and 1; PSNR is in dB. `data/DATASET/evidence/PRESET/results.json` is one `Evidence`.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]

CLEAN = "clean"
"""Stands in a cell for no protection: what its user would get from the clean images."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Cell(_Record):
    """One model to train.

    Attributes:
        protection: name of a protection of the preset (`paper`, `exact` ...), or `clean`.
        countermeasure: what is done to the training, by name (`tasks.learning.countermeasures`), "none" for nothing.
        attack: what one who knows the algorithm does to the images first (`tasks.learning.adaptive`); "none".
        architecture: a name of `tasks.learning.models`.
        share: share of the training images that is protected; the others are clean.
        rest_only: train on the clean others alone (`share` names those left out): what the mixture is compared with.
        seed: of weights, order and augmentation.
    """

    protection: str
    countermeasure: str = "none"
    attack: str = "none"
    architecture: str = "resnet18"
    share: Share = 1.0
    rest_only: bool = False
    seed: int = 0


class CellResult(_Record):
    """What was measured. `test_accuracy`: after the last epoch; `history`: test accuracy after each epoch."""

    cell: Cell
    digest: str
    train_accuracy: Share
    test_accuracy: Share
    peak_test_accuracy: Share
    peak_epoch: int
    history: list[Share]
    n_train: Count
    n_test: Count
    seconds: float
    device: str
    precision: str
    mlflow_run: str | None = None


class Histogram(_Record):
    """`counts[i]` values lie from `edges[i]` up to, but not including, `edges[i + 1]`; the last includes its end."""

    edges: list[float]
    counts: list[Count]


class ProtectionFacts(_Record):
    """What one protection made of the training images.

    Attributes:
        parameters: all of its parameters, nested, as JSON has them.
        images: given; `left_out`: could not be protected; `beside`: carry their payload beside the pixels.
        identical: restored bit for bit; `restored`: restored at all; `refused`: not restored.
        max_error: largest difference of a restored sample to the clean one, of 255.
        psnr, ssim: of protected to clean images: mean over the images, and how they spread.
    """

    name: str
    parameters: dict[str, object]
    images: Count
    left_out: Count
    beside: Count
    restored: Count
    identical: Count
    refused: Count
    max_error: int
    psnr_mean: float
    psnr_std: float
    psnr: Histogram
    ssim_mean: float
    ssim_std: float
    ssim: Histogram
    digest: str
    seconds: float


class KeyTrial(_Record):
    """One kind of misuse of keys: how often it was tried, and what came of it.

    Attributes:
        trial: wrong-key, one-bit-wrong-key, swapped-dataset, replayed-payload ...
        protection: on images of which protection.
        refused: tries that were refused; `exact`: tries that gave the clean image (a changed bit that carried nothing);
            `wrong`: tries that gave any other image; must be 0.
        reasons: refusals by the error's name.
    """

    trial: str
    protection: str
    tried: Count
    refused: Count
    exact: Count
    wrong: Count
    reasons: dict[str, Count]


class Setting(_Record):
    """How all cells of a preset were trained."""

    dataset: str
    preset: str
    images: Count
    test_images: Count
    classes: Count
    recipe: str
    epochs: int
    stem: str
    surrogate: dict[str, object]
    surrogate_accuracy: Share
    seeds: list[int]


class Evidence(_Record):
    """All that one preset found."""

    format: Literal["dmcp-evidence/1"] = "dmcp-evidence/1"
    setting: Setting
    protections: list[ProtectionFacts]
    cells: list[CellResult]
    keys: list[KeyTrial]
    machine: dict[str, object]
    command: str
    seconds: float
