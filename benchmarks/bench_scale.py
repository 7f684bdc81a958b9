"""What an image costs as a data set grows: `python -m benchmarks.bench_scale --images 1000 10000 100000`

CIFAR-10 (from the mirror, DMCP_MIRROR; else `sample`), repeated with shifts until there are enough images, in shards of
1,000. Every shard is built, protected, restored and compared with what it was built from, bit for bit; then its files
go, so that any number of images needs little disk. Protecting is all of it but the surrogate's passes, whose cost an
image does not depend on the number of images: they are measured apart, on --surrogate-images.

Workers are processes or threads, as `DMCP_RUNNER` has them, without Prefect: what that adds to a shard is in
`bench_runners`. Seconds of building and comparing count as neither protecting nor restoring; "wall" has them all.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray

from benchmarks.bench_method import load_images
from storage.png import decode_png, encode_png
from storage.shards import Sample, read_shard, write_shard
from tasks.machine import describe_machine
from tasks.method.seal import DataKey
from tasks.method.sign_perturbation import SignParameters
from tasks.protect import ExactMethod, ProtectJob, one_thread, protect_shard, surrogate_features
from tasks.restore import restore_samples

Images = NDArray[np.uint8]
KEY = DataKey(bytes(range(32)), "bench")
CLASSES = 10
POOLS: dict[str, type[Executor]] = {"processes": ProcessPoolExecutor, "threads": ThreadPoolExecutor}


@dataclass(frozen=True)
class Shard:
    """One shard to do: `images` of them from number `first` on, `distinct` of which differ by more than a shift."""

    folder: Path
    first: int
    images: int
    distinct: int


@dataclass(frozen=True)
class Done:
    """What one shard, or all of a run, took. Seconds are processor time of the threads that did it.

    Attributes:
        identical: images that came back bit for bit.
        memory: resident bytes of the process, at the end of the shard; the largest, for a run.
    """

    images: int
    identical: int
    protect: float
    restore: float
    memory: int


@dataclass(frozen=True)
class Run:
    """A row: `early` and `late` are the largest resident bytes in the first and last tenth of the shards."""

    images: int
    workers: int
    kind: str
    done: Done
    wall: float
    early: int
    late: int


@lru_cache(maxsize=1)
def distinct_images(count: int) -> Images:
    """The images that are repeated, uint8 [count, 32, 32, 3]; loaded once a process."""
    return load_images(32, count)[0]


def build(shard: Shard) -> Images:
    """The images of a shard, uint8 [n, 32, 32, 3]: each time round, all are shifted by a pixel more."""
    base = distinct_images(shard.distinct)
    numbers = range(shard.first, shard.first + shard.images)
    return np.stack([np.roll(base[i % len(base)], divmod(i // len(base), 32), (0, 1)) for i in numbers])


def job_of(folder: Path) -> ProtectJob:
    """Protecting by texture alone, without a pass of the surrogate."""
    method = ExactMethod(perturbation=SignParameters(pattern="bands", steps=0))
    return ProtectJob("bench", "train", CLASSES, folder / "model.pt", folder / "library.npy", method)


def prepare(folder: Path) -> None:
    """A surrogate with random weights, which is loaded and never asked, and a library to go with it."""
    from tasks.learning.models import Normalized, build_model
    from tasks.models_io import ModelInfo, save_model

    network = Normalized(build_model("resnet18", CLASSES), (0.5,) * 3, (0.25,) * 3)
    names = [str(label) for label in range(CLASSES)]
    save_model(folder / "model.pt", network, ModelInfo("resnet18", "imagenet", names, 32, 32))
    np.save(folder / "library.npy", np.zeros((CLASSES, 1, CLASSES), np.float32))


def round_trip(shard: Shard) -> Done:
    """Build, protect, restore and compare one shard."""
    images = build(shard)
    clean, protected = (shard.folder / f"{name}-{shard.first:09d}.tar" for name in ("clean", "protected"))
    keys = [f"{shard.first + i:09d}" for i in range(len(images))]
    write_shard(
        clean, (Sample(key, encode_png(image), int(key) % CLASSES) for key, image in zip(keys, images, strict=True))
    )
    begun = time.thread_time()
    protect_shard(clean, protected, job_of(shard.folder), KEY)
    between = time.thread_time()
    batch = restore_samples(read_shard(protected), lambda _: KEY)
    write_shard(clean, batch.samples)
    ended = time.thread_time()
    found = {sample.key: sample.png for sample in read_shard(clean)}
    same = [
        key in found and np.array_equal(decode_png(found[key], key), image)
        for key, image in zip(keys, images, strict=True)
    ]
    clean.unlink()
    protected.unlink()
    memory = psutil.Process().memory_info().rss
    return Done(len(images), sum(same), between - begun, ended - between, memory)


def run(folder: Path, images: int, workers: int, kind: str, size: int, distinct: int) -> Run:
    """Do all shards of so many images, `workers` at once."""
    shards = [Shard(folder, first, min(size, images - first), distinct) for first in range(0, images, size)]
    spawning = {"mp_context": get_context("spawn")} if kind == "processes" else {}
    with POOLS[kind](workers, **spawning) as pool:  # type: ignore[call-arg]
        # First what every process does once: imports, compiled code, the images.
        list(pool.map(round_trip, [Shard(folder, 10**8 + n, 1, distinct) for n in range(workers)]))
        begun = time.perf_counter()
        rows = list(_in_window(pool, shards, workers + 1))
        wall = time.perf_counter() - begun
    tenth = -(-len(rows) // 10)
    early, late = (max(row.memory for row in part) for part in (rows[:tenth], rows[-tenth:]))
    done = Done(
        sum(row.images for row in rows),
        sum(row.identical for row in rows),
        sum(row.protect for row in rows),
        sum(row.restore for row in rows),
        max(row.memory for row in rows),
    )
    return Run(images, workers, kind, done, wall, early, late)


def _in_window(pool: Executor, shards: Iterable[Shard], window: int) -> Iterator[Done]:
    """Results as they come, with a bounded number of shards in flight."""
    waiting, running = iter(shards), set[Future[Done]]()
    while True:
        running |= {pool.submit(round_trip, shard) for shard in islice(waiting, window - len(running))}
        if not running:
            return
        ended, running = wait(running, return_when=FIRST_COMPLETED)
        yield from (future.result() for future in ended)


def surrogate_microseconds(folder: Path, images: int, distinct: int) -> float:
    """Processor time an image of the perturbation as configured, less that of the texture alone; one thread."""
    from tasks.params import load_params

    one_thread()
    features = surrogate_features(folder / "model.pt", "logits", "cpu")
    library = np.load(folder / "library.npy")
    configured = SignParameters(**load_params("cifar10").protect.exact.perturbation.model_dump())
    batch = build(Shard(Path(), 0, images, distinct))
    labels = np.arange(images) % CLASSES
    seeds = [KEY.image_seed(KEY.image_id("train", str(i))) for i in range(images)]
    spent = []
    for parameters in (configured, replace(configured, pattern="bands", steps=0)):
        perturbation = ExactMethod(perturbation=parameters).perturber(features, library, KEY, "cpu")
        perturbation.perturb(batch[:250], labels[:250], seeds[:250])  # fits the network to the size
        begun = time.thread_time()
        perturbation.perturb(batch, labels, seeds)
        spent.append(time.thread_time() - begun)
    return 1e6 * (spent[0] - spent[1]) / images


def markdown(rows: Sequence[Run]) -> str:
    """The table."""
    lines = [
        "| images | workers | protect, µs | restore, µs | images/s, both | bit for bit | MiB, 1st tenth | MiB, last |",
        "|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        per = 1e6 / row.done.images
        costs = f"{row.done.protect * per:.0f} | {row.done.restore * per:.0f} | {row.images / row.wall:,.0f}"
        memory = f"{row.early >> 20} | {row.late >> 20}"
        lines.append(f"| {row.images:,} | {row.workers} {row.kind} | {costs} | {row.done.identical:,} | {memory} |")
    return "\n".join(lines)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10_000], help="sizes to try")
    parser.add_argument("--workers", type=int, nargs="+", default=[psutil.cpu_count() or 1], help="shards at once")
    parser.add_argument("--kinds", nargs="+", choices=list(POOLS), default=["processes"], help="what a worker is")
    parser.add_argument("--shard", type=int, default=1000, help="images a shard")
    parser.add_argument("--distinct", type=int, default=50_000, help="images that are repeated with shifts")
    parser.add_argument("--surrogate-images", type=int, default=0, help="measure the surrogate's passes; 0: do not")
    parser.add_argument("--out", type=Path, help="write the figures here too, as JSON")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        for images in args.images:
            for kind in args.kinds:
                for workers in args.workers:
                    rows.append(run(Path(folder), images, workers, kind, args.shard, min(args.distinct, images)))
                    print(markdown(rows[-1:]).splitlines()[-1], flush=True)
        passes = None
        if args.surrogate_images:
            passes = surrogate_microseconds(Path(folder), args.surrogate_images, args.distinct)
    print(f"\n{markdown(rows)}\n")
    if passes is not None:
        print(f"The surrogate's passes, apart: {passes:,.0f} µs an image, over {args.surrogate_images:,} images.")
    if args.out:
        found = {"machine": describe_machine(), "runs": [asdict(row) for row in rows], "surrogate_microseconds": passes}
        args.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main()
