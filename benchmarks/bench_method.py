"""Time each step of protect and restore for 32x32 and 64x64 images, beside Pillow's PNG encode and decode.

    python -m benchmarks.bench_method [--images 250] [--repeats 7]

One thread. A figure is the median over the repeats of the processor time for all images, divided by their number
(processor time, so that a busy machine distorts it little). Images come from the mirror (DMCP_MIRROR: CIFAR-10 and
TinyImageNet) where there is one, else from `sample` (four tiled for 64x64). The surrogate has random weights: how
long it takes does not depend on them. The profile is `paper`, its parameters those of params.yaml.
"""

import argparse
import io
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from storage.png import decode_png, encode_png
from storage.settings import settings
from tasks.datasets import get
from tasks.datasets.source import Place
from tasks.machine import describe_machine
from tasks.method import sequence, transform
from tasks.method.carriers import LsbCarrier, read_headers
from tasks.method.header import Header
from tasks.method.paper import PaperFitted, PaperParameters, PaperProfile
from tasks.method.perturbation import FeatureSpacePerturbation, FspParameters
from tasks.method.profiles import LeftOut
from tasks.method.seal import TAG_BYTES, DataKey
from tasks.params import load_params
from tasks.protect import PaperMethod

Images = NDArray[np.uint8]
Times = dict[str, float]

CLASSES = 10
SETS = {32: "cifar10", 64: "tinyimagenet"}


class Clock:
    """Collects microseconds an image, by step."""

    def __init__(self, images: int, repeats: int) -> None:
        self.images = images
        self.repeats = repeats
        self.times: Times = {}

    def time(self, step: str, work: Callable[[], Any], repeats: int | None = None) -> Any:
        """Run once to warm up, then time; returns what `work` returned."""
        result = work()
        spent = []
        for _ in range(repeats or self.repeats):
            start = time.process_time()
            work()
            spent.append(time.process_time() - start)
        self.times[step] = 1e6 * median(spent) / self.images
        return result


def load_images(side: int, count: int) -> tuple[Images, str]:
    """uint8 [count, side, side, 3], and where they are from."""
    mirror = settings().mirror
    name = SETS[side] if mirror else "sample"
    module = get(name)
    with module.open_source(module.Parameters(), Place(mirror, settings().home_path("downloads"))) as source:
        split = source.splits["train"]
        needed = count if name != "sample" or side == 32 else 4 * count
        images = np.stack([split.read(i % len(split.labels)) for i in range(needed)])
    if images.shape[1] != side:
        quads = images.reshape(count, 2, 2, 32, 32, 3)
        images = np.ascontiguousarray(quads.transpose(0, 1, 3, 2, 4, 5).reshape(count, side, side, 3))
    return images, name


def bench(images: Images, parameters: PaperMethod, repeats: int) -> tuple[Times, int]:
    """Microseconds an image of every step, and how many images took part (those the ladder left out do not)."""
    clock = Clock(len(images), repeats)
    key = DataKey(bytes(range(32)), "bench")
    ids = [key.image_id("train", str(i)) for i in range(len(images))]
    seeds = [key.image_seed(i) for i in ids]
    pngs = [encode_png(image) for image in images]
    clock.time("Pillow's PNG decode", lambda: [np.asarray(Image.open(io.BytesIO(png))) for png in pngs])
    clock.time("Pillow's PNG encode, its default setting", lambda: [_pillow_encode(image) for image in images])
    clock.time("protect: PNG decode, checked", lambda: [decode_png(png, "bench") for png in pngs])
    perturb = _perturbation(parameters, key)
    labels = np.arange(len(images)) % CLASSES
    perturbed = clock.time("protect: perturb", lambda: perturb.perturb(images, labels, seeds), repeats=2)

    profile = PaperProfile(parameters.transform)
    fitted = clock.time("protect: mRIT and Sequence, whole ladder", lambda: profile.fit(images, perturbed))
    kept = [i for i, found in enumerate(fitted) if not isinstance(found, LeftOut)]
    clean, looks, ids = images[kept], [fitted[i] for i in kept], [ids[i] for i in kept]
    own: list[int | None] = [int(labels[i]) for i in kept]
    clock.images = len(kept)
    carried = clock.time("protect: digest, seal, carry, verify", lambda: profile.carry(looks, clean, own, ids, key))
    protected = np.stack([c.image for c in carried])
    _bench_kernels(clock, clean, looks)
    sealed = [encode_png(image) for image in protected]
    clock.time("protect: PNG encode", lambda: [encode_png(image) for image in protected])

    clock.time("restore: PNG decode, checked", lambda: [decode_png(png, "bench") for png in sealed])
    headers = clock.time("restore: header", lambda: [Header.unpack(raw) for raw in read_headers(protected)])
    nothing: list[bytes | None] = [None] * len(kept)
    found = clock.time("restore: extract, open, undo", lambda: profile.recover(protected, headers, nothing, key))
    _bench_sealing(clock, key, looks, headers)
    _bench_inverse(clock, protected, looks)
    clock.time("restore: PNG encode", lambda: [encode_png(r.image) for r in found])
    return clock.times, len(kept)


def _pillow_encode(image: Images) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


def _perturbation(parameters: PaperMethod, key: DataKey) -> FeatureSpacePerturbation:
    import torch

    from tasks.learning.features import Features
    from tasks.learning.models import Normalized, build_model

    torch.set_num_threads(1)
    network = Normalized(build_model("resnet18", CLASSES), (0.5,) * 3, (0.25,) * 3).eval()
    features = Features(network, parameters.layer)
    width = features(torch.zeros(1, 3, 32, 32)).shape[1]
    library = np.random.default_rng(0).random((CLASSES, parameters.perturbation.library, width), np.float32)
    return FeatureSpacePerturbation(features, library, parameters.perturbation, key.derive(b"derangement", 16))


def _bench_kernels(clock: Clock, clean: Images, looks: list[PaperFitted]) -> None:
    """The parts of "mRIT and Sequence" apart, with the parameters of each image's own rung."""
    out, buffer = np.empty_like(clean[0]), np.zeros(4 * clean[0].size, np.uint8)

    def mrit() -> list[Any]:
        return [
            transform.transform(image, f.look, g.block, g.classes, g.step, g.planes, g.pairing, out)
            for image, f, g in ((image, f, f.geometry) for image, f in zip(clean, looks, strict=True))
        ]

    made = clock.time("… of it mRIT, one pass", mrit)
    columns = clean.shape[2] // looks[0].geometry.block

    def encode() -> None:
        for f, (used, source, target, turn, shift, edge) in zip(looks, made, strict=True):
            bits = f.geometry.classes.bit_length() - 1
            sequence.encode(buffer, f.geometry.block, bits, columns, used, source, target, turn, shift, edge)

    clock.time("… of it Sequence coding, one pass", encode)


def _bench_sealing(clock: Clock, key: DataKey, looks: list[PaperFitted], headers: list[Header]) -> None:
    """AES-SIV apart."""
    bound = [[header.pack(), b"bench", bytes(8), bytes(32)] for header in headers]
    sealed = clock.time(
        "… of protect: AES-SIV seal",
        lambda: [key.seal(f.secret, parts) for f, parts in zip(looks, bound, strict=True)],
    )
    clock.time(
        "… of restore: AES-SIV open",
        lambda: [key.open(data, parts) for data, parts in zip(sealed, bound, strict=True)],
    )


def _bench_inverse(clock: Clock, protected: Images, looks: list[PaperFitted]) -> None:
    """Bits out of the planes, Sequence decoding."""
    sizes = np.array([len(f.secret) + TAG_BYTES for f in looks], np.int64)
    planes = np.array([f.geometry.planes for f in looks])

    def extract() -> None:
        for count in np.unique(planes):
            LsbCarrier(int(count)).extract(protected[planes == count], sizes[planes == count])

    clock.time("… of restore: bits out of the planes", extract)
    codes = [np.frombuffer(bytearray(f.secret or b"\0"), np.uint8) for f in looks]
    height, width = protected.shape[1:3]

    def decode() -> None:
        for f, code in zip(looks, codes, strict=True):
            g = f.geometry
            sequence.decode(code, height, width, g.block, g.classes.bit_length() - 1, g.pairing)

    clock.time("… of restore: Sequence decoding", decode)


ORDER = (
    "Pillow's PNG decode",
    "Pillow's PNG encode, its default setting",
    "protect: PNG decode, checked",
    "protect: perturb",
    "protect: mRIT and Sequence, whole ladder",
    "… of it mRIT, one pass",
    "… of it Sequence coding, one pass",
    "protect: digest, seal, carry, verify",
    "… of protect: AES-SIV seal",
    "protect: PNG encode",
    "restore: PNG decode, checked",
    "restore: header",
    "restore: extract, open, undo",
    "… of restore: bits out of the planes",
    "… of restore: AES-SIV open",
    "… of restore: Sequence decoding",
    "restore: PNG encode",
)


def markdown(columns: dict[str, Times]) -> str:
    """The table, a column a size; sums of protect and restore at its end."""
    lines = [
        f"| step, µs an image | {' | '.join(columns)} |",
        f"|---|{'---:|' * len(columns)}",
        *(f"| {step} | {' | '.join(f'{times[step]:,.0f}' for times in columns.values())} |" for step in ORDER),
    ]
    for name in ("protect", "restore"):
        sums = [sum(value for step, value in times.items() if step.startswith(name)) for times in columns.values()]
        lines.append(f"| **{name}, sum** | {' | '.join(f'**{value:,.0f}**' for value in sums)} |")
    return "\n".join(lines)


def _parameters(dataset: str, path: Path) -> PaperMethod:
    section = load_params(dataset, path).protect.paper
    return PaperMethod(
        section.layer,
        FspParameters(**section.perturbation.model_dump()),
        PaperParameters(**section.transform.model_dump()),
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=250)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    options = parser.parse_args()
    columns: dict[str, Times] = {}
    notes = []
    for side, dataset in SETS.items():
        images, origin = load_images(side, options.images)
        parameters = _parameters(dataset, options.params)
        times, count = bench(images, parameters, options.repeats)
        columns[f"{side}x{side}"] = times
        notes.append(f"{count} of {len(images)} images of {origin}, {side}x{side}; {parameters.transform}")
    machine = describe_machine()
    print(markdown(columns))
    print(f"\nMedian of {options.repeats} repeats (perturb: 2), processor time of one thread.", *notes, sep="\n")
    print(f"{machine['Processor']}; {machine['Cores']}; {machine['System']}.")


if __name__ == "__main__":
    main()
