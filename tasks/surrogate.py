"""The surrogate: the network whose features the perturbation aims at, trained by the owner on the clean variant.

It is private: whoever has it can work against the protection. It stays below data/ and is never published.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from storage.files import Progress, replace_directory, write_atomic
from tasks.models_io import save_model
from tasks.training_job import NetworkParams, TrainingJob


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
        out_dir: gets `model.pt` (`tasks.models_io.load_model`) and `metrics.json`, and appears whole. Nothing in it
            depends on the time, so that the same inputs give the same folder.
        params: section `surrogate` of params.yaml, a mapping or an object: architecture, stem, recipe, epochs, lr,
            batch_size, image_size, seed.
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
    wanted = NetworkParams.read(params)
    seed = int(params["seed"] if isinstance(params, Mapping) else params.seed)
    job = TrainingJob(clean_dir, test_dir, wanted, seed, device=device, threads=threads, work=work)
    trained = job.run(progress)
    metrics = {**trained.metrics(), "recipe": wanted.recipe.name, "seed": seed}
    with replace_directory(out_dir) as folder:
        save_model(folder / "model.pt", trained.model, trained.info)
        write_atomic(folder / "metrics.json", (json.dumps(metrics, indent=2, sort_keys=True) + "\n").encode())
    job.finish()
    result = trained.result
    return {**metrics, "seconds": result.seconds, "images_per_second": result.images_per_second}
