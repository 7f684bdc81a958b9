"""A small data set folder as the stages leave it, so that evaluation and report can be checked to the last digit.

Variants are real shards. Their pixels come from plain edits of the clean ones, and the accuracies are invented: both
are inputs whose right evaluation is known beforehand.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.manifest import Manifest, shard_name, write_manifest
from storage.png import encode_png
from storage.shards import Sample, write_shard

Image = NDArray[np.uint8]
Edit = Callable[[Image], Image | None]

CLASSES = ["cat", "a <b>&amp;$x$"]
PARAMS = SimpleNamespace(quality_images=2000, seed=0, grid_images=4)
LAST = {"clean": [0.80, 0.82], "protected": [0.50, 0.54], "recovered": [0.81, 0.81]}


def clean_images(count: int = 8, seed: int = 0) -> list[Image]:
    """Images whose samples lie in 60..190, so that small edits never clip; every fourth is 24 wide and 20 high."""
    random = np.random.default_rng(seed)
    shapes = [(20, 24) if index % 4 == 3 else (16, 16) for index in range(count)]
    return [random.integers(60, 191, (*shape, 3), dtype=np.uint8) for shape in shapes]


def write_variant(folder: Path, images: Sequence[Image | None], dataset: str = "tiny", shard: int = 4) -> None:
    """A variant of two classes in shards of four; None: this image is not in it."""
    folder.mkdir(parents=True)
    infos = []
    for index, start in enumerate(range(0, len(images), shard)):
        samples = [
            Sample(f"{start + i:04d}", encode_png(image), (start + i) % 2)
            for i, image in enumerate(images[start : start + shard])
            if image is not None
        ]
        infos.append(write_shard(folder / shard_name("train", index), samples))
    write_manifest(folder, Manifest(dataset=dataset, split="train", classes=CLASSES, shards=infos))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_model(folder: Path, variant: str, seed: int, last: float, **other: Any) -> None:
    """The record, the curve (two epochs) and the confusion (10 test images) of one model."""
    record = {
        "variant": variant, "seed": seed, "train_accuracy": 0.99, "test_accuracy": last,
        "peak_test_accuracy": last + 0.01, "epochs": 2, "seconds": 10.0, "recipe": "modern", "architecture": "resnet18",
        "stem": "small", "n_train": 8, "n_test": 1000, "something_new": 1,
    }  # fmt: skip
    write_json(folder / "metrics" / f"train-{variant}-{seed}.json", record | other)
    at = folder / "models" / f"{variant}-{seed}"
    at.mkdir(parents=True, exist_ok=True)
    at.joinpath("history.csv").write_text(
        f"epoch,train_loss,train_accuracy,test_accuracy,lr\n1,1.5,0.5,0.4,0.01\n2,0.5,0.99,{last},0.01\n"
    )
    rows = [f'{CLASSES[i % 2]},"{CLASSES[0]}"' for i in range(10)]
    at.joinpath("confusion.csv").write_text("actual,predicted\n" + "\n".join(rows) + "\n")


def make_folder(
    root: Path,
    protect: Edit = lambda image: image + np.uint8(10),
    recover: Edit = lambda image: image ^ np.uint8(1),
    dataset: str = "tiny",
    left_out: Sequence[int] = (),
) -> Path:
    """`data/DATASET` with three variants of eight images, two seeds a variant, and the stages' records."""
    clean = clean_images()
    kept = [None if index in left_out else image for index, image in enumerate(clean)]
    write_variant(root / "clean", clean, dataset)
    write_variant(root / "protected", [None if image is None else protect(image) for image in kept], dataset)
    write_variant(root / "recovered", [None if image is None else recover(image) for image in kept], dataset)
    for variant, values in LAST.items():
        for seed, last in enumerate(values):
            write_model(root, variant, seed, last)
    count = len(clean) - len(left_out)
    write_json(
        root / "metrics" / "protect.json",
        {
            "images": len(clean),
            "protected": count,
            "left_out": [{"key": f"{i:04d}", "reason": "nothing fitted <here>", "shard": "x"} for i in left_out],
            "rungs": {"configured": count - 1, "one more plane": 1},
            "payload_bytes": {
                "min": 10,
                "mean": 15.5,
                "max": 29,
                "histogram": {"edges": [10, 20, 30], "counts": [5, 3]},
            },
            "capacity_bytes": 69,
            "seconds": {"perturb": 4.0, "hide": 0.5},
            "wall_seconds": 2.5,
            "fresh": 5,
            "workers": 2,
            "pixels": 1,
        },
    )
    write_json(
        root / "metrics" / "restore.json",
        {"images": count, "restored": count, "refused": [], "seconds": {"decode": 0.1, "restore": 0.2}},
    )
    return root
