from pathlib import Path

import pytest

from benchmarks import bench_photographs, bench_scale

pytestmark = pytest.mark.usefixtures("without_mirror")


def test_every_image_of_every_shard_comes_back(tmp_path: Path) -> None:
    bench_scale.prepare(tmp_path)
    row = bench_scale.run(tmp_path, images=7, workers=1, kind="threads", size=3, distinct=5)
    assert (row.done.images, row.done.identical) == (7, 7)
    assert row.done.protect > 0 and row.done.restore > 0 and row.late > 0
    assert not list(tmp_path.glob("*.tar"))
    assert "| 7 | 1 threads |" in bench_scale.markdown([row])


def test_each_time_round_the_images_are_others() -> None:
    images = bench_scale.build(bench_scale.Shard(Path(), 0, 12, 4))
    assert len({image.tobytes() for image in images}) == 12


def test_photographs_of_several_sizes_come_back(tmp_path: Path) -> None:
    found = bench_photographs.bench(6, [(70, 40), (40, 70)], tmp_path)
    assert found["identical"] == found["images"] > 0
    assert found["clean"] == 70 * 40 * found["images"]
    table = bench_photographs.markdown(found)
    assert "**protect, whole**" in table and "restore: decode" in table
