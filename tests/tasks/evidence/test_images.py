"""Images on disk: which folders stay."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from tasks.evidence import images
from tasks.evidence.images import KEPT, NEEDED_SECONDS, forget_old, image_folder, write_set

SHOWN, LABELS = np.zeros((2, 16, 16, 3), np.uint8), np.zeros(2, np.int64)


def folder(home: Path, number: int, age: float) -> Path:
    """Of a protection whose sets were used so many seconds ago."""
    made = image_folder(home, f"{number:032x}")
    write_set(made / "published", SHOWN, LABELS, np.arange(2))
    for place in (made / "published", made):
        os.utime(place, (time.time() - age,) * 2)
    return made


def test_the_folders_used_longest_ago_are_removed(tmp_path: Path) -> None:
    made = [folder(tmp_path, number, 2 * NEEDED_SECONDS + number) for number in range(KEPT + 2)]
    forget_old(tmp_path)
    assert [one.exists() for one in made] == [True] * KEPT + [False] * 2


def test_what_a_run_may_still_need_stays(tmp_path: Path) -> None:
    made = [folder(tmp_path, number, NEEDED_SECONDS - 60) for number in range(KEPT + 2)]
    forget_old(tmp_path)
    assert all(one.exists() for one in made)


def test_what_is_loaded_is_in_use(tmp_path: Path) -> None:
    made = [folder(tmp_path, number, 2 * NEEDED_SECONDS + number) for number in range(KEPT + 2)]
    images.ImageSet(made[-1] / "published", "", 2).load()
    forget_old(tmp_path)
    assert made[-1].exists()
    assert [one.exists() for one in made[:-1]] == [True] * (KEPT - 1) + [False] * 2


def test_a_folder_that_another_run_removes_meanwhile_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [folder(tmp_path, number, 2 * NEEDED_SECONDS + number) for number in range(KEPT + 1)]
    last_used = images._last_used

    def removed_first(asked: Path) -> float:
        if asked == made[3]:
            images.shutil.rmtree(asked)
        return last_used(asked)

    monkeypatch.setattr(images, "_last_used", removed_first)
    forget_old(tmp_path)
    assert [one.exists() for one in made] == [number != 3 for number in range(KEPT + 1)]


def test_nothing_to_forget_is_no_failure(tmp_path: Path) -> None:
    forget_old(tmp_path)
