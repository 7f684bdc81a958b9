"""Every misuse of keys is refused; a trial that would let something through is seen."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from storage.errors import ParameterError
from tasks.evidence import keys
from tasks.evidence.keys import TRIALS, KeyCounts, try_keys
from tasks.evidence.records import KeyTrial
from tasks.learning.training import LabelledImages
from tasks.method.exact import ExactParameters
from tasks.method.paper import PaperParameters
from tasks.method.seal import DataKey
from tasks.protect import ExactMethod, Method, PaperMethod
from tests.tasks.method.images import make

KEY = DataKey(bytes(range(32)), "cifar10")
COUNTS = KeyCounts(images=4, keys=3, pairs=8, bits=64)
METHODS = {
    "exact": ExactMethod(),
    "exact beside": ExactMethod(set=ExactParameters(carrier="chunk")),
    "exact rgb": ExactMethod(set=ExactParameters(signs="rgb")),
    "paper": PaperMethod(),
    "paper in blocks": PaperMethod(transform=PaperParameters(block=2, classes=4)),
}


def photos(count: int = 4, height: int = 32, width: int = 32) -> LabelledImages:
    shown = np.stack([make("photo", height, width, seed) for seed in range(count)])
    return LabelledImages(shown, np.arange(count, dtype=np.int64) % 3)


def by_trial(method: Method, clean: LabelledImages | None = None, **other: object) -> dict[str, KeyTrial]:
    options: dict[str, object] = {"counts": COUNTS, **other}
    found = try_keys("shown", method, clean or photos(), KEY, **options)  # type: ignore[arg-type]
    assert [trial.trial for trial in found] == [*TRIALS]
    assert {trial.protection for trial in found} == {"shown"}
    return {trial.trial: trial for trial in found}


@pytest.mark.parametrize("name", METHODS)
def test_nothing_but_the_clean_image_ever_comes_out(name: str) -> None:
    ways = 2 if name in ("exact", "exact rgb") else 1
    found = by_trial(METHODS[name])
    for trial in found.values():
        assert trial.tried > 0
        assert trial.wrong == 0
        assert trial.refused + trial.exact == trial.tried
        assert sum(trial.reasons.values()) == trial.refused
        if trial.trial != "flipped-bit":
            assert trial.exact == 0
            assert set(trial.reasons) == {"AlteredImage"}
    assert found["wrong-key"].tried == ways * 3 * 4
    assert found["one-bit-wrong-key"].tried == ways * 256 * 4
    assert found["swapped-dataset"].tried == ways * 3 * 4
    assert found["another-image-id"].tried == ways * 8
    assert found["flipped-bit"].tried == ways * 64
    assert found["replayed-payload"].tried >= 8


def test_odd_sizes_and_images_that_spill() -> None:
    noisy = np.stack([make("noise", 17, 23, seed) for seed in range(3)])
    for method in (ExactMethod(), PaperMethod()):
        found = by_trial(method, LabelledImages(noisy, np.zeros(3, np.int64)))
        assert all(trial.tried and not trial.wrong for trial in found.values())


def test_the_same_seed_tries_the_same() -> None:
    assert by_trial(ExactMethod(), seed=3) == by_trial(ExactMethod(), seed=3)


def test_looks_can_be_handed_in_and_counts_have_defaults() -> None:
    clean = photos(3)
    look = np.clip(clean.images.astype(np.int16) + 13, 0, 255).astype(np.uint8)
    found = by_trial(ExactMethod(), clean, perturbed=look, counts=None)
    assert found["wrong-key"].tried == 2 * 64 * 3
    assert not any(trial.wrong for trial in found.values())


def test_images_of_which_none_can_be_protected_are_named() -> None:
    clean = photos(3)
    with pytest.raises(ParameterError, match="Fewer than two"):
        by_trial(ExactMethod(), LabelledImages(np.zeros_like(clean.images), clean.labels), perturbed=clean.images * 0)


# --- the trials can fail ---------------------------------------------------------------------------------------------


def test_the_right_key_counts_as_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """So a trial that lets images through can not pass for a refusal."""
    monkeypatch.setattr(keys, "_other_keys", lambda key, *_: {"wrong-key": [key]})
    trial = by_trial(PaperMethod())["wrong-key"]
    assert (trial.tried, trial.exact, trial.refused) == (4, 4, 0)


@pytest.mark.parametrize("method", [PaperMethod(), ExactMethod()], ids=["paper", "exact"])
def test_another_image_counts_as_wrong(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the restored image is another than the one that was published under this row."""
    whole: Callable[[keys._Published], keys.Try] = keys._whole
    monkeypatch.setattr(keys, "_whole", lambda part: (*whole(part)[:2], np.roll(np.arange(len(part.images)), 1)))
    monkeypatch.setattr(keys, "_other_keys", lambda key, *_: {"wrong-key": [key]})
    trial = by_trial(method)["wrong-key"]
    assert trial.wrong == trial.tried > 0


def test_a_payload_in_its_own_image_opens() -> None:
    """So what refuses a replayed payload is that it is another image's, not how it was put there."""
    labels = [0, 1]
    for method in METHODS.values():
        clean = photos(2)
        looks = keys._disguised(clean.images, method, np.random.RandomState(0))
        part = keys._protected(method, clean.images, looks, labels, KEY)
        for row in labels:
            attempts = list(keys._replayed(part, row, row))
            tally = keys._Tally("replayed-payload", "shown")
            for attempt in attempts:
                tally.restore(part, attempt, KEY)
            assert attempts
            assert tally.exact == tally.tried == len(attempts)
        other = replace(part, restored=part.restored[::-1])
        tally = keys._Tally("replayed-payload", "shown")
        tally.restore(other, keys._whole(part), KEY)
        assert tally.wrong == 2
