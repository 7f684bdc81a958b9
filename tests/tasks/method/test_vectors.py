"""Conformance: what an earlier release wrote is read, and written again, sample for sample."""

import json
from pathlib import Path

import numpy as np
import pytest

from storage.png import decode_png
from tasks.method.paper import PaperParameters, PaperProfile
from tasks.method.profiles import Fitted
from tasks.method.seal import DataKey
from tasks.restore import restore_images

VECTORS = sorted((Path(__file__).parents[2] / "vectors" / "v1").iterdir())


def load(folder: Path, what: str) -> np.ndarray:
    return decode_png((folder / f"{what}.png").read_bytes(), what)


@pytest.mark.parametrize("folder", VECTORS, ids=lambda folder: folder.name)
def test_restores(folder: Path) -> None:
    facts = json.loads((folder / "vector.json").read_text())
    key = DataKey(bytes.fromhex(facts["secret"]), facts["dataset"])
    restored = restore_images(load(folder, "protected")[None], lambda _: key)[0]
    assert np.array_equal(restored, load(folder, "recovered"))


@pytest.mark.parametrize("folder", VECTORS, ids=lambda folder: folder.name)
def test_protects(folder: Path) -> None:
    facts = json.loads((folder / "vector.json").read_text())
    key = DataKey(bytes.fromhex(facts["secret"]), facts["dataset"])
    profile, clean = PaperProfile(PaperParameters(**facts["parameters"])), load(folder, "clean")
    fitted = profile.fit(clean[None], load(folder, "perturbed")[None])[0]
    assert isinstance(fitted, Fitted)
    assert (fitted.rung, fitted.sequence.hex()) == (facts["rung"], facts["sequence"])
    protected = profile.carry([fitted], clean[None], [bytes.fromhex(facts["image_id"])], key)[0]
    assert np.array_equal(protected, load(folder, "protected"))


def test_there_are_vectors() -> None:
    assert len(VECTORS) >= 6
