"""Cells: their digests, what they train on, and the pool that answers them."""

import multiprocessing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from storage.errors import ParameterError
from tasks.digests import _sources
from tasks.evidence.cells import CODE, CellJob, Networks, answer, digest_of, jobs_of, training_images
from tasks.evidence.images import ImageSet, balanced, protected_rows, write_set
from tasks.evidence.pool import CellPool
from tasks.evidence.records import Cell, CellResult
from tasks.learning.recipes import recipe_named

CLASSES, EACH = 4, 6
LABELS = np.tile(np.arange(CLASSES), EACH)
NETWORKS = Networks(recipe_named("modern", 1, None, 12), "imagenet", CLASSES, "cpu")


def images(value: int, count: int = CLASSES * EACH) -> np.ndarray:
    """Image i has samples `value + i` all over, so that each tells where it comes from."""
    return np.broadcast_to((value + np.arange(count, dtype=np.uint8))[:, None, None, None], (count, 32, 32, 3)).copy()


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ImageSet]:
    folder = tmp_path_factory.mktemp("sets")
    everything = np.arange(CLASSES * EACH)
    left = np.delete(everything, 3)  # image 3 could not be protected
    return {
        "clean": write_set(folder / "clean", images(0), LABELS, everything),
        "shown": write_set(folder / "shown", images(100)[left], LABELS[left], left),
        "test": write_set(folder / "test", images(50), LABELS, everything),
    }


def job(sets: dict[str, ImageSet], tmp_path: Path, **fields: object) -> CellJob:
    cell = Cell.model_validate({"protection": "exact", **fields})
    digest = digest_of(cell, sets["clean"], sets["shown"], sets["test"], NETWORKS)
    return CellJob(cell, digest, **sets, networks=NETWORKS, result=tmp_path / f"{digest}.json")


def test_digests_of_images_are_those_of_their_content(sets: dict[str, ImageSet], tmp_path: Path) -> None:
    again = write_set(tmp_path / "x", images(0), LABELS, np.arange(CLASSES * EACH))
    assert again.digest == sets["clean"].digest
    assert write_set(tmp_path / "y", images(0), np.roll(LABELS, 1), np.arange(CLASSES * EACH)).digest != again.digest
    assert (again.load().images == images(0)).all()


CHANGES = [
    {"countermeasure": "cutout"}, {"attack": "class-average"}, {"attack": "learned-inverse"},
    {"architecture": "resnet50"}, {"share": 0.4}, {"share": 0.4, "rest_only": True}, {"share": 0.6}, {"seed": 1},
]  # fmt: skip


def test_whatever_a_cell_asks_changes_its_digest(sets: dict[str, ImageSet]) -> None:
    def digest(networks: Networks = NETWORKS, **fields: object) -> str:
        return digest_of(Cell.model_validate({"protection": "exact", **fields}), **sets, networks=networks)

    other_test = sets | {"test": sets["clean"]}
    found = [digest(), *(digest(**change) for change in CHANGES)]
    for networks in (
        replace(NETWORKS, stem="small"),
        replace(NETWORKS, classes=5),
        replace(NETWORKS, recipe=recipe_named("modern", 2, None, 12)),
        replace(NETWORKS, recipe=recipe_named("modern", 1, 0.01, 12)),
    ):
        found.append(digest(networks))
    found.append(digest_of(Cell(protection="exact"), **other_test, networks=NETWORKS))
    found.append(digest_of(Cell(protection="exact"), sets["clean"], sets["clean"], sets["test"], NETWORKS))
    assert len(set(found)) == len(found)


def test_the_code_counts(sets: dict[str, ImageSet], monkeypatch: pytest.MonkeyPatch) -> None:
    import tasks.evidence.cells as module

    before = digest_of(Cell(protection="exact"), **sets, networks=NETWORKS)
    monkeypatch.setattr(module, "CODE", ("tasks/evidence/cells.py",))
    assert digest_of(Cell(protection="exact"), **sets, networks=NETWORKS) != before


def test_the_code_that_draws_shares_and_makes_attacks_counts() -> None:
    names = {path.as_posix().rpartition("/tasks/")[2] for path in _sources(CODE)}
    assert {"evidence/images.py", "learning/adaptive_bands.py", "method/patterns.py"} <= names


def test_the_same_question_has_one_digest(sets: dict[str, ImageSet]) -> None:
    clean, shown, test = sets["clean"], sets["shown"], sets["test"]
    twin = Cell(protection="exact-recovered")
    assert digest_of(twin, clean, clean, test, NETWORKS) == digest_of(
        Cell(protection="clean"), clean, clean, test, NETWORKS
    )
    rest = Cell(protection="exact", share=0.4, rest_only=True)
    other = rest.model_copy(update={"protection": "paper"})
    assert digest_of(rest, clean, shown, test, NETWORKS) == digest_of(other, clean, clean, test, NETWORKS)


def test_unknown_names_are_refused_before_anything_is_trained(sets: dict[str, ImageSet], tmp_path: Path) -> None:
    for fields in ({"countermeasure": "hope"}, {"attack": "guess"}, {"architecture": "perceptron"}):
        with pytest.raises(ParameterError, match=next(iter(fields.values()))):
            jobs_of([Cell(protection="clean", **fields)], sets["clean"], sets["test"], {}, NETWORKS, tmp_path)


def test_all_protected(sets: dict[str, ImageSet], tmp_path: Path) -> None:
    found = training_images(job(sets, tmp_path))
    assert len(found.images) == CLASSES * EACH - 1
    assert (found.images >= 100).all()


def test_a_mixture_has_each_image_once_in_its_place(sets: dict[str, ImageSet], tmp_path: Path) -> None:
    found = training_images(job(sets, tmp_path, share=0.5, seed=7))
    hidden = protected_rows(LABELS, 0.5, 7)
    values = found.images[:, 0, 0, 0].astype(int)
    place = np.where(values >= 100, values - 100, values)
    assert place.tolist() == [i for i in range(CLASSES * EACH) if i != 3 or not hidden[3]]
    assert ((values >= 100) == hidden[place]).all()
    assert (found.labels == LABELS[place]).all()
    rest = training_images(job(sets, tmp_path, share=0.5, seed=7, rest_only=True))
    assert rest.images[:, 0, 0, 0].tolist() == np.flatnonzero(~hidden).tolist()


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_shares_are_balanced_and_grow(share: float) -> None:
    labels = np.random.RandomState(0).randint(0, 5, 500)
    chosen = protected_rows(labels, share, 3)
    for c in range(5):
        assert chosen[labels == c].sum() == round(share * (labels == c).sum())
    assert (protected_rows(labels, 0.9, 3) | ~chosen).all()
    assert (protected_rows(labels, share, 4) != chosen).any()


def test_a_part_is_balanced_over_the_classes() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2])
    assert balanced(labels, 3, 5).tolist() == [0, 1, 4, 5, 6]
    assert balanced(labels, 3, None).tolist() == balanced(labels, 3, 99).tolist() == list(range(9))


def test_an_answer_lies_where_the_next_run_looks(sets: dict[str, ImageSet], tmp_path: Path) -> None:
    asked = job(sets, tmp_path)
    result = answer(asked, threads=1)
    assert CellResult.model_validate_json(asked.result.read_bytes()) == result
    assert (result.n_train, result.n_test, len(result.history)) == (CLASSES * EACH - 1, CLASSES * EACH, 1)
    assert answer(asked, threads=1).history == result.history


def test_whoever_leaves_the_pool_leaves_no_process(sets: dict[str, ImageSet], tmp_path: Path) -> None:
    endless = replace(NETWORKS, recipe=recipe_named("modern", 10_000, None, 12))
    before = set(multiprocessing.active_children())
    with pytest.raises(KeyboardInterrupt), CellPool([replace(job(sets, tmp_path), networks=endless)], 1):
        started = set(multiprocessing.active_children()) - before
        assert started
        raise KeyboardInterrupt
    for process in started:
        process.join()
    assert not set(multiprocessing.active_children()) - before
