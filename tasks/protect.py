"""Protect shards: decode, perturb, hide, seal, carry, encode. One shard in, one shard out, and a report.

Bytes depend on the shard, the parameters, the surrogate, the library of targets and the key, and on how networks
compute there (device, number format, release of torch), never on how many workers run: a shard is always computed by
one thread, in the same batches.
"""

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.errors import DatasetError
from storage.files import open_atomic
from storage.manifest import Manifest, read_manifest
from storage.png import decode_png, encode_png
from storage.shards import Sample, read_shard, write_shard
from tasks.batches import by_shape, portions
from tasks.growth import Basis, basis_of
from tasks.learning.device import enough_memory
from tasks.method.exact import SIGNS, ExactParameters, ExactProfile
from tasks.method.paper import PaperParameters, PaperProfile
from tasks.method.perturbation import Features, FeatureSpacePerturbation, FspParameters, Perturbation, build_library
from tasks.method.profiles import Carried, LeftOut, Profile
from tasks.method.seal import DataKey
from tasks.method.sign_perturbation import SignParameters, SignPerturbation


@dataclass(frozen=True)
class PaperMethod:
    """Section `protect.paper` of params.yaml."""

    layer: str = "layer4"
    perturbation: FspParameters = field(default_factory=FspParameters)
    transform: PaperParameters = field(default_factory=PaperParameters)

    @property
    def profile(self) -> Profile:
        """How the perturbed look is given and taken back."""
        return PaperProfile(self.transform)

    @property
    def has_targets(self) -> bool:
        """Whether the perturbation aims at activations of target images, and not at a class."""
        return True

    def perturber(
        self, features: Sequence[Features], library: NDArray[np.float32], key: DataKey, device: str
    ) -> Perturbation:
        """What makes the perturbed look."""
        seed = key.derive(b"derangement", 16)
        return FeatureSpacePerturbation(features[-1], library, self.perturbation, seed, device)


@dataclass(frozen=True)
class ExactMethod:
    """Section `protect.exact` of params.yaml."""

    layer: str = "logits"
    perturbation: SignParameters = field(default_factory=SignParameters)
    set: ExactParameters = field(default_factory=ExactParameters)

    @property
    def profile(self) -> Profile:
        """How the perturbed look is given and taken back."""
        return ExactProfile(self.set)

    @property
    def has_targets(self) -> bool:
        """Whether the perturbation aims at activations of target images, and not at a class."""
        return self.layer != "logits"

    def perturber(
        self, features: Sequence[Features], library: NDArray[np.float32], key: DataKey, device: str
    ) -> Perturbation:
        """What makes the perturbed look."""
        return SignPerturbation(
            features,
            library,
            self.perturbation,
            logits=not self.has_targets,
            amplitude=self.set.amplitude,
            per_pixel=SIGNS[self.set.signs],
            derangement_seed=key.derive(b"derangement", 16),
            band_seed=key.derive(b"bands", 16),
            device=device,
        )


Method = PaperMethod | ExactMethod
"""A profile with its perturbation, as section `protect` of params.yaml names it."""


def method_named(section: Mapping[str, Any]) -> Method:
    """The method that section `protect` names. Raises ParameterError when values do not fit together."""
    own = section[section["profile"]]
    if section["profile"] == "paper":
        return PaperMethod(own["layer"], FspParameters(**own["perturbation"]), PaperParameters(**own["transform"]))
    return ExactMethod(own["layer"], SignParameters(**own["perturbation"]), ExactParameters(**own["set"]))


@dataclass(frozen=True)
class ProtectJob:
    """What every shard of one run shares. Holds paths and parameters, never the key.

    Attributes:
        split: split name of the variant; part of every image id.
        classes: how many the data set has.
        surrogate: the trained surrogate (model.pt).
        library: activations of the target images (`prepare_library`).
    """

    dataset: str
    split: str
    classes: int
    surrogate: Path
    library: Path
    method: Method
    device: str = "cpu"


@dataclass
class ShardReport:
    """What happened to one shard. `seconds` are by step, of one thread."""

    shard: str
    images: int = 0
    protected: int = 0
    pixels: int = 0
    left_out: list[dict[str, str]] = field(default_factory=list)
    rungs: dict[str, int] = field(default_factory=dict)
    spilled: int = 0
    payload_bytes: list[int] = field(default_factory=list)
    capacity_bytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Add the time of the block to `seconds[step]`."""
        start = time.perf_counter()
        yield
        self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - start


_LOADING = threading.Lock()


@lru_cache(maxsize=2)
def _surrogate_features(path: str, modified: int, layer: str, device: str) -> tuple[Features, ...]:
    """`tasks.models_io.load_features`; loaded once a process."""
    from tasks.models_io import load_features

    return load_features(Path(path), layer, device)


def surrogate_features(path: Path, layer: str, device: str) -> tuple[Features, ...]:
    """The surrogate in eval mode up to a layer, activations averaged over positions: networks that take turns.

    Loaded once a process, and again when the file changed.

    One thread at a time: torch.fx, which cuts the network, patches torch while it looks at it. Where shards run side by
    side, call this once before they start.
    """
    with _LOADING:
        return _surrogate_features(os.fspath(path), path.stat().st_mtime_ns, layer, device)


def one_thread() -> None:
    """Let this thread's networks use one core: shards run side by side, and sums keep their order, on a GPU too."""
    import torch

    torch.set_num_threads(1)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False


def prepare_library(clean: Path, surrogate: Path, out: Path, method: Method, device: str = "cpu") -> Path:
    """Write the activations of the target images, float32 [classes, library, d], to `out` (.npy).

    The targets are the first images of each class, in the order of the variant; in one that grew since the surrogate
    was trained, of those images and classes that it was trained on, so that what came in changes no target.

    Raises:
        DatasetError: a sample has no label.
        ParameterError: a class has no image.
    """
    return make_library(read_manifest(clean), lambda name: read_shard(clean / name), surrogate, out, method, device)


def make_library(
    manifest: Manifest,
    read: Callable[[str], list[Sample]],
    surrogate: Path,
    out: Path,
    method: Method,
    device: str = "cpu",
) -> Path:
    """`prepare_library` of a variant wherever it lies; `read` gives the samples of a shard by its name.

    Shards are read one after the other, no more of them than are needed: none for logits, whose targets are classes.
    """
    basis = basis_of(manifest, surrogate)
    library = _activations(basis, read, surrogate, method, device) if method.has_targets else no_targets(basis.classes)
    with open_atomic(out) as file:
        np.save(file, library)
    return out


def no_targets(classes: int) -> NDArray[np.float32]:
    """The library of a method that has no targets: its classes are counted, nothing else of it is read."""
    return np.zeros((classes, 1, 1), np.float32)


def _activations(
    basis: Basis, read: Callable[[str], list[Sample]], surrogate: Path, method: Method, device: str
) -> NDArray[np.float32]:
    one_thread()
    wanted = method.perturbation.library
    images: dict[int, list[NDArray[np.uint8]]] = {c: [] for c in range(basis.classes)}
    for name in basis.shards:
        if all(len(rows) >= wanted for rows in images.values()):
            break
        for sample in read(name):
            if sample.label is None or sample.label not in images:
                raise DatasetError(f"{name}: {sample.key} has no label of this data set.", "Build the variant again.")
            if len(images[sample.label]) < wanted:
                images[sample.label].append(decode_png(sample.png, sample.key))
    features = surrogate_features(surrogate, method.layer, device)
    return build_library(features[-1], list(images.values()), wanted, device)


def protect_shard(
    source: Path, target: Path, job: ProtectJob, key: DataKey, remove_source: bool = False
) -> ShardReport:
    """Protect one shard; keys, labels and order are kept, images that nothing fitted are left out and reported.

    `remove_source`: the source is a copy, and removed as soon as it is read.

    Raises:
        CorruptShard, UnsupportedImage: the source can not be read.
        DatasetError: an image has no label, or one that the data set does not have.
        EnvironmentFault: the GPU's memory is used up.
    """
    one_thread()
    report = ShardReport(target.name)
    with report.timed("read"):
        samples = read_shard(source)
        if remove_source:
            source.unlink()
    report.images = len(samples)
    _check_labels(samples, job.classes, source.name)
    features = surrogate_features(job.surrogate, job.method.layer, job.device)
    library = np.load(job.library)
    perturbation = job.method.perturber(features, library, key, job.device)
    pngs: dict[str, bytes] = {}
    for portion in portions(samples):
        _protect_portion(portion, pngs, perturbation, len(library), job, key, report)
    with report.timed("write"):
        write_shard(target, (Sample(s.key, pngs[s.key], s.label) for s in samples if s.key in pngs))
    report.protected = len(pngs)
    return report


def _check_labels(samples: list[Sample], classes: int, shard: str) -> None:
    for sample in samples:
        if sample.label is None or sample.label >= classes:
            raise DatasetError(f"{shard}: {sample.key} has no label of this data set.", "Build the variant again.")


def _protect_portion(
    samples: Sequence[Sample],
    pngs: dict[str, bytes],
    perturbation: Perturbation,
    targets: int,
    job: ProtectJob,
    key: DataKey,
    report: ShardReport,
) -> None:
    """Put the protected images of some samples into `pngs`, by key; `targets`: classes that the library has."""
    with report.timed("decode"):
        images = [decode_png(s.png, s.key) for s in samples]
    for group in by_shape(images):
        chosen = [samples[i] for i in group]
        ids = [key.image_id(job.split, s.key) for s in chosen]
        clean = np.stack([images[i] for i in group])
        with report.timed("perturb"):
            # A class that came in later takes the target (and texture) of an old one (tasks/growth.py).
            labels = np.array([s.label for s in chosen], np.int64) % targets
            with enough_memory():
                perturbed = perturbation.perturb(clean, labels, [key.image_seed(i) for i in ids])
        protected = _hide(job.method.profile, clean, perturbed, chosen, ids, key, report)
        with report.timed("encode"):
            pngs.update({chosen[i].key: encode_png(c.image, c.spilled) for i, c in protected})


def _hide(
    profile: Profile,
    clean: NDArray[np.uint8],
    perturbed: NDArray[np.uint8],
    samples: list[Sample],
    ids: list[bytes],
    key: DataKey,
    report: ShardReport,
) -> list[tuple[int, Carried]]:
    """(index, protected image) of the images of one shape for which something worked."""
    with report.timed("hide"):
        results = profile.fit(clean, perturbed)
    kept = [i for i, f in enumerate(results) if not isinstance(f, LeftOut)]
    for sample, result in zip(samples, results, strict=True):
        if isinstance(result, LeftOut):
            report.left_out.append({"key": sample.key, "reason": result.reason})
    fitted = [f for f in results if not isinstance(f, LeftOut)]
    labels = [samples[i].label for i in kept]
    with report.timed("seal and carry"):
        carried = profile.carry(fitted, clean[kept], labels, [ids[i] for i in kept], key)
    report.rungs = dict(Counter(report.rungs) + Counter(c.how for c in carried))
    report.spilled += sum(c.spilled is not None for c in carried)
    report.payload_bytes += [c.payload_bytes for c in carried]
    report.capacity_bytes = max([report.capacity_bytes, *(c.room_bytes for c in carried)])
    report.pixels += int(np.prod(clean.shape[:3]))
    return list(zip(kept, carried, strict=True))


def summarise(reports: Iterable[ShardReport]) -> dict[str, Any]:
    """The reports of all shards as one mapping, for metrics/protect.json."""
    rows = list(reports)
    payload = np.array([size for r in rows for size in r.payload_bytes], np.int64)
    seconds: Counter[str] = Counter()
    rungs: Counter[str] = Counter()
    for r in rows:
        seconds.update(r.seconds)
        rungs.update(r.rungs)
    edges, counts = _histogram(payload)
    return {
        "images": sum(r.images for r in rows),
        "protected": sum(r.protected for r in rows),
        "pixels": sum(r.pixels for r in rows),
        "left_out": [{**entry, "shard": r.shard} for r in rows for entry in r.left_out],
        "rungs": dict(sorted(rungs.items())),
        "spilled": sum(r.spilled for r in rows),
        "payload_bytes": {
            "min": int(payload.min()) if payload.size else 0,
            "mean": round(float(payload.mean()), 2) if payload.size else 0.0,
            "max": int(payload.max(initial=0)),
            "histogram": {"edges": edges, "counts": counts},
        },
        "capacity_bytes": max((r.capacity_bytes for r in rows), default=0) or None,
        "seconds": {step: round(value, 3) for step, value in seconds.items()},
    }


def _histogram(values: NDArray[np.int64], bins: int = 40) -> tuple[list[int], list[int]]:
    if not values.size:
        return [], []
    width = max(1, -(-(int(values.max()) - int(values.min()) + 1) // bins))
    edges = np.arange(int(values.min()), int(values.max()) + width + 1, width)
    counts, _ = np.histogram(values, edges)
    return edges.tolist(), counts.tolist()
