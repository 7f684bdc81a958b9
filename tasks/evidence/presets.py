"""Presets: which cells an evaluation has. Section `evidence` of params.yaml, and the list of cells that it means.

A preset says how many images, how every network is trained, and which rows there are. The **main rows** (each
protection, plainly trained, with every seed) come first; then come the **side rows**, with `side_seeds` (some of the
seeds, so that each has a main row to stand beside): countermeasures, attacks by one who knows the algorithm, other
networks, and shares. `of` names the protections that a kind of side row is made for.

`clean` stands for no protection. NAME-recovered stands for what an authorised user gets back of what NAME protects.
Names of countermeasures, attacks and networks are checked when the cells are made, where torch may be imported.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tasks.evidence.records import CLEAN, Cell

RECOVERED = "-recovered"
MAIN = "main rows"
GROUPS = (MAIN, "countermeasures", "attacks", "architectures", "shares")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NamedRows(_Section):
    """Side rows: each of `names` with each protection in `of`."""

    names: list[str]
    of: list[str]


class ShareRows(_Section):
    """Side rows: for each share the mixture of protected and clean images, and the clean rest alone."""

    shares: list[float]
    of: list[str]

    @model_validator(mode="after")
    def _between(self) -> "ShareRows":
        if any(not 0 < share < 1 for share in self.shares):
            raise ValueError("shares lie between 0 and 1; all protected and all clean are main rows")
        return self


class PresetParams(_Section):
    """One preset."""

    images: int | None = Field(ge=2, description="training images at most, balanced over the classes; null: all")
    test_images: int | None = Field(ge=1, description="clean test images at most, likewise")
    image_size: int | None = Field(
        ge=16, le=4096, description="images are scaled to it first; null: they have one size"
    )
    architecture: str = Field(description="network of all rows but those of `architectures`")
    stem: Literal["imagenet", "small"]
    recipe: Literal["paper", "modern"]
    epochs: int | None = Field(ge=1, le=10_000, description="null: the recipe's own")
    lr: float | None = Field(gt=0, le=100)
    batch_size: int | None = Field(ge=2, le=100_000)
    key_seed: int = Field(ge=0, description="of the evaluation key, which protects nothing: anyone can derive it")
    key_trials: int = Field(ge=0, description="wrong keys, swapped payloads ... for each protection; 0: none")
    protections: list[str] = Field(min_length=1, description="main rows: clean, names of `protections`, NAME-recovered")
    seeds: list[int] = Field(min_length=1, description="of the main rows")
    side_seeds: list[int] = Field(min_length=1, description="of the other rows: some of `seeds`")
    countermeasures: NamedRows
    attacks: NamedRows
    architectures: NamedRows
    shares: ShareRows

    @model_validator(mode="after")
    def _beside_main_rows(self) -> "PresetParams":
        alone = sorted(set(self.side_seeds) - set(self.seeds))
        if alone and any(cells for group, cells in cells_of(self).items() if group != MAIN):
            raise ValueError(f"side_seeds has {alone[0]}, which is not one of `seeds`: no main row to compare with")
        return self

    def used(self) -> list[str]:
        """Protections that some row needs, without clean and without -recovered, in the order they are named."""
        named = [*self.protections, *(name for rows in self._sides() for name in rows.of)]
        return list(dict.fromkeys(protection_of(name) for name in named if name != CLEAN))

    def _sides(self) -> Iterator[NamedRows | ShareRows]:
        yield from (self.countermeasures, self.attacks, self.architectures, self.shares)


class EvidenceParams(_Section):
    """Section `evidence`. `protections`: by name, what each has otherwise than section `protect`."""

    protections: dict[str, dict[str, Any]]
    presets: dict[str, PresetParams]

    @model_validator(mode="after")
    def _known(self) -> "EvidenceParams":
        for name in self.protections:
            if name == CLEAN or name.endswith(RECOVERED) or not name.replace("-", "").replace("_", "").isalnum():
                raise ValueError(f"a protection can not be called {name!r}")
        for name, preset in self.presets.items():
            if not name.replace("_", "").isalnum():
                raise ValueError(f"a preset can not be called {name!r}: letters, digits and _")
            unknown = [used for used in preset.used() if used not in self.protections]
            if unknown:
                raise ValueError(f"preset {name} has rows of {unknown[0]!r}, which is not one of `protections`")
        return self


def protection_of(name: str) -> str:
    """`exact-recovered` -> `exact`."""
    return name.removesuffix(RECOVERED)


def cells_of(preset: PresetParams) -> dict[str, list[Cell]]:
    """All cells by group, none twice: what an earlier group has, a later one leaves out."""
    seen: dict[Cell, None] = {}
    groups: dict[str, list[Cell]] = {}
    for group, cells in zip(GROUPS, (_main, _countermeasures, _attacks, _architectures, _shares), strict=True):
        groups[group] = [cell for cell in dict.fromkeys(cells(preset)) if cell not in seen]
        seen |= dict.fromkeys(groups[group])
    return groups


def _main(preset: PresetParams) -> Iterator[Cell]:
    for seed in preset.seeds:
        for protection in preset.protections:
            yield Cell(protection=protection, architecture=preset.architecture, seed=seed)


def _named(preset: PresetParams, rows: NamedRows) -> Iterator[tuple[str, dict[str, Any]]]:
    for name in rows.names:
        for seed in preset.side_seeds:
            for protection in rows.of:
                yield name, {"protection": protection, "seed": seed}


def _countermeasures(preset: PresetParams) -> Iterator[Cell]:
    for name, rest in _named(preset, preset.countermeasures):
        yield Cell(countermeasure=name, architecture=preset.architecture, **rest)


def _attacks(preset: PresetParams) -> Iterator[Cell]:
    for name, rest in _named(preset, preset.attacks):
        yield Cell(attack=name, architecture=preset.architecture, **rest)


def _architectures(preset: PresetParams) -> Iterator[Cell]:
    for name, rest in _named(preset, preset.architectures):
        yield Cell(architecture=name, **rest)


def _shares(preset: PresetParams) -> Iterator[Cell]:
    for share in preset.shares.shares:
        for seed in preset.side_seeds:
            for protection in preset.shares.of:
                one = {"protection": protection, "architecture": preset.architecture, "share": share, "seed": seed}
                yield Cell(**one)
                yield Cell(**one, rest_only=True)


ARCHITECTURE_COST: Mapping[str, float] = {
    "resnet18": 1.0, "resnet50": 4.0, "mobilenet_v2": 1.2, "densenet121": 5.0, "vgg11_bn": 1.5, "vit_small": 1.2,
}  # fmt: skip
COUNTERMEASURE_COST: Mapping[str, float] = {"adversarial": 2.2}
"""Time of an image and epoch, relative to ResNet-18 without countermeasure: measured on CPUs, and rough."""

SMALL_STEM_COST = 8.0


def speed_of(images_per_second: float, architecture: str, stem: str) -> float:
    """Of ResNet-18 with torchvision's stem, from the speed that another network was trained at."""
    return images_per_second * ARCHITECTURE_COST.get(architecture, 1.0) * (SMALL_STEM_COST if stem == "small" else 1.0)


def cost(cell: Cell, images: int, epochs: int, stem: str) -> float:
    """About how much work a cell is: images times epochs, of ResNet-18 with torchvision's stem."""
    share = 1 - cell.share if cell.rest_only else 1.0
    factor = ARCHITECTURE_COST.get(cell.architecture, 1.0) * (SMALL_STEM_COST if stem == "small" else 1.0)
    return images * share * epochs * factor * COUNTERMEASURE_COST.get(cell.countermeasure, 1.0)
