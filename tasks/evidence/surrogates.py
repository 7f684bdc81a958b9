"""The owner's network of an evaluation: trained on the clean images of the preset by section `surrogate`, once."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage.files import make_private, sha256_file, write_atomic
from tasks.digests import code_digest
from tasks.evidence.images import ImageSet, Split
from tasks.evidence.protections import Surrogate
from tasks.models_io import ModelInfo, save_model
from tasks.training_job import NetworkParams

if TYPE_CHECKING:
    from tasks.learning.training import TrainResult

CODE = ("tasks/evidence/surrogates.py", "tasks/models_io.py", "tasks/learning")


def surrogate_of(
    section: Any,
    clean: Split,
    test: ImageSet,
    home: Path,
    device: str,
    progress: Callable[[str, int, int | None], None],
) -> Surrogate:
    """Train the surrogate on all cores, unless that was done before.

    Args:
        section: section `surrogate` of params.yaml; its image_size does not count: the images have one size already.

    Raises:
        ParameterError: a parameter can not be used.
    """
    wanted, seed, snapshots = NetworkParams.read(section), int(section.seed), int(section.snapshots)
    folder = make_private(home, "surrogates", _digest(wanted, seed, snapshots, clean, test, device)[:32])
    path, note = folder / "model.pt", folder / "metrics.json"
    if not note.exists():
        models, result = _trained(wanted, seed, snapshots, clean, test, device, progress)
        height, width = clean.images.load().images.shape[1:3]
        info = ModelInfo(wanted.architecture, wanted.stem, clean.classes, height, width)
        save_model(path, models[-1], info, models[:-1])
        said = {"accuracy": result.test_accuracy, "images_per_second": result.images_per_second}
        write_atomic(note, json.dumps(said).encode())
    return Surrogate(path, sha256_file(path), **json.loads(note.read_text()))


def _trained(
    wanted: NetworkParams,
    seed: int,
    snapshots: int,
    clean: Split,
    test: ImageSet,
    device: str,
    progress: Callable[[str, int, int | None], None],
) -> "tuple[list[Any], TrainResult]":
    from tasks.learning.models import Normalized, build_model, channel_statistics
    from tasks.learning.snapshots import train_with_snapshots

    training, classes = clean.images.load(), len(clean.classes)
    network = build_model(wanted.architecture, classes, wanted.stem, seed)
    model = Normalized(network, *channel_statistics(training.images))
    return train_with_snapshots(
        model, training, test.load(), classes=classes, recipe=wanted.recipe, snapshots=snapshots, seed=seed,
        device=device, progress=progress,
    )  # fmt: skip


def _digest(wanted: NetworkParams, seed: int, snapshots: int, clean: Split, test: ImageSet, device: str) -> str:
    import torch

    from tasks.learning.device import resolve_device, resolve_precision

    where = resolve_device(device)
    facts = {
        "params": asdict(wanted) | {"image_size": None}, "seed": seed, "snapshots": snapshots,
        "clean": clean.images.digest, "test": test.digest, "classes": clean.classes, "device": where.type,
        "precision": resolve_precision("auto", where), "torch": torch.__version__, "code": code_digest(*CODE),
    }  # fmt: skip
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
