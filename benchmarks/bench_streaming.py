"""What protecting and restoring without a local copy take of memory and disk: `python -m benchmarks.bench_streaming`

A clean variant (CIFAR-10 where DMCP_MIRROR has it, else `sample`) is put into a bucket of the embedded server; from
there it is protected to a published version, which is restored to another address, each by a process of its own.
Measured are that process's peak resident memory and the most that ever lay below HOME/work: shards, and records (all
else but the library of targets). The object server's folder plays the remote side. This for several sizes in shards of
one size: what is bounded stays as it is. The surrogate is untrained and the perturbation takes one step: neither
decides what is held.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

DATASET = "bench"
SOURCE, PUBLIC, PRIVATE = "s3://bench-clean/in", "s3://dmcp-public", "s3://dmcp-private/recovered"


class Disk:
    """Bytes and shard files below HOME/work; looked at each time a shard's file is opened, moved or removed."""

    def __init__(self, home: Path) -> None:
        self.home, self.bytes, self.shards, self.records, self.on = home, 0, 0, 0, True
        self._lock = threading.Lock()
        sys.addaudithook(self._look)

    def _look(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.on and event in ("open", "os.rename", "os.remove") and ".tar" in str(arguments[0]):
            self.look()

    def look(self) -> None:
        """Count what lies there now."""
        sizes: dict[str, int] = {}
        for folder, _, files in os.walk(self.home / "work"):
            for name in files:
                path = f"{folder}/{name}"
                try:
                    sizes[path] = os.stat(path).st_size  # noqa: PTH116 - often
                except FileNotFoundError:
                    continue
        shards = [size for path, size in sizes.items() if ".tar" in path]
        with self._lock:
            self.bytes = max(self.bytes, sum(shards))
            self.shards = max(self.shards, len(shards))
            self.records = max(self.records, sum(sizes.values()) - sum(shards) - sizes.get(self._library(sizes), 0))

    @staticmethod
    def _library(sizes: dict[str, int]) -> str:
        return next((path for path in sizes if path.endswith("library.npy")), "")


def measured(job: Callable[..., int], *arguments: Any) -> dict[str, Any]:
    """Run a job in a process of its own; what it took."""
    receiving, sending = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=_measure, args=(sending, job, arguments))
    process.start()
    sending.close()
    result: dict[str, Any] = receiving.recv()
    process.join()
    return result


def _measure(answer: Any, job: Callable[..., int], arguments: tuple[Any, ...]) -> None:
    from flows.services import object_store
    from storage.settings import settings

    with object_store():
        disk, started = Disk(settings().home_path()), time.monotonic()
        images = job(*arguments)
        disk.look()
        disk.on = False
        seconds = time.monotonic() - started
    answer.send(
        {
            "images": images,
            "peak_resident_bytes": peak_resident(),
            "peak_shard_files": disk.shards,
            "peak_shard_bytes": disk.bytes,
            "peak_record_bytes": disk.records,
            "seconds": round(seconds, 1),
        }
    )
    answer.close()


def peak_resident() -> int:
    """Bytes. Of this program alone: what `getrusage` says includes that of the one that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def protect(surrogate: str, key_id: str) -> int:
    """From bucket to bucket; how many images."""
    from flows.protect_stream import run_protect_stream
    from tasks.params import ProtectParams, load_params

    params = load_params("cifar10").protect.model_dump()
    params["exact"]["perturbation"]["steps"] = 1
    return int(run_protect_stream(SOURCE, PUBLIC, Path(surrogate), ProtectParams(**params), key_id)["protected"])


def restore(request_id: str) -> int:
    """The version in the public bucket to an address; how many images."""
    from flows.restore import serve_request
    from storage.addresses import open_private_address
    from storage.files import make_private
    from storage.objects import open_store
    from storage.settings import settings
    from tasks.request_deliver import deliver_results

    serve_request(request_id)
    place, work = open_private_address(settings(), PRIVATE), make_private(settings().home_path("work"), "requests")
    return deliver_results(open_store(settings(), "private"), request_id, place, work).restored


def prepare(folder: Path, mirror: Path | None, images: int, shard: int) -> tuple[str, int, str]:
    """Put a clean variant into a bucket and remove it here; surrogate, bytes of the variant, key id."""
    from storage.addresses import open_address
    from storage.keys import open_vault
    from storage.manifest import read_manifest
    from storage.settings import settings
    from tasks.download import download_dataset
    from tasks.learning.models import Normalized, build_model
    from tasks.models_io import ModelInfo, save_model

    clean, limits = folder / "clean", {"train_limit": images, "test_limit": 10, "shard_size": shard}
    download_dataset("cifar10" if mirror else "sample", limits, clean, folder / "test", mirror, dataset=DATASET)
    manifest = read_manifest(clean)
    place = open_address(settings(), SOURCE)
    place.ensure_bucket()
    for path in clean.iterdir():
        place.put_file(path, path.name)
        path.unlink()
    network = Normalized(build_model("resnet18", len(manifest.classes), "imagenet", 0), (0.5,) * 3, (0.25,) * 3)
    save_model(folder / "model.pt", network, ModelInfo("resnet18", "imagenet", manifest.classes, 32, 32))
    size = sum(entry.bytes for entry in manifest.shards)
    return str(folder / "model.pt"), size, open_vault(settings()).create(DATASET).key_id


def ask(folder: Path) -> str:
    """A request of a user with a grant for the whole version."""
    from flows import access
    from storage.objects import open_store
    from storage.settings import settings
    from tasks.request import submit_request

    with access.registry() as book:
        token = book.add_user("bench")
        book.grant("bench", DATASET)
        private, public = (open_store(settings(), kind) for kind in ("private", "public"))
        return submit_request(book, private, token, f"{DATASET}@latest", work=folder / "asked", public=public)


def one_size(folder: Path, mirror: Path | None, images: int, shard: int) -> dict[str, Any]:
    """Both jobs on so many images, in a HOME of their own."""
    from flows.services import object_store
    from storage.settings import settings

    os.environ |= {"DMCP_HOME": f"{folder}/.dmcp", "DMCP_DATA": f"{folder}/data"}
    settings.cache_clear()
    with object_store():
        surrogate, size, key_id = prepare(folder, mirror, images, shard)
        protected = measured(protect, surrogate, key_id)
        restored = measured(restore, ask(folder))
    return {"images": images, "clean_bytes": size, "protect": protected, "restore": restored}


def main() -> None:
    """Measure and print; with --out write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 4000])
    parser.add_argument("--shard", type=int, default=250, help="images a shard")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path)
    wanted = parser.parse_args()
    mirror = os.environ.get("DMCP_MIRROR")
    with tempfile.TemporaryDirectory(prefix="dmcp-streaming-") as name:
        os.environ |= {"DMCP_WORKERS": str(wanted.workers), "DMCP_HOME": f"{name}/home"}
        from flows.services import prefect_server
        from tasks.machine import describe_machine, package_versions

        with prefect_server():
            rows = [
                one_size(Path(name, str(images)), Path(mirror) if mirror else None, images, wanted.shard)
                for images in wanted.images
            ]
    found = {
        "origin": "cifar10" if mirror else "sample",
        "shard_images": wanted.shard,
        "workers": wanted.workers,
        "sizes": rows,
        "load": os.getloadavg()[0],
        "machine": describe_machine(),
        "packages": package_versions(),
    }
    text = json.dumps(found, indent=2) + "\n"
    print(text, end="")
    if wanted.out:
        wanted.out.write_text(text)


if __name__ == "__main__":
    main()
