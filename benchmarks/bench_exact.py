"""Time profile `exact` beside what a user would pick instead: `python -m benchmarks.bench_exact`

One thread, microseconds an image; a figure is the median over the repeats of the processor time for all images, divided
by their number. Images as in `bench_method`. In the same run, on the same images:

* Pillow's PNG decode and encode: the floor of anything that reads and writes PNG files;
* Stegano (GPL, not a dependency: `make bench` installs it for this alone): `lsb` and the reversible `rdh`, with a
  message of as many bytes as our payload has on average; `rdh` takes only what fits, and the share that did is shown;
* the surrogate's bare forward and backward passes, as many as the perturbation takes steps.
"""

import argparse
import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.bench_method import CLASSES, SETS, Clock, Times, load_images
from storage.png import decode_png, encode_png
from storage.shards import Sample
from tasks.learning.features import LOGITS, Features
from tasks.learning.models import Normalized, build_model
from tasks.machine import describe_machine
from tasks.method import signs
from tasks.method.exact import SIGNS, ExactParameters, ExactProfile
from tasks.method.expansion import contract, expand
from tasks.method.profiles import Fitted
from tasks.method.seal import TAG_BYTES, DataKey
from tasks.method.sign_perturbation import SignParameters, SignPerturbation
from tasks.params import load_params
from tasks.restore import restore_samples

Images = NDArray[np.uint8]
KEY = DataKey(bytes(range(32)), "bench")


def bench(images: Images, method: Any, repeats: int) -> tuple[Times, list[str]]:
    """Times by step, and remarks."""
    clock = Clock(len(images), repeats)
    pngs = [encode_png(image) for image in images]
    clock.time("Pillow: PNG decode", lambda: [np.asarray(Image.open(io.BytesIO(png))) for png in pngs])
    clock.time("Pillow: PNG encode, its default setting", lambda: [_pillow(image) for image in images])
    labels = np.arange(len(images)) % CLASSES
    ids = [KEY.image_id("train", str(i)) for i in range(len(images))]
    perturbed, remark = _bench_perturbation(clock, images, labels, [KEY.image_seed(i) for i in ids], method)
    payload = _bench_hiding(clock, images, perturbed, labels, ids, ExactParameters(**method.set.model_dump()))
    t = clock.times
    t["**hiding and carrying**: signs coded, one pass"] = t["protect: signs, coded"] + t["… expansion, one pass"]
    t["**undoing them**"] = t["… expansion undone"] + t["… signs undone"]
    floor = t["Pillow: PNG decode"] + t["Pillow: PNG encode, its default setting"]
    whole = t["restore: end to end, PNG to PNG"] / floor
    remarks = [
        remark,
        f"payload {payload} bytes on average",
        f"restoring takes {whole:.2f} times Pillow's decode and encode",
    ]
    return clock.times, remarks + _bench_stegano(clock, images, payload)


def _pillow(image: Images) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


def _bench_perturbation(
    clock: Clock, images: Images, labels: NDArray[np.int64], seeds: list[bytes], method: Any
) -> tuple[Images, str]:
    torch.set_num_threads(1)
    network = Normalized(build_model("resnet18", CLASSES), (0.5,) * 3, (0.25,) * 3).eval()
    features = Features(network, method.layer)
    width = features(torch.zeros(1, 3, *images.shape[1:3])).shape[1]
    library = np.random.default_rng(0).random((CLASSES, 1, width), np.float32)
    parameters = SignParameters(**method.perturbation.model_dump())
    steps = max(1, parameters.steps)

    def perturber(p: SignParameters) -> SignPerturbation:
        return SignPerturbation(
            [features], library, p, logits=method.layer == LOGITS, amplitude=method.set.amplitude,
            per_pixel=SIGNS[method.set.signs], derangement_seed=KEY.derive(b"derangement", 16),
            band_seed=KEY.derive(b"bands", 16),
        )  # fmt: skip

    optimised = perturber(replace(parameters, steps=steps))
    clock.time(f"perturb: {steps} steps", lambda: optimised.perturb(images, labels, seeds), repeats=2)
    clock.time(f"a bare loop of {steps} passes", lambda: _bare_loop(features, images, steps), repeats=2)
    own = perturber(parameters)
    wanted = clock.time("protect: perturb, as configured", lambda: own.perturb(images, labels, seeds), repeats=2)
    share = clock.times[f"a bare loop of {steps} passes"] / clock.times[f"perturb: {steps} steps"]
    return wanted, f"perturbation by steps reaches {share:.0%} of the bare loop's images a second"


def _bare_loop(features: Features, images: Images, passes: int) -> None:
    for i in range(0, len(images), 250):
        x = torch.from_numpy(images[i : i + 250]).permute(0, 3, 1, 2).float().div_(255)
        x = x.contiguous(memory_format=torch.channels_last)
        for _ in range(passes):
            point = x.detach().requires_grad_()
            torch.autograd.grad(features(point).sum(), point)


def _bench_hiding(
    clock: Clock, images: Images, perturbed: Images, labels: NDArray[np.int64], ids: list[bytes], set_: ExactParameters
) -> int:
    """The kernels apart, then whole steps; returns the mean size of a payload."""
    profile = ExactProfile(set_)
    fitted = [
        f for f in clock.time("protect: signs, coded", lambda: profile.fit(images, perturbed)) if isinstance(f, Fitted)
    ]
    assert len(fitted) == len(images)
    looks = np.stack([f.look for f in fitted])
    sizes = np.array([len(f.secret) + 38 + TAG_BYTES for f in fitted], np.int64)
    blank = np.zeros((len(images), int(sizes.max())), np.uint8)
    out, thresholds, extents = clock.time("… expansion, one pass", lambda: expand(looks, blank, sizes))
    known: list[int | None] = [int(label) for label in labels]
    carried = clock.time("protect: seal, carry, verify", lambda: profile.carry(list(fitted), images, known, ids, KEY))
    associated = [bytes(40)]
    sealed = clock.time("… AES-SIV seal", lambda: [KEY.seal(bytes(int(n) - TAG_BYTES), associated) for n in sizes])
    files = clock.time("protect: PNG encode", lambda: [encode_png(c.image, c.spilled) for c in carried])
    inside = np.flatnonzero(thresholds)
    clock.images = max(1, len(inside))  # a payload that travels beside the pixels is not undone
    clock.time("… expansion undone", lambda: contract(out[inside], thresholds[inside], extents[inside], sizes[inside]))
    clock.images = len(images)
    codes = [np.frombuffer(bytearray(f.secret or b"\0"), np.uint8) for f in fitted]
    result = np.empty_like(images[0])
    per_pixel, amplitude = fitted[0].per_pixel, set_.amplitude  # type: ignore[attr-defined]
    clock.time(
        "… signs undone",
        lambda: [signs.decode(c, p, per_pixel, amplitude, result) for c, p in zip(codes, looks, strict=True)],
    )
    clock.time("… AES-SIV open", lambda: [KEY.open(s, associated) for s in sealed])
    clock.time("… PNG decode, checked", lambda: [decode_png(f, "bench") for f in files])
    samples = [Sample(f"{i:08d}", file, None) for i, file in enumerate(files)]
    batch = clock.time("restore: end to end, PNG to PNG", lambda: restore_samples(samples, lambda _: KEY))
    assert [s.png for s in batch.samples] == [encode_png(image) for image in images]
    return int(sizes.mean())


def _bench_stegano(clock: Clock, images: Images, payload: int) -> list[str]:
    try:
        from stegano import lsb, rdh
    except ImportError:
        return ["Stegano is not installed: make bench installs it"]
    pictures = [Image.fromarray(image) for image in images[:50]]
    clock.images = len(pictures)
    message = "x" * payload
    hidden = clock.time("Stegano lsb: hide", lambda: [_tried(lsb.hide, p.copy(), message) for p in pictures])
    kept = [h for h in hidden if h is not None]
    clock.time("Stegano lsb: reveal", lambda: [lsb.reveal(h.copy()) for h in kept])
    hidden = clock.time("Stegano rdh: hide", lambda: [_tried(rdh.hide, p.copy(), message) for p in pictures])
    fitted = [h for h in hidden if h is not None]
    remarks = [
        f"Stegano {name} held the payload in {len(x)} of {len(pictures)}"
        for name, x in (("lsb", kept), ("rdh", fitted))
    ]
    if fitted:
        clock.images = len(fitted)
        clock.time("Stegano rdh: reveal and recover", lambda: [(rdh.reveal(h), rdh.recover(h)) for h in fitted])
    return remarks


def _tried(hide: Callable[..., Any], picture: Image.Image, message: str) -> Any:
    """The picture with the message, or None where it does not fit."""
    try:
        return hide(picture, message)
    except Exception:  # each of its methods raises another kind
        return None


def markdown(columns: dict[str, Times]) -> str:
    """The table, a column a size."""
    steps = list(dict.fromkeys(step for times in columns.values() for step in times))
    lines = [f"| step, µs an image | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    for step in steps:
        cells = [f"{times[step]:,.0f}" if step in times else "–" for times in columns.values()]
        lines.append(f"| {step} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=250)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    columns, notes = {}, []
    for side, dataset in SETS.items():
        images, origin = load_images(side, options.images)
        times, remarks = bench(images, load_params(dataset).protect.exact, options.repeats)
        columns[f"{side}x{side}"] = times
        notes.append(f"{side}x{side}, {len(images)} images of {origin}: {'; '.join(remarks)}.")
    machine = describe_machine()
    print(markdown(columns))
    print(f"\nMedian of {options.repeats} repeats (perturb: 2), processor time of one thread.", *notes, sep="\n")
    print(f"{machine['Processor']}; {machine['Cores']}; {machine['System']}.")


if __name__ == "__main__":
    main()
