"""What a task costs under each task runner: `python -m benchmarks.bench_runners --images 80 --out runners.json`

The same small variant (of `sample`, with a surrogate of one epoch) is protected by each runner that is installed, with
one Prefect server for all of them. Printed for each are the seconds of the protection, in which its processes start and
each loads the network; and, with all of them warm, the milliseconds that one more shard takes that is finished already,
of which the task only reads the report. All must have made the same bytes.
"""

import argparse
import importlib.util
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from tasks.params import deep_merge

QUICK = {"surrogate": {"epochs": 1}, "protect": {"exact": {"perturbation": {"steps": 2, "library": 4}}}}
"""It is the runners that are measured."""
RUNNERS = ("threads", "processes", "dask", "ray")
DATASET = "sample"
REPEATS = 10


def installed(runner: str) -> bool:
    """Whether a runner can be used here."""
    return runner in ("threads", "processes") or importlib.util.find_spec(f"prefect_{runner}") is not None


def write_params(folder: Path) -> None:
    """params.yaml as it is, but quick."""
    raw = yaml.safe_load(Path("params.yaml").read_text())
    raw["datasets"][DATASET] = deep_merge(raw["datasets"][DATASET], QUICK)
    (folder / "params.yaml").write_text(yaml.safe_dump(raw))


def prepare(folder: Path, images: int, shard: int) -> Path:
    """A clean variant, a key and a surrogate; the surrogate's path."""
    from storage.keys import open_vault
    from storage.settings import settings
    from tasks.download import download_dataset
    from tasks.params import load_params
    from tasks.surrogate import train_surrogate

    limits = {"train_limit": images, "test_limit": 16, "shard_size": shard}
    download_dataset(DATASET, limits, folder / "clean", folder / "test", None)
    open_vault(settings()).create(DATASET)
    section = load_params(DATASET).surrogate
    train_surrogate(folder / "clean", folder / "test", folder / "surrogate", section, device="cpu")
    return folder / "surrogate" / "model.pt"


def measure(runner: str, folder: Path, surrogate: Path) -> dict[str, Any]:
    """Seconds of a protection by one runner, from its start on, and what one more task costs then."""
    from flows import protect
    from flows.engine import flow, over_shards
    from storage.keys import open_vault
    from storage.manifest import read_manifest
    from storage.settings import settings
    from tasks.digests import dvc_digest
    from tasks.params import load_params

    os.environ["DMCP_RUNNER"] = runner
    settings.cache_clear()
    shutil.rmtree(settings().home_path("work", "protect"), ignore_errors=True)
    key_id, params = open_vault(settings()).current(DATASET).key_id, load_params(DATASET).protect.model_dump()
    shards = read_manifest(folder / "clean").shards

    @flow("measured", sharded=True)
    def measured() -> tuple[float, float]:
        protect.protect_variant.fn(str(folder / "clean"), str(folder / runner), str(surrogate), params, key_id)
        middle = time.perf_counter()
        (work,) = settings().home_path("work", "protect", DATASET).glob("*/")
        jobs = [(shard.name, shard.sha256, str(work)) for shard in shards] * REPEATS
        over_shards(protect.protect_one, jobs, lambda result: None)
        return middle, (time.perf_counter() - middle) / len(jobs)

    start = time.perf_counter()
    middle, task = measured()
    return {
        "runner": runner,
        "shards": len(shards),
        "protect_seconds": round(middle - start, 1),
        "milliseconds_a_task": round(1000 * task, 1),
        "digest": dvc_digest(folder / runner),
    }


def main() -> None:
    """All runners, in a folder of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=80)
    parser.add_argument("--shard", type=int, default=10, help="images in a shard")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--runner", action="append", choices=RUNNERS, help="only this one (may be given again)")
    parser.add_argument("--out", type=Path)
    wanted = parser.parse_args()
    here, folder = Path.cwd(), Path(tempfile.mkdtemp(prefix="dmcp-runners-"))
    try:
        write_params(folder)
        os.chdir(folder)
        os.environ |= {"DMCP_HOME": str(folder / ".dmcp"), "DMCP_DATA": "data", "DMCP_WORKERS": str(wanted.workers)}
        surrogate = prepare(folder, wanted.images, wanted.shard)
        import flows.engine  # noqa: F401 - sets what Prefect reads when it is imported
        from flows.services import prefect_server
        from tasks.machine import describe_machine

        with prefect_server():
            rows = [measure(name, folder, surrogate) for name in wanted.runner or RUNNERS if installed(name)]
        machine = f"load {os.getloadavg()[0]:.1f}; {describe_machine()}"
    finally:
        os.chdir(here)
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{'runner':<10} {'shards':>6} {'protect s':>9} {'ms a task':>9}")
    for row in rows:
        print(f"{row['runner']:<10} {row['shards']:>6} {row['protect_seconds']:>9} {row['milliseconds_a_task']:>9}")
    print(f"{wanted.workers} workers; {machine}")
    if len({row["digest"] for row in rows}) != 1:
        raise SystemExit("The runners did not make the same bytes.")
    if wanted.out:
        wanted.out.write_text(
            json.dumps({"machine": machine, "workers": wanted.workers, "rows": rows}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
