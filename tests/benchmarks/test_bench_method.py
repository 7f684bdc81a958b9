import numpy as np
import pytest

from benchmarks.bench_method import ORDER, bench, load_images, markdown
from tasks.method.perturbation import FspParameters
from tasks.protect import PaperMethod

pytestmark = pytest.mark.usefixtures("without_mirror")


def test_images_without_a_mirror_are_the_samples() -> None:
    small, origin = load_images(32, 4)
    large, _ = load_images(64, 2)
    assert origin == "sample"
    assert small.shape == (4, 32, 32, 3)
    assert large.shape == (2, 64, 64, 3)
    assert np.array_equal(large[0, :32, :32], small[0])
    assert np.array_equal(large[0, :32, 32:], small[1])
    assert np.array_equal(large[0, 32:, :32], small[2])


def test_every_step_is_timed_and_in_the_table() -> None:
    images, _ = load_images(32, 6)
    times, count = bench(images, PaperMethod(perturbation=FspParameters(steps=1)), repeats=1)
    assert 0 < count <= 6
    assert set(times) == set(ORDER)
    assert all(value >= 0 for value in times.values())
    table = markdown({"32x32": times}).splitlines()
    assert len(table) == len(ORDER) + 4
    assert table[-1].startswith("| **restore, sum** |")
