"""What each protection makes of the images: protected by the real code, restored, and measured.

No key of the vault is used. The suite seals with an evaluation key that anyone can derive from the preset's `key_seed`
(`evaluation_key`): what it protects is for measuring and never for publishing.

What was made lies below HOME/evidence/images and is found again by the digest of everything that decides it: the clean
images, the method's parameters, the surrogate, the key, the code, the kind of device.
"""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from storage.errors import UnknownKey
from storage.files import write_atomic
from tasks.digests import code_digest
from tasks.evidence.images import CODE as IMAGES_CODE
from tasks.evidence.images import ImageSet, Split, image_folder, write_set
from tasks.evidence.measures import Rows, measured
from tasks.evidence.records import ProtectionFacts
from tasks.learning.device import enough_memory, resolve_device
from tasks.method.perturbation import Features, Perturbation, build_library
from tasks.method.profiles import LeftOut, Recovered
from tasks.method.seal import DataKey
from tasks.protect import Method, method_named, no_targets, one_thread, surrogate_features
from tasks.restore import restore_images

CHUNK = 1000
"""Images that one thread works on; decides bytes, because floating point sums depend on the batches it is cut into."""

CODE = (
    *IMAGES_CODE, "tasks/evidence/protections.py", "tasks/evidence/measures.py", "tasks/quality.py", "tasks/protect.py",
    "tasks/restore.py", "tasks/method", "tasks/models_io.py", "tasks/learning/features.py", "tasks/learning/fitting.py",
    "tasks/learning/kernels.py", "tasks/learning/models.py", "tasks/learning/device.py",
)  # fmt: skip

Progress = Callable[[int, int], None]


def evaluation_key(dataset: str, seed: int) -> DataKey:
    """The public key that the suite seals with. It protects nothing."""
    return DataKey(hashlib.sha256(f"dmcp evaluation key {seed}".encode()).digest(), dataset)


@dataclass(frozen=True)
class Surrogate:
    """The owner's network: model.pt, its digest, and how good it is. `images_per_second`: of its training, here."""

    path: Path
    digest: str
    accuracy: float
    images_per_second: float


@dataclass(frozen=True)
class Protected:
    """What one protection made.

    Attributes:
        published: the protected images; `recovered`: those that came back. Their `rows` say of which clean ones.
        payloads: .npz with the sealed payloads that travel beside the pixels; see `load_payloads`.
    """

    name: str
    method: dict[str, Any]
    published: ImageSet
    recovered: ImageSet
    payloads: Path
    facts: ProtectionFacts


@dataclass(frozen=True)
class Plan:
    """What decides the protected images. `section`: section `protect` with the protection's own values laid over."""

    name: str
    section: dict[str, Any]
    dataset: str
    key_seed: int
    quality_images: int

    @property
    def parameters(self) -> dict[str, Any]:
        """Of the profile that is used alone."""
        return {name: self.section[name] for name in ("profile", self.section["profile"])}


def protect_images(
    plan: Plan, clean: Split, surrogate: Surrogate, home: Path, device: str, workers: int, progress: Progress
) -> Protected:
    """Protect and restore all images, unless that was done before.

    Args:
        device: "cpu" or "cuda".
        workers: threads, each at a part of its own.
        progress: called with images done and all.

    Raises:
        ParameterError: the parameters do not fit together, or not to the images.
    """
    key = evaluation_key(plan.dataset, plan.key_seed)
    facts = {
        "clean": clean.images.digest, "keys": clean.keys, "split": clean.split, "parameters": plan.parameters,
        "surrogate": surrogate.digest, "key": key.key_id.hex(), "dataset": plan.dataset, "code": code_digest(*CODE),
        "device": resolve_device(device).type, "quality_images": plan.quality_images,
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    folder = image_folder(home, digest)
    with FileLock(folder / ".lock"):
        found = _found(folder, plan)
        if found is not None:
            progress(clean.images.count, clean.images.count)
            return found
        return _Work(plan, clean, surrogate, key, device).run(folder, workers, progress)


def load_payloads(path: Path) -> list[bytes | None]:
    """For each published image the payload beside its pixels, or None."""
    with np.load(path) as saved:
        data, lengths = saved["data"].tobytes(), saved["lengths"]
    ends = np.cumsum(np.maximum(lengths, 0))
    return [None if n < 0 else data[end - n : end] for n, end in zip(lengths.tolist(), ends.tolist(), strict=True)]


def _found(folder: Path, plan: Plan) -> Protected | None:
    try:
        saved = json.loads((folder / "facts.json").read_text())
        sets = [ImageSet(folder / name, saved[name]["digest"], saved[name]["count"]) for name in _SETS]
        if not all((s.folder / "rows.npy").exists() for s in sets):
            return None
        facts = ProtectionFacts.model_validate(saved["facts"] | {"name": plan.name})
        return Protected(plan.name, plan.parameters, sets[0], sets[1], folder / "payloads.npz", facts)
    except (OSError, ValueError, KeyError, TypeError):
        return None


_SETS = ("published", "recovered")


@dataclass(frozen=True)
class _Part:
    """One chunk: places of what was published, and of what came back, among the clean images."""

    published: NDArray[np.uint8]
    rows: NDArray[np.int64]
    payloads: list[bytes | None]
    recovered: NDArray[np.uint8]
    recovered_rows: NDArray[np.int64]


class _Work:
    """One protection under way."""

    def __init__(self, plan: Plan, clean: Split, surrogate: Surrogate, key: DataKey, device: str) -> None:
        self.plan, self.clean, self.key = plan, clean, key
        self.data = clean.images.load()
        self.method: Method = method_named(plan.section)
        features = surrogate_features(surrogate.path.resolve(), self.method.layer, device)
        one_thread()
        library = self._targets(features[-1], device) if self.method.has_targets else no_targets(len(clean.classes))
        self.perturber: Perturbation = self.method.perturber(features, library, key, device)

    def _targets(self, features: Features, device: str) -> NDArray[np.float32]:
        wanted, classes = self.method.perturbation.library, len(self.clean.classes)
        members = [list(self.data.images[self.data.labels == c][:wanted]) for c in range(classes)]
        return build_library(features, members, wanted, device)

    def run(self, folder: Path, workers: int, progress: Progress) -> Protected:
        started, total, done, lock = time.monotonic(), len(self.data.images), 0, threading.Lock()

        def chunk(first: int) -> _Part:
            nonlocal done
            part = self._chunk(np.arange(first, min(first + CHUNK, total)))
            with lock:
                done += min(CHUNK, total - first)
                progress(done, total)
            return part

        with ThreadPoolExecutor(workers) as pool:
            parts = list(pool.map(chunk, range(0, total, CHUNK)))
        return self._written(folder, parts, time.monotonic() - started)

    def _chunk(self, rows: NDArray[np.int64]) -> _Part:
        one_thread()
        images, labels, key = self.data.images[rows], self.data.labels[rows], self.key
        ids = [key.image_id(self.clean.split, self.clean.keys[row]) for row in rows]
        with enough_memory():
            perturbed = self.perturber.perturb(images, labels, [key.image_seed(i) for i in ids])
        fitted = self.method.profile.fit(images, perturbed)
        kept = [n for n, one in enumerate(fitted) if not isinstance(one, LeftOut)]
        looks = [one for one in fitted if not isinstance(one, LeftOut)]
        known: list[int | None] = [int(labels[n]) for n in kept]
        carried = self.method.profile.carry(looks, images[kept], known, [ids[n] for n in kept], key)
        published = np.stack([one.image for one in carried]) if carried else images[:0]
        payloads = [one.spilled for one in carried]
        back = restore_images(published, self._find_key, payloads) if carried else []
        came = [n for n, one in enumerate(back) if isinstance(one, Recovered)]
        recovered = [one.image for one in back if isinstance(one, Recovered)]
        return _Part(
            published,
            rows[kept],
            payloads,
            np.stack(recovered) if recovered else images[:0],
            rows[kept][came],
        )

    def _find_key(self, key_id: str) -> DataKey:
        if key_id != self.key.key_id.hex():
            raise UnknownKey(f"The key {key_id} is not the evaluation key.", "This is a bug.")
        return self.key

    def _written(self, folder: Path, parts: Sequence[_Part], seconds: float) -> Protected:
        rows = np.concatenate([p.rows for p in parts])
        back = np.concatenate([p.recovered_rows for p in parts])
        shown, restored = (np.concatenate([getattr(p, name) for p in parts]) for name in _SETS)
        labels = self.data.labels
        published = write_set(folder / "published", shown, labels[rows], rows)
        recovered = write_set(folder / "recovered", restored, labels[back], back)
        payloads = [payload for p in parts for payload in p.payloads]
        _save_payloads(folder / "payloads.npz", payloads)
        measures = measured(self.data.images, Rows(shown, rows), Rows(restored, back), self.plan.quality_images)
        facts = ProtectionFacts(
            name=self.plan.name,
            parameters=self.plan.parameters,
            images=len(self.data.images),
            left_out=len(self.data.images) - len(rows),
            beside=sum(payload is not None for payload in payloads),
            restored=len(back),
            refused=len(rows) - len(back),
            digest=published.digest,
            seconds=round(seconds, 3),
            **measures,
        )
        sets = dict(zip(_SETS, (published, recovered), strict=True))
        saved = {name: {"digest": one.digest, "count": one.count} for name, one in sets.items()}
        text = json.dumps(saved | {"facts": facts.model_dump(mode="json")})
        write_atomic(folder / "facts.json", text.encode())
        return Protected(self.plan.name, self.plan.parameters, published, recovered, folder / "payloads.npz", facts)


def _save_payloads(path: Path, payloads: Sequence[bytes | None]) -> None:
    from storage.files import open_atomic

    lengths = np.array([-1 if p is None else len(p) for p in payloads], np.int64)
    data = np.frombuffer(b"".join(p for p in payloads if p is not None), np.uint8)
    with open_atomic(path) as file:
        np.savez(file, data=data, lengths=lengths)
