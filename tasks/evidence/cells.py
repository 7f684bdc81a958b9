"""One cell: what it trains on, the digest that says whether it was answered before, and the answer.

`answer` runs in a process of its own and knows no MLflow: it reads images from disk, trains, and leaves its result
where the next run finds it (`tasks/evidence/store.py`), so that a killed run loses the cells in flight, nothing else.
"""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from storage.errors import ParameterError
from storage.files import write_atomic
from tasks.digests import code_digest
from tasks.evidence.images import ImageSet, protected_rows
from tasks.evidence.presets import RECOVERED, PresetParams, protection_of
from tasks.evidence.records import CLEAN, Cell, CellResult
from tasks.learning.recipes import Recipe, recipe_named
from tasks.learning.training import LabelledImages

if TYPE_CHECKING:
    from tasks.evidence.protections import Protected

NONE = "none"
CODE = ("tasks/evidence/cells.py", "tasks/evidence/images.py", "tasks/learning", "tasks/method")


@dataclass(frozen=True)
class Networks:
    """How all cells of a preset are trained."""

    recipe: Recipe
    stem: str
    classes: int
    device: str

    @classmethod
    def of(cls, preset: PresetParams, classes: int, device: str) -> "Networks":
        """From the preset. Raises ParameterError."""
        recipe = recipe_named(preset.recipe, preset.epochs, preset.lr, preset.batch_size)
        return cls(recipe, preset.stem, classes, device)


@dataclass(frozen=True)
class CellJob:
    """A cell with all that is needed to answer it.

    Attributes:
        clean: all clean training images; `shown`: what stands for the protection, clean where there is none.
        result: file that the answer is left in.
    """

    cell: Cell
    digest: str
    clean: ImageSet
    shown: ImageSet
    test: ImageSet
    networks: Networks
    result: Path


def jobs_of(
    cells: list[Cell],
    clean: ImageSet,
    test: ImageSet,
    protected: Mapping[str, "Protected"],
    networks: Networks,
    home: Path,
) -> list[CellJob]:
    """The cells with their images and digests.

    Raises:
        ParameterError: a countermeasure, an attack or a network is unknown.
    """
    jobs = []
    for cell in cells:
        _check_names(cell)
        shown = _shown(cell, clean, protected)
        digest = digest_of(cell, clean, shown, test, networks)
        jobs.append(CellJob(cell, digest, clean, shown, test, networks, home / f"{digest}.json"))
    return jobs


def _check_names(cell: Cell) -> None:
    from tasks.learning.adaptive import attack_named
    from tasks.learning.countermeasures import countermeasure_named
    from tasks.learning.models import ARCHITECTURES

    countermeasure_named(cell.countermeasure)
    attack_named(cell.attack)
    if cell.architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ParameterError(f"The architecture {cell.architecture!r} is unknown.", f"Choose one of {known}.")


def _shown(cell: Cell, clean: ImageSet, protected: Mapping[str, "Protected"]) -> ImageSet:
    if cell.protection == CLEAN:
        return clean
    made = protected[protection_of(cell.protection)]
    return made.recovered if cell.protection.endswith(RECOVERED) else made.published


def digest_of(cell: Cell, clean: ImageSet, shown: ImageSet, test: ImageSet, networks: Networks) -> str:
    """SHA-256 (hex) of all that decides the answer: images, treatment, network, recipe, seed, code, device, torch.

    What the cell is called does not count: two protections that give the same images are one question, and the clean
    rest alone is the same whatever protects the others. Nor does the number of threads, which changes rounding only.
    """
    import torch

    from tasks.learning.device import resolve_device, resolve_precision

    mixed = cell.share < 1
    images = [shown.digest] if not cell.rest_only else []
    if mixed or _leaks(cell):
        images.append(clean.digest)
    device = resolve_device(networks.device)
    facts = {
        "images": images,
        "share": cell.share if mixed else None,
        "rest_only": cell.rest_only,
        "test": test.digest,
        "classes": networks.classes,
        "countermeasure": cell.countermeasure,
        "attack": cell.attack,
        "architecture": cell.architecture,
        "stem": networks.stem,
        "recipe": asdict(networks.recipe),
        "seed": cell.seed,
        "device": device.type,
        "precision": resolve_precision("auto", device),
        "torch": torch.__version__,
        "code": code_digest(*CODE),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _leaks(cell: Cell) -> bool:
    if cell.attack == NONE:
        return False
    from tasks.learning.adaptive import attack_named

    return attack_named(cell.attack).leaks > 0


def training_images(job: CellJob, threads: int | None = None) -> LabelledImages:
    """What the cell trains on, before any countermeasure: the attack is on the protected images alone."""
    cell = job.cell
    clean = job.clean.load()
    hidden = protected_rows(clean.labels, cell.share, cell.seed) if cell.share < 1 else np.ones(len(clean.labels), bool)
    if cell.rest_only:
        return LabelledImages(clean.images[~hidden], clean.labels[~hidden])
    rows, shown = job.shown.rows(), _attacked(job, clean, threads)
    if cell.share == 1:
        return shown
    images, there = clean.images.copy(), ~hidden
    used = hidden[rows]
    images[rows[used]] = shown.images[used]
    there[rows[used]] = True  # what could not be protected is not published
    return LabelledImages(images[there], clean.labels[there])


def _attacked(job: CellJob, clean: LabelledImages, threads: int | None) -> LabelledImages:
    if job.cell.attack == NONE:
        return job.shown.load()  # without the method's compiled code, which attacks need
    from tasks.learning.adaptive import attack_named, draw_leaked

    attack, seed = attack_named(job.cell.attack), job.cell.seed
    shown = job.shown.load()
    leaked = draw_leaked(clean.images[job.shown.rows()], attack.leaks, seed) if attack.leaks else None
    return attack.apply(
        shown, classes=job.networks.classes, leaked=leaked, seed=seed, device=job.networks.device, threads=threads
    )


def answer(job: CellJob, threads: int | None = None) -> CellResult:
    """Train and test, and leave the result in `job.result`.

    Args:
        threads: of the CPU; None: every usable core.

    Raises:
        ParameterError: the images are too small for the network, or the loss is no longer finite.
        SettingsError: the device is not there.
    """
    from tasks.learning.countermeasures import countermeasure_named
    from tasks.learning.models import Normalized, build_model, channel_statistics
    from tasks.learning.training import train

    started = time.perf_counter()
    cell, networks = job.cell, job.networks
    counter = countermeasure_named(cell.countermeasure)
    given, device, classes = training_images(job, threads), networks.device, networks.classes
    training, test = counter.prepare(
        given, job.test.load(), classes=classes, seed=cell.seed, device=device, threads=threads
    )
    network = build_model(cell.architecture, classes, networks.stem, cell.seed)
    model = Normalized(network, *channel_statistics(training.images))
    found = train(
        model,
        training,
        test,
        classes=classes,
        recipe=networks.recipe,
        seed=cell.seed,
        device=device,
        threads=threads,
        intervention=counter.intervention(),
    )
    result = CellResult(
        cell=cell,
        digest=job.digest,
        train_accuracy=found.train_accuracy,
        test_accuracy=found.test_accuracy,
        peak_test_accuracy=found.peak.test_accuracy,
        peak_epoch=found.peak.epoch,
        history=[round(line.test_accuracy, 6) for line in found.history],
        n_train=len(training.images),
        n_test=len(test.images),
        seconds=round(time.perf_counter() - started, 3),
        device=found.device,
        precision=found.precision,
    )
    write_atomic(job.result, result.model_dump_json(indent=1).encode())
    return result
