from pathlib import Path

import numpy as np

from benchmarks.bench_exact import bench, markdown
from tasks.params import load_params
from tests.tasks.method.images import make


def test_every_step_is_timed_and_what_is_restored_is_exact() -> None:
    images = np.stack([make("photo", 32, 32, seed) for seed in range(6)])
    method = load_params("cifar10", Path("params.yaml")).protect.exact
    times, remarks = bench(images, method, repeats=1)
    assert {"Pillow: PNG decode", "protect: signs, coded", "restore: end to end, PNG to PNG"} <= set(times)
    assert all(value >= 0 for value in times.values())
    assert remarks[1].startswith("payload ")
    assert len(markdown({"32x32": times}).splitlines()) == len(times) + 2
