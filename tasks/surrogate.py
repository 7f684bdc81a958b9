"""The surrogate: the network whose features the perturbation aims at, trained by the owner on the clean variant.

It is private: whoever has it can work against the protection. It stays below data/ and is never published. When data
only came in since it was trained, it is kept (tasks/growth.py).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from storage.files import Progress, replace_directory, write_atomic
from storage.manifest import read_manifest
from tasks.growth import read_trained_on, write_trained_on
from tasks.models_io import save_model
from tasks.training_job import NetworkParams, TrainingJob


def deciding(params: Any) -> dict[str, Any]:
    """What of section `surrogate` decides the network: all but `keep`."""
    values = dict(params) if isinstance(params, Mapping) else dict(vars(params))
    values.pop("keep", None)
    return values


def is_kept(clean_dir: Path, out_dir: Path, params: Any) -> bool:
    """Whether the surrogate in a folder serves this variant too, because that has only grown since.

    Args:
        clean_dir: the variant as it is now.
        out_dir: where a surrogate may be.
        params: section `surrogate`; with `keep` false none is kept.

    Raises:
        CorruptManifest: the variant can not be read.
    """
    values = params if isinstance(params, Mapping) else vars(params)
    record = read_trained_on(out_dir)
    if not values.get("keep") or record is None or not (out_dir / "model.pt").is_file():
        return False
    return record.is_less_than(read_manifest(clean_dir), deciding(params))


def train_surrogate(
    clean_dir: Path,
    test_dir: Path,
    out_dir: Path,
    params: Any,
    *,
    device: str = "auto",
    threads: int | None = None,
    work: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train the surrogate; a killed training is gone on with.

    Args:
        clean_dir, test_dir: variants.
        out_dir: gets `model.pt` (`tasks.models_io.load_model`), `metrics.json` and `trained_on.json`, and appears
            whole. Nothing in it depends on the time, so that the same inputs give the same folder.
        params: section `surrogate` of params.yaml, a mapping or an object: architecture, stem, recipe, epochs, lr,
            batch_size, image_size, seed, snapshots.
        device: "auto", "cpu" or "cuda".
        threads: of the CPU; None: every usable core.
        work: folder for the state of the training; None: below HOME.

    Returns:
        What `metrics.json` says, and `seconds` and `images_per_second` of the training.

    Raises:
        DatasetError, CorruptManifest, CorruptShard, UnsupportedImage: a variant can not be used.
        ParameterError: a parameter can not be used.
        SettingsError: the device is not there.
    """
    manifest = read_manifest(clean_dir)
    wanted = NetworkParams.read(params)
    values = params if isinstance(params, Mapping) else vars(params)
    seed, snapshots = int(values["seed"]), int(values["snapshots"])
    job = TrainingJob(clean_dir, test_dir, wanted, seed, device=device, threads=threads, work=work, snapshots=snapshots)
    trained = job.run(progress)
    metrics = {**trained.metrics(), "recipe": wanted.recipe.name, "seed": seed}
    with replace_directory(out_dir) as folder:
        save_model(folder / "model.pt", trained.model, trained.info, trained.earlier)
        write_trained_on(folder, manifest, deciding(params))
        write_atomic(folder / "metrics.json", (json.dumps(metrics, indent=2, sort_keys=True) + "\n").encode())
    job.finish()
    result = trained.result
    return {**metrics, "seconds": result.seconds, "images_per_second": result.images_per_second}
