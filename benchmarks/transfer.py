"""Screen perturbations in minutes: how often a network that nobody aimed at takes an image for the target class.

    python -m benchmarks.transfer --images 20000 --epochs 8 --networks FOLDER --out results.json \
        exact exact,perturbation.flips=true exact,perturbation.flips=true@5,6,7,8

Two ResNet-18 are trained on the first images of CIFAR-10 (from the mirror, DMCP_MIRROR): the surrogate (seed 1000) and
another (seed 2000), and what both were after each epoch is kept in FOLDER. A row is a profile `exact` with other
parameters than those of params.yaml, and, after @, the epochs whose networks take turns (default: as section
`surrogate` spreads them). Shown is, for what the other one was after each epoch, which share of the perturbed images it
takes for the class that they were pushed to, cropped and mirrored as a training does. What transfers is not what a
training learns: it tells which rows are worth one (`benchmarks.compare_protection`).
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.compare_protection import KEY, load, method_of, trained
from storage.errors import UsageError
from storage.files import write_atomic
from tasks.learning.augmentation import crop_and_flip, crop_padding, plan_epoch
from tasks.learning.features import LOGITS, Features
from tasks.learning.models import Normalized
from tasks.learning.snapshots import snapshot_epochs
from tasks.machine import describe_machine
from tasks.params import load_params
from tasks.protect import no_targets, one_thread

SURROGATE, OTHER = 1000, 2000
VIEWS = 4


def networks(seed: int, options: argparse.Namespace) -> list[Normalized]:
    """What one network was after each epoch of its training; trained when the folder does not have it."""
    path = options.networks / f"resnet18-{seed}-{options.images}-{options.epochs}.pt"
    if path.exists():
        found: list[Normalized] = torch.load(path, weights_only=False)  # a file of our own
        return found
    training, test = load("train", options.images), load("test", 10_000)
    models, result = trained(training, test, "resnet18", seed, options, options.epochs)
    print(f"network {seed}: {result.test_accuracy:.3f} of the test images right, {result.seconds:.0f} s", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(models, path)
    return models


def perturbed(row: str, images: NDArray[np.uint8], labels: NDArray[np.int64], models: list[Normalized]) -> Any:
    """The perturbed images of a row, uint8 [n, 32, 32, 3], and their target classes, int64 [n]."""
    row, _, epochs = row.partition("@")
    method = method_of(row)
    if method.layer != LOGITS:
        raise UsageError(f"{row} has no target class.", "Name rows of profile exact with layer logits.")
    spread = snapshot_epochs(len(models), load_params("cifar10").surrogate.snapshots)
    chosen = [int(epoch) for epoch in epochs.split(",")] if epochs else spread
    features = [Features(models[epoch - 1].eval(), LOGITS) for epoch in chosen]
    perturber = method.perturber(features, no_targets(10), KEY, "cpu")
    seeds = [KEY.image_seed(KEY.image_id("train", str(n))) for n in range(len(images))]
    return perturber.perturb(images, labels, seeds), perturber.target_class[labels]


@torch.no_grad()
def taken(model: Normalized, images: NDArray[np.uint8], target: NDArray[np.int64]) -> float:
    """The share of the images that the network takes for their target, each seen a few times as in a training."""
    features, padding = Features(model.eval(), LOGITS), crop_padding(*images.shape[1:3])
    hits = []
    for view in range(VIEWS):
        plan = plan_epoch(len(images), 0, view, padding)
        assert plan.rows is not None and plan.columns is not None and plan.mirrored is not None
        seen = crop_and_flip(torch.from_numpy(images), plan.rows, plan.columns, plan.mirrored, padding)
        found = features(seen.permute(0, 3, 1, 2).float() / 255).argmax(1)
        hits.append((found.numpy() == target).mean())
    return float(np.mean(hits))


def main() -> None:
    """Train what is missing, measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="+")
    parser.add_argument("--images", type=int, default=20_000, help="that the networks are trained on")
    parser.add_argument("--perturbed", type=int, default=500, help="images of them that are perturbed")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--stem", default="imagenet")
    parser.add_argument("--networks", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.threads = 1
    one_thread()
    surrogate, other = networks(SURROGATE, options), networks(OTHER, options)
    data = load("train", options.perturbed)
    results: dict[str, Any] = {
        "setting": {name: getattr(options, name) for name in ("images", "perturbed", "epochs", "lr", "stem")},
        "machine": describe_machine(),
        "rows": {},
    }
    for row in options.rows:
        shown, target = perturbed(row, data.images, data.labels, surrogate)
        psnr = 10 * np.log10(255**2 / ((shown.astype(np.float32) - data.images) ** 2).mean((1, 2, 3)))
        shares = [round(taken(model, shown, target), 4) for model in other]
        results["rows"][row] = {"psnr": round(float(psnr.mean()), 2), "taken": shares}
        print(f"{row}: {psnr.mean():.2f} dB, " + " ".join(f"{100 * share:.0f}" for share in shares), flush=True)
        write_atomic(options.out, (json.dumps(results, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
