"""Compare a data set's variants image by image, shard by shard: memory holds one shard of each variant at a time."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from storage.errors import DatasetError, Refused
from storage.files import Progress
from storage.manifest import Manifest, read_manifest
from storage.png import decode_png
from storage.shards import Sample, read_shard
from tasks.quality import ErrorTally, QualityTally

Image = NDArray[np.uint8]

COMPARED = ("protected", "recovered")


@dataclass
class Pairs:
    """What comparing one variant with the clean one found.

    `quality_keys` names the sampled images, in the order of `quality`'s values.
    """

    errors: ErrorTally = field(default_factory=ErrorTally)
    quality: QualityTally = field(default_factory=QualityTally)
    quality_keys: list[str] = field(default_factory=list)
    labels_changed: int = 0


@dataclass
class BoundTally:
    """Recovered images by the error bound in their protected version's header; those beyond it; those without one."""

    images: Counter[int] = field(default_factory=Counter)
    broken: int = 0
    unknown: int = 0

    def add(self, bound: int | None, largest: int) -> None:
        """Count one image whose largest sample error is `largest`."""
        if bound is None:
            self.unknown += 1
            return
        self.images[bound] += 1
        self.broken += largest > bound


@dataclass
class Comparison:
    """Every variant against the clean one, and how many images each has."""

    manifest: Manifest
    images: dict[str, int]
    pairs: dict[str, Pairs]
    bounds: BoundTally = field(default_factory=BoundTally)


def choose_sample(total: int, wanted: int, seed: int) -> NDArray[np.int64]:
    """Sorted positions of `wanted` images among `total`, drawn without repetition; all of them where that is fewer."""
    if wanted >= total:
        return np.arange(total, dtype=np.int64)
    return np.sort(np.random.default_rng(seed).choice(total, size=wanted, replace=False)).astype(np.int64)


def compare_variants(
    dataset_dir: Path, *, quality_images: int, seed: int, progress: Progress | None = None
) -> Comparison:
    """Compare the protected and the recovered variant with the clean one.

    Sample errors are counted over every image that both variants hold; PSNR and SSIM are measured on `quality_images`
    positions of the clean variant, drawn by `seed` (positions whose image a variant lacks are skipped for it).

    Args:
        dataset_dir: folder with the variants `clean`, `protected` and `recovered`.
        progress: told the shard's name, images done and images in all.

    Raises:
        CorruptManifest, CorruptShard, UnsupportedImage: a variant can not be read.
        DatasetError: a variant holds an image, or a size of one, that the clean variant has not.
    """
    clean = read_manifest(dataset_dir / "clean")
    others = {name: read_manifest(dataset_dir / name) for name in COMPARED}
    _check_shards(clean, others)
    sampled = choose_sample(clean.samples, quality_images, seed)
    images = {name: manifest.samples for name, manifest in {"clean": clean, **others}.items()}
    comparison = Comparison(clean, images, {name: Pairs() for name in COMPARED})
    start = 0
    for shard in clean.shards:
        reference = read_shard(dataset_dir / "clean" / shard.name)
        keys = {reference[int(p) - start].key for p in sampled[(sampled >= start) & (sampled < start + len(reference))]}
        present = {n: {s.key: s for s in _read_if_listed(dataset_dir / n, m, shard.name)} for n, m in others.items()}
        _compare_shard(comparison, reference, present, keys, shard.name)
        start += len(reference)
        if progress is not None:
            progress(shard.name, start, clean.samples)
    return comparison


def _read_if_listed(folder: Path, manifest: Manifest, name: str) -> list[Sample]:
    """The shard's samples, or none when the variant has no such shard (every image of it was left out)."""
    return read_shard(folder / name) if any(shard.name == name for shard in manifest.shards) else []


def _check_shards(clean: Manifest, others: dict[str, Manifest]) -> None:
    known = {shard.name for shard in clean.shards}
    for name, manifest in others.items():
        if stray := sorted({shard.name for shard in manifest.shards} - known):
            raise DatasetError(
                f"The {name} variant holds {stray[0]}, which the clean one has not.",
                "It belongs to another version of the data set: run dvc repro.",
            )


def _compare_shard(
    comparison: Comparison,
    reference: list[Sample],
    present: dict[str, dict[str, Sample]],
    sampled: set[str],
    shard: str,
) -> None:
    """Compare one shard's images. `present` maps a variant's name to its samples by key."""
    known = {sample.key for sample in reference}
    for name, samples in present.items():
        if stray := sorted(samples.keys() - known):
            raise DatasetError(
                f"{shard} of the {name} variant holds {stray[0]}, which the clean shard has not.",
                "It belongs to another version of the data set: run dvc repro.",
            )
    batches = {name: _Batches(comparison.pairs[name].errors, with_bounds=name == "protected") for name in present}
    for clean in reference:
        decoded: Image | None = None
        for name, samples in present.items():
            sample, pairs = samples.get(clean.key), comparison.pairs[name]
            if sample is None:
                continue
            pairs.labels_changed += sample.label != clean.label
            if sample.png == clean.png and clean.key not in sampled:
                pairs.errors.add_identical([_samples_in(sample.png)])
                continue
            decoded = decode_png(clean.png, clean.key) if decoded is None else decoded
            image = _decode_like(decoded, sample, name)
            batches[name].add(clean.key, decoded, image)
            if clean.key in sampled:
                pairs.quality.add(decoded, image)
                pairs.quality_keys.append(clean.key)
    for batch in batches.values():
        batch.flush()
    for key in present["recovered"]:
        bound = batches["protected"].bounds.get(key)
        comparison.bounds.add(bound, batches["recovered"].largest.get(key, 0))


class _Batches:
    """Collects pairs of one shape and counts them together; bounded, so that large photographs do not pile up.

    Attributes:
        largest: largest sample error by key.
        bounds: error bound that the header of the (protected) image allows, by key; images without a header lack one.
    """

    LIMIT = 64 * 2**20

    def __init__(self, errors: ErrorTally, with_bounds: bool) -> None:
        self.largest: dict[str, int] = {}
        self.bounds: dict[str, int] = {}
        self._errors = errors
        self._with_bounds = with_bounds
        self._pairs: dict[tuple[int, ...], list[tuple[str, Image, Image]]] = defaultdict(list)
        self._bytes = 0

    def add(self, key: str, clean: Image, image: Image) -> None:
        self._pairs[clean.shape].append((key, clean, image))
        self._bytes += 2 * clean.nbytes
        if self._bytes > self.LIMIT:
            self.flush()

    def flush(self) -> None:
        for pairs in self._pairs.values():
            keys, clean, images = zip(*pairs, strict=True)
            stack = np.stack(images)
            largest = self._errors.add(np.stack(clean), stack)
            self.largest.update(zip(keys, map(int, largest), strict=True))
            if self._with_bounds:
                found = zip(keys, error_bounds(stack), strict=True)
                self.bounds.update((key, bound) for key, bound in found if bound is not None)
        self._pairs.clear()
        self._bytes = 0


def error_bounds(images: Image) -> list[int | None]:
    """How far off the headers of protected images (uint8 [N, H, W, 3]) let recovered samples be; None: no header."""
    # Compiled code is loaded here, so that reading figures does not wait for it.
    from tasks.method.carriers import read_headers
    from tasks.method.known import parse_header, profile_of

    bounds: list[int | None] = []
    for raw in read_headers(images):
        try:
            header = parse_header(raw)
            bounds.append(profile_of(header).error_bound(header))
        except Refused:
            bounds.append(None)
    return bounds


def _decode_like(clean: Image, sample: Sample, variant: str) -> Image:
    image = decode_png(sample.png, sample.key)
    if image.shape != clean.shape:
        raise DatasetError(
            f"{sample.key} is {image.shape[1]}x{image.shape[0]} in the {variant} variant and "
            f"{clean.shape[1]}x{clean.shape[0]} in the clean one.",
            "It belongs to another version of the data set: run dvc repro.",
        )
    return image


def _samples_in(png: bytes) -> int:
    """Samples (height x width x 3) of an RGB PNG, from the IHDR chunk: width and height at bytes 16 to 23."""
    return 3 * int.from_bytes(png[16:20], "big") * int.from_bytes(png[20:24], "big")
