"""Compare protections on CIFAR-10 by what networks learn from them: accuracy on clean test images, over PSNR.

    python -m benchmarks.compare_protection --images 10000 --epochs 12 --seeds 0 1 2 --out results.json \
        clean paper exact exact,set.amplitude=8 exact,perturbation.smoothing=0

A row is `clean`, or a profile with other parameters than those of params.yaml. Images come from the mirror
(DMCP_MIRROR). All rows share one surrogate (seed 1000, trained on the same clean images) and one key; everything is
protected by the real code, sealed, carried and, as always, restored once. What stands in the results already, by row,
architecture and seed, is not computed again: a run that was stopped goes on, if the surrogate that it trains anew is
the same one bit for bit, as on the same machine. On a CPU one network a core is trained, side by side, which is faster
than one on all cores.
"""

import argparse
import hashlib
import json
import multiprocessing
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from storage.errors import UsageError
from storage.files import write_atomic
from storage.settings import settings
from tasks.datasets import get
from tasks.datasets.source import Place
from tasks.learning.device import resolve_device, usable_cores
from tasks.learning.features import LOGITS, Features
from tasks.learning.models import Normalized, build_model, channel_statistics
from tasks.learning.recipes import recipe_named
from tasks.learning.snapshots import train_with_snapshots
from tasks.learning.training import LabelledImages, TrainResult
from tasks.machine import describe_machine
from tasks.method.perturbation import build_library
from tasks.method.profiles import LeftOut
from tasks.method.seal import DataKey
from tasks.params import deep_merge, load_params
from tasks.protect import Method, method_named, no_targets

KEY = DataKey(bytes(range(32)), "comparison")
BATCH = 1000
Job = Future[dict[str, Any]]
Jobs = dict[Job, tuple[str, str]]


def load(split: str, count: int) -> LabelledImages:
    """The first `count` images of CIFAR-10's split."""
    module = get("cifar10")
    with module.open_source(module.Parameters(), Place(settings().mirror, settings().home_path("downloads"))) as source:
        found = source.splits[split]
        labels = np.array(found.labels[:count], np.int64)
        return LabelledImages(np.stack([found.read(i) for i in range(len(labels))]), labels)


def trained(
    training: LabelledImages,
    test: LabelledImages,
    architecture: str,
    seed: int,
    options: argparse.Namespace,
    snapshots: int = 1,
) -> tuple[list[Normalized], TrainResult]:
    """Train one network; see `train_with_snapshots`."""
    network = build_model(architecture, 10, options.stem, seed)
    model = Normalized(network, *channel_statistics(training.images))
    recipe = recipe_named("modern", options.epochs, options.lr)
    device, threads = settings().device, options.threads
    return train_with_snapshots(
        model, training, test, classes=10, recipe=recipe, snapshots=snapshots, seed=seed, device=device, threads=threads
    )


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
        asked = {name: getattr(options, name) for name in ("images", "epochs", "lr", "stem")}
        asked["snapshots"] = self.snapshots = load_params("cifar10").surrogate.snapshots
        self.results: dict[str, Any] = {"setting": asked, "rows": {}}
        if self.path.exists():
            self.results = json.loads(self.path.read_text())
        if asked | self.results["setting"] != asked:  # older files do not say how many snapshots
            raise UsageError(f"{self.path} was made with {self.results['setting']}.", "Write to another file.")
        self._surrogate: list[Normalized] = []

    @property
    def surrogate(self) -> list[Normalized]:
        """Trained on the clean images when it is first asked for; with snapshots, as section `surrogate` says.

        Raises:
            UsageError: rows of the results were protected with another one.
        """
        if not self._surrogate:
            alone = argparse.Namespace(**{**vars(self.options), "threads": None})
            networks, result = trained(self.training, self.test, "resnet18", 1000, alone, self.snapshots)
            self._put_down(weights_digest(networks))
            self._surrogate, self.results["surrogate"] = networks, result.test_accuracy
            print(f"surrogate: {result.test_accuracy:.3f}, {result.seconds:.0f} s", flush=True)
        return self._surrogate

    def _put_down(self, digest: str) -> None:
        """Put down the surrogate by its digest, unless there are rows of another one, or of one that has no digest."""
        known = self.results.get("surrogate_sha256", "not named")
        made = [row for row, entry in self.results["rows"].items() if row != "clean" and entry["models"]]
        if made and known != digest:
            what = f"{self.path} has {', '.join(made)} with another surrogate (SHA-256 {known}; now {digest})."
            raise UsageError(what, "Write to another file: a table is of one surrogate.")
        self.results["surrogate_sha256"] = digest

    def protected(self, row: str) -> tuple[LabelledImages, dict[str, Any]]:
        """What is published of a row, and what is to be said of it."""
        images, labels = self.training.images, self.training.labels
        if row == "clean":
            return self.training, {}
        method, device = method_of(row), resolve_device(settings().device).type
        networks = self.surrogate if method.layer == LOGITS else self.surrogate[-1:]
        features = [Features(one.eval(), method.layer) for one in networks]
        library = self._targets(features[-1], method, device) if method.has_targets else no_targets(10)
        perturber, out, kept, spilled = method.perturber(features, library, KEY, device), [], [], 0
        started = time.perf_counter()
        for first in range(0, len(images), BATCH):
            part = np.arange(first, min(first + BATCH, len(images)))
            ids = [KEY.image_id("train", str(n)) for n in part]
            perturbed = perturber.perturb(images[part], labels[part], [KEY.image_seed(i) for i in ids])
            fitted = method.profile.fit(images[part], perturbed)
            good = [n for n, f in enumerate(fitted) if not isinstance(f, LeftOut)]
            known: list[int | None] = [int(labels[part[n]]) for n in good]
            looks = [f for f in fitted if not isinstance(f, LeftOut)]
            carried = method.profile.carry(looks, images[part[good]], known, [ids[n] for n in good], KEY)
            out += [c.image for c in carried]
            kept += [int(part[n]) for n in good]
            spilled += sum(c.spilled is not None for c in carried)
        shown = np.stack(out)
        psnr = 10 * np.log10(255**2 / ((shown.astype(np.float32) - images[kept]) ** 2).mean((1, 2, 3)))
        return LabelledImages(shown, labels[kept]), {
            "psnr": float(psnr.mean()),
            "beside": spilled / len(images),
            "left_out": len(images) - len(kept),
            "seconds": round(time.perf_counter() - started, 1),
        }

    def _targets(self, features: Features, method: Method, device: str) -> NDArray[np.float32]:
        wanted = method.perturbation.library
        members = [list(self.training.images[self.training.labels == c][:wanted]) for c in range(10)]
        return build_library(features, members, wanted, device)

    def run(self) -> None:
        """Fill in what is missing, writing after each model."""
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self.options.workers, spawn) as pool:
            jobs: Jobs = {}
            for row in self.options.rows:
                entry = self.results["rows"].setdefault(row, {"models": {}, "method": described(row)})
                if entry["method"] != described(row):
                    raise UsageError(f"{self.path} has {row} with other parameters.", "Write to another file.")
                names = [(a, s) for a in self.options.architectures for s in self.options.seeds]
                todo = [(a, s) for a, s in names if f"{a}-{s}" not in entry["models"]]
                if not todo:
                    continue
                data, facts = self.protected(row)
                entry |= facts
                if facts:
                    print(f"{row}: protected, {facts['psnr']:.2f} dB, {facts['seconds']:.0f} s", flush=True)
                for architecture, seed in todo:
                    job = pool.submit(measured, data, self.test, architecture, seed, self.options)
                    jobs[job] = (row, f"{architecture}-{seed}")
                self._collect(jobs, [job for job in jobs if job.done()])
            self._collect(jobs, as_completed(list(jobs)))

    def _collect(
        self, jobs: dict[Future[dict[str, Any]], tuple[str, str]], done: Iterable[Future[dict[str, Any]]]
    ) -> None:
        for job in done:
            row, name = jobs.pop(job)
            found = self.results["rows"][row]["models"][name] = job.result()
            self.save()
            print(f"{row} {name}: {found['last']:.3f}, peak {found['peak']:.3f}", flush=True)

    def save(self) -> None:
        """Write the results, whole or not at all."""
        self.results |= {
            "test_images": len(self.test.images), "recipe": "modern", "torch": torch.__version__,
            "machine": describe_machine(),
        }  # fmt: skip
        write_atomic(self.path, (json.dumps(self.results, indent=1) + "\n").encode())


def weights_digest(networks: Sequence[torch.nn.Module]) -> str:
    """SHA-256 (hex) of all that networks have learnt."""
    digest = hashlib.sha256()
    for network in networks:
        for name, value in network.state_dict().items():
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}\0".encode())
            digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def method_of(row: str) -> Method:
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


def described(row: str) -> Any:
    """All parameters of a row, as JSON has them."""
    return None if row == "clean" else json.loads(json.dumps(asdict(method_of(row))))


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


def picture(results: dict[str, Any], path: Path) -> None:
    """Accuracy of ResNet-18 over PSNR, as SVG: last epoch filled, best epoch open, each point with its row's name."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for row, entry in results["rows"].items():
        models = [m for name, m in entry["models"].items() if name.startswith("resnet18-")]
        last, peak = (100 * float(np.mean([m[key] for m in models])) for key in ("last", "peak")) if models else (0, 0)
        if not models:
            continue
        if "psnr" not in entry:
            axes.axhline(last, linestyle=":", color="grey")
            axes.annotate(row, (0.01, last), xycoords=("axes fraction", "data"), va="bottom")
            continue
        colour = "C3" if row.startswith("paper") else "C0"
        axes.plot([entry["psnr"]] * 2, [last, peak], color=colour, linewidth=0.8)
        axes.plot(entry["psnr"], last, "o", color=colour)
        axes.plot(entry["psnr"], peak, "o", color=colour, fillstyle="none")
        axes.annotate(f" {row}", (entry["psnr"], last), fontsize=7, va="top")
    axes.set_xlabel("PSNR of protected to clean images, dB")
    axes.set_ylabel("test accuracy, % (filled: last epoch, open: best)")
    axes.set_ylim(bottom=0)
    figure.savefig(path, metadata={"Date": None})


def courses(results: dict[str, Any], path: Path) -> None:
    """Accuracy of ResNet-18 after each epoch, as SVG: a line a row, the mean over the seeds, and how far they lie."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for row, entry in results["rows"].items():
        seeds = [m["history"] for name, m in entry["models"].items() if name.startswith("resnet18-")]
        if not seeds:
            continue
        shares = 100 * np.array(seeds)
        epochs = np.arange(1, shares.shape[1] + 1)
        psnr = f", {entry['psnr']:.1f} dB" if "psnr" in entry else ""
        (line,) = axes.plot(epochs, shares.mean(0), marker="o", label=f"{row}{psnr}")
        axes.fill_between(epochs, shares.min(0), shares.max(0), color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set_xlabel("epoch")
    axes.set_ylabel("test accuracy, %")
    axes.set_ylim(bottom=0)
    axes.legend(title="trained on")
    figure.savefig(path, metadata={"Date": None})


def _spread(values: list[float]) -> str:
    return f"{np.mean(values):.1f}" + (f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else "")


def main() -> None:
    """Measure, write, draw, print."""
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
    picture(comparison.results, comparison.path.with_suffix(".svg"))
    courses(comparison.results, comparison.path.with_name(f"{comparison.path.stem}-epochs.svg"))
    print(markdown(comparison.results))


if __name__ == "__main__":
    main()
