"""What a data set that grows costs: `python -m benchmarks.bench_growth --images 3000`

A folder of class folders is built (CIFAR-10 where DMCP_MIRROR has it, else `sample`) and made into a version by the
stages download, surrogate, protect and publish; so again after ten images and a whole class came in; a third time
nothing came. Printed are the seconds of each stage, and how many shards were sent and shared with the version before.
The surrogate is trained for one epoch; everything else is as params.yaml has it.
"""

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

NEW = 10
DATASET = "imagefolder"


def build(folder: Path, mirror: Path | None, images: int) -> list[Path]:
    """Lay the images out below folder/images; the last ones of a class, and all of one class, are held back."""
    from tasks.download import download_dataset
    from tasks.export import export_imagefolder

    limits = {"train_limit": images, "test_limit": 10}
    download_dataset("cifar10" if mirror else "sample", limits, folder / "all", folder / "test", mirror)
    export_imagefolder(folder / "all", folder / "images")
    classes = sorted((folder / "images").iterdir())
    held = sorted(classes[1].iterdir())[5 : 5 + NEW] + sorted(classes[0].iterdir())
    for path in held:
        target = folder / "held" / path.relative_to(folder / "images")
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    classes[0].rmdir()
    return held


def write_params(project: Path) -> None:
    """params.yaml as it is, with a surrogate of one epoch for 32x32."""
    raw = yaml.safe_load((project / "params.yaml").read_text())
    raw["datasets"][DATASET]["surrogate"] = {"epochs": 1, "image_size": None}
    Path("params.yaml").write_text(yaml.safe_dump(raw))


def shards_of(name: str) -> set[str]:
    """Digests of a variant's shards."""
    from storage.manifest import read_manifest

    return {shard.sha256 for shard in read_manifest(Path("data", DATASET, name)).shards}


def make_version() -> dict[str, Any]:
    """Run the stages as the pipeline does; seconds by stage, and what publishing did."""
    from flows.download import download, has_changed
    from flows.protect import protect
    from flows.publish import latest_published, publish_folder
    from flows.surrogate import surrogate

    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        seconds[name] = time.perf_counter() - start
        return result

    there = Path("data", DATASET, "protected").exists()
    if there and not timed("look", lambda: has_changed(DATASET)):
        timed("look at the bucket", lambda: latest_published(DATASET))
        return {"seconds": seconds, "sent": 0, "shared": len(shards_of("protected"))}
    for name, stage in (("download", download), ("surrogate", surrogate), ("protect", protect)):
        timed(name, lambda stage=stage: stage(DATASET))
    done = timed("publish", lambda: publish_folder(f"data/{DATASET}/protected", DATASET))
    return {"seconds": seconds, "sent": done["shards_uploaded"], "shared": done["shards_shared"]}


def main() -> None:
    """Three versions, in a folder of their own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=3000)
    wanted = parser.parse_args()
    project, mirror = Path.cwd(), os.environ.get("DMCP_MIRROR")
    with tempfile.TemporaryDirectory(prefix="dmcp-growth-") as name:
        os.chdir(name)
        os.environ |= {"DMCP_HOME": str(Path(name, ".dmcp")), "DMCP_DATA": "data"}
        write_params(project)
        held = build(Path(name), Path(mirror) if mirror else None, wanted.images)
        from flows.services import object_store
        from tasks.machine import describe_machine

        rows = []
        with object_store():
            rows.append(("first version", make_version()))
            for path in held:
                path.parent.mkdir(exist_ok=True)
                shutil.move(Path(name, "held", path.relative_to(Path(name, "images"))), path)
            rows.append((f"{NEW} images and a class came in", make_version()))
            rows.append(("nothing came in", make_version()))
        for title, row in rows:
            times = ", ".join(f"{step} {value:.2f}" for step, value in row["seconds"].items())
            print(f"{title}: shards sent {row['sent']}, shared {row['shared']}; seconds: {times}")
        print(f"load {os.getloadavg()[0]:.1f}; {describe_machine()}")
        os.chdir(project)


if __name__ == "__main__":
    main()
