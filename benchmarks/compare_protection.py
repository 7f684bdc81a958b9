"""Compare protections on CIFAR-10 by what networks learn from them: accuracy on clean test images, over PSNR.

    python -m benchmarks.compare_protection --images 10000 --epochs 12 --seeds 0 1 2 --out results.json \
        clean paper exact exact,set.amplitude=8 exact,perturbation.steps=0

A row is `clean`, or a profile with other parameters than those of params.yaml. Images come from the mirror
(DMCP_MIRROR). All rows share one surrogate (seed 1000, trained on the same clean images) and one key; everything is
protected by the real code, sealed, carried and, as always, restored once. What stands in the results already, by row,
architecture and seed, is not computed again: a run that was stopped goes on. On a CPU one network a core is trained,
side by side, which is faster than one on all cores.
"""

import argparse
import json
import multiprocessing
import time
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from flows.protect import method_named
from storage.files import write_atomic
from storage.settings import settings
from tasks.datasets import get
from tasks.datasets.source import Place
from tasks.learning.device import usable_cores
from tasks.learning.features import Features
from tasks.learning.models import Normalized, build_model, channel_statistics
from tasks.learning.recipes import recipe_named
from tasks.learning.training import LabelledImages, TrainResult, train
from tasks.machine import describe_machine
from tasks.method.perturbation import build_library
from tasks.method.profiles import LeftOut
from tasks.method.seal import DataKey
from tasks.params import deep_merge, load_params

KEY = DataKey(bytes(range(32)), "comparison")
BATCH = 1000


def load(split: str, count: int) -> LabelledImages:
    """The first `count` images of CIFAR-10's split."""
    module = get("cifar10")
    with module.open_source(module.Parameters(), Place(settings().mirror, settings().home_path("downloads"))) as source:
        found = source.splits[split]
        labels = np.array(found.labels[:count], np.int64)
        return LabelledImages(np.stack([found.read(i) for i in range(len(labels))]), labels)


def trained(
    training: LabelledImages, test: LabelledImages, architecture: str, seed: int, options: argparse.Namespace
) -> tuple[Normalized, TrainResult]:
    """Train one network."""
    network = build_model(architecture, 10, options.stem, seed)
    model = Normalized(network, *channel_statistics(training.images))
    recipe = recipe_named("modern", options.epochs, options.lr)
    device, threads = settings().device, options.threads
    return model, train(
        model, training, test, classes=10, recipe=recipe, seed=seed, device=device, threads=threads
    )  # fmt: skip


def measured(
    training: LabelledImages, test: LabelledImages, architecture: str, seed: int, options: argparse.Namespace
) -> dict[str, Any]:
    """What one network says of the images it was trained on."""
    result = trained(training, test, architecture, seed, options)[1]
    return {
        "last": result.test_accuracy,
        "peak": result.peak.test_accuracy,
        "train": result.train_accuracy,
        "history": [round(line.test_accuracy, 4) for line in result.history],
        "seconds": round(result.seconds, 1),
    }


class Comparison:
    """The images, the surrogate, and the results so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.training, self.test = load("train", options.images), load("test", 10_000)
        self.path: Path = options.out
        self.results: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else {"rows": {}}
        self._surrogate: Normalized | None = None

    @property
    def surrogate(self) -> Normalized:
        """Trained on the clean images when it is first asked for."""
        if self._surrogate is None:
            alone = argparse.Namespace(**{**vars(self.options), "threads": None})
            self._surrogate, result = trained(self.training, self.test, "resnet18", 1000, alone)
            self.results["surrogate"] = result.test_accuracy
            self._surrogate.eval()
        return self._surrogate

    def protected(self, row: str) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """The images of a row, and what is to be said of them."""
        images, labels = self.training.images, self.training.labels
        if row == "clean":
            return images, {}
        method = method_of(row)
        features = Features(self.surrogate, method.layer)
        wanted = method.perturbation.library
        library = build_library(features, [list(images[labels == c][:wanted]) for c in range(10)], wanted, "cpu")
        perturber, out, spilled = method.perturber(features, library, KEY, "cpu"), images.copy(), 0
        started = time.perf_counter()
        for i in range(0, len(images), BATCH):
            part = slice(i, i + BATCH)
            ids = [KEY.image_id("train", str(n)) for n in range(i, min(i + BATCH, len(images)))]
            fitted = method.profile.fit(images[part], perturber.perturb(images[part], labels[part], ids))
            kept = [n for n, f in enumerate(fitted) if not isinstance(f, LeftOut)]
            known: list[int | None] = [int(labels[i + n]) for n in kept]
            good = [f for f in fitted if not isinstance(f, LeftOut)]
            carried = method.profile.carry(good, images[part][kept], known, [ids[n] for n in kept], KEY)
            for n, c in zip(kept, carried, strict=True):
                out[i + n] = c.image
                spilled += c.spilled is not None
        errors = ((out.astype(np.float32) - images) ** 2).mean((1, 2, 3))
        psnr = 10 * np.log10(255**2 / np.maximum(errors, 1e-9))
        seconds = round(time.perf_counter() - started, 1)
        return out, {"psnr": float(psnr.mean()), "beside": spilled / len(images), "seconds": seconds}

    def run(self) -> None:
        """Fill in what is missing, writing after each model."""
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self.options.workers, spawn) as pool:
            jobs: dict[Future[dict[str, Any]], tuple[str, str]] = {}
            for row in self.options.rows:
                entry = self.results["rows"].setdefault(row, {"models": {}})
                names = [(a, s) for a in self.options.architectures for s in self.options.seeds]
                todo = [(a, s) for a, s in names if f"{a}-{s}" not in entry["models"]]
                if not todo:
                    continue
                images, facts = self.protected(row)
                entry |= facts
                data = LabelledImages(images, self.training.labels)
                for architecture, seed in todo:
                    job = pool.submit(measured, data, self.test, architecture, seed, self.options)
                    jobs[job] = (row, f"{architecture}-{seed}")
            for done in as_completed(jobs):
                row, name = jobs[done]
                found = self.results["rows"][row]["models"][name] = done.result()
                self.save()
                print(f"{row} {name}: {found['last']:.3f}, peak {found['peak']:.3f}", flush=True)

    def save(self) -> None:
        """Write the results, whole or not at all."""
        o = self.options
        self.results |= {
            "images": o.images, "test_images": len(self.test.images), "epochs": o.epochs, "lr": o.lr, "stem": o.stem,
            "recipe": "modern", "torch": torch.__version__, "machine": describe_machine(),
        }  # fmt: skip
        write_atomic(self.path, (json.dumps(self.results, indent=1) + "\n").encode())


def method_of(row: str) -> Any:
    """`exact,set.amplitude=8`: a profile, with other values laid over params.yaml's."""
    profile, *changes = row.split(",")
    section: dict[str, Any] = load_params("cifar10").protect.model_dump()
    for change in changes:
        name, _, value = change.partition("=")
        nested: Any = yaml.safe_load(value)
        for part in reversed(name.split(".")):
            nested = {part: nested}
        section = deep_merge(section, {profile: nested})
    return method_named(section | {"profile": profile})


def markdown(results: dict[str, Any]) -> str:
    """A line a row and architecture: mean and standard deviation over the seeds."""
    lines = ["| trained on | network | PSNR, dB | beside, % | last | peak | n |", "|---|---|---|---|---|---|---|"]
    for row, entry in results["rows"].items():
        for architecture in dict.fromkeys(name.rsplit("-", 1)[0] for name in entry["models"]):
            models = [m for name, m in entry["models"].items() if name.rsplit("-", 1)[0] == architecture]
            cells = [_spread([100 * m[key] for m in models]) for key in ("last", "peak")]
            psnr, beside = (f"{entry['psnr']:.2f}", f"{100 * entry['beside']:.2f}") if "psnr" in entry else ("", "")
            lines.append(f"| {row} | {architecture} | {psnr} | {beside} | {cells[0]} | {cells[1]} | {len(models)} |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    return f"{np.mean(values):.1f}" + (f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else "")


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="+")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--stem", default="imagenet")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--architectures", nargs="+", default=["resnet18"])
    parser.add_argument("--workers", type=int, default=usable_cores(), help="networks at once")
    parser.add_argument("--threads", type=int, default=1, help="of each")
    parser.add_argument("--out", type=Path, required=True)
    comparison = Comparison(parser.parse_args())
    comparison.run()
    print(markdown(comparison.results))


if __name__ == "__main__":
    main()
