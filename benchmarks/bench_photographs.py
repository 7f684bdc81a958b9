"""Images as large as ImageNet's: `python -m benchmarks.bench_photographs --images 60`

JPEG files of the sizes --sizes (WxH, ImageNet's usual ones by default, lying and upright) are written, read by the
loader `imagefolder`, protected as params.yaml has it for `imagefolder`, restored, and compared with what was read, bit
for bit. The pictures are mosaics of TinyImageNet (from the mirror, DMCP_MIRROR; else of `sample`), for there are no
photographs in the project: textures and edges as in photographs, with seams. The surrogate has random weights: how long
it takes does not depend on them. Printed are megapixels a second of one thread, by step.
"""

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.bench_method import load_images
from storage.manifest import read_manifest
from storage.png import decode_png
from storage.shards import read_shard
from tasks.download import download_dataset
from tasks.learning.models import Normalized, build_model
from tasks.machine import describe_machine
from tasks.method.seal import DataKey
from tasks.models_io import ModelInfo, save_model
from tasks.params import load_params
from tasks.protect import ProtectJob, method_named, prepare_library, protect_shard
from tasks.restore import restore_samples

KEY = DataKey(bytes(range(32)), "bench")
SIZES = ("500x375", "375x500", "500x333")
TILE = 64


def mosaics(count: int, sizes: Sequence[tuple[int, int]]) -> list[NDArray[np.uint8]]:
    """Pictures uint8 [h, w, 3] of the sizes (width, height) in turn, from tiles that differ from picture to picture."""
    tiles = load_images(TILE, 400)[0]
    draw = np.random.default_rng(0)
    pictures = []
    for i in range(count):
        width, height = sizes[i % len(sizes)]
        rows, columns = -(-height // TILE), -(-width // TILE)
        chosen = tiles[draw.integers(len(tiles), size=rows * columns)].reshape(rows, columns, TILE, TILE, 3)
        whole = chosen.transpose(0, 2, 1, 3, 4).reshape(rows * TILE, columns * TILE, 3)
        pictures.append(np.ascontiguousarray(whole[:height, :width]))
    return pictures


def write_folder(folder: Path, pictures: Sequence[NDArray[np.uint8]]) -> None:
    """A folder of two class folders with JPEG files."""
    for i, picture in enumerate(pictures):
        place = folder / f"class-{i % 2}" / f"{i:05d}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(place, quality=90)


def bench(count: int, sizes: Sequence[tuple[int, int]], folder: Path) -> dict[str, Any]:
    """Seconds by step, megapixels, and how many images came back bit for bit."""
    write_folder(folder / "images", mosaics(count, sizes))
    parameters = {"path": str(folder / "images"), "test_share": 0.1, "seed": 0, "shard_size": 30}
    begun = perf_counter()
    download_dataset("imagefolder", parameters, folder / "clean", folder / "test", None)
    seconds = Counter({"read JPEG, write clean shards": perf_counter() - begun})
    chosen = load_params("imagefolder")
    job = ProtectJob(
        "bench", "train", 2, folder / "model.pt", folder / "library.npy", method_named(chosen.protect.model_dump())
    )
    side = chosen.surrogate.image_size or 64
    network = Normalized(build_model("resnet18", 2), (0.5,) * 3, (0.25,) * 3)
    save_model(job.surrogate, network, ModelInfo("resnet18", "imagenet", ["class-0", "class-1"], side, side))
    prepare_library(folder / "clean", job.surrogate, job.library, job.method)
    pixels = {"clean": 0, "spilled": 0, "images": 0, "identical": 0}
    for shard in read_manifest(folder / "clean").shards:
        report = protect_shard(folder / "clean" / shard.name, folder / shard.name, job, KEY)
        seconds.update({f"protect: {step}": spent for step, spent in report.seconds.items()})
        protected = read_shard(folder / shard.name)
        batch = restore_samples(protected, lambda _: KEY)
        seconds.update({f"restore: {step}": spent for step, spent in batch.seconds.items()})
        pixels["clean"] += report.pixels
        pixels["spilled"] += report.spilled
        pixels["images"] += report.images
        for sample, found in zip(read_shard(folder / "clean" / shard.name), batch.samples, strict=True):
            wanted = decode_png(sample.png, sample.key)
            pixels["identical"] += int(np.array_equal(decode_png(found.png, found.key), wanted))
    return {"seconds": dict(seconds), **pixels}


def markdown(found: dict[str, Any]) -> str:
    """The table: megapixels a second by step, then protecting and restoring as a whole."""
    megapixels = found["clean"] / 1e6
    rows = dict(found["seconds"])
    for whole in ("protect", "restore"):
        rows[f"**{whole}, whole**"] = sum(spent for step, spent in rows.items() if step.startswith(f"{whole}:"))
    lines = ["| step | megapixels a second | ms an image |", "|---|---:|---:|"]
    lines += [
        f"| {step} | {megapixels / spent:.2f} | {1000 * spent / found['images']:.1f} |" for step, spent in rows.items()
    ]
    return "\n".join(lines)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), help="WIDTHxHEIGHT, in turn")
    parser.add_argument("--out", type=Path, help="write the figures here too, as JSON")
    args = parser.parse_args()
    sizes = [(int(w), int(h)) for w, h in (size.split("x") for size in args.sizes)]
    with tempfile.TemporaryDirectory() as folder:
        found = bench(args.images, sizes, Path(folder))
    print(markdown(found))
    print(
        f"\n{found['identical']} of {found['images']} images bit for bit, {found['spilled']} with the payload beside "
        f"the pixels; {found['clean'] / 1e6:.1f} megapixels, sizes {', '.join(args.sizes)}."
    )
    if args.out:
        args.out.write_text(json.dumps({"machine": describe_machine(), "sizes": args.sizes, **found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
