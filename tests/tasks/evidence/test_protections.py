"""Protections of the evaluation: what decides them, and what they do not compute."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.digests import _sources
from tasks.evidence import protections
from tasks.evidence.images import Split, write_set
from tasks.evidence.protections import CODE, Plan, Surrogate, evaluation_key
from tasks.params import load_params

PARAMS = Path(__file__).resolve().parents[3] / "params.yaml"


def test_all_code_that_decides_the_facts_counts() -> None:
    names = {path.as_posix().rpartition("/tasks/")[2] for path in _sources(CODE)}
    assert {"evidence/images.py", "evidence/measures.py", "quality.py", "method/exact.py"} <= names
    assert {"learning/fitting.py", "learning/kernels.py"} <= names


@pytest.mark.parametrize(("profile", "built"), [("exact", 0), ("paper", 1)])
def test_targets_are_computed_where_a_method_has_some(
    profile: str, built: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def build(features: object, members: list[object], *_: object) -> np.ndarray:
        asked.append(features)
        return np.zeros((len(members), 1, 3), np.float32)

    def features(images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))

    monkeypatch.setattr(protections, "build_library", build)
    monkeypatch.setattr(protections, "surrogate_features", lambda *_: (features,))
    labels = np.arange(4) % 2
    images = write_set(tmp_path, np.zeros((4, 16, 16, 3), np.uint8), labels, np.arange(4))
    section = load_params("cifar10", PARAMS).protect.model_dump() | {"profile": profile}
    work = protections._Work(
        Plan("one", section, "cifar10", 0, 10),
        Split(images, list("abcd"), "train", ["cat", "dog"]),
        Surrogate(tmp_path / "model.pt", "", 0.5, 1.0),
        evaluation_key("cifar10", 0),
        "cpu",
    )
    assert work.perturber is not None
    assert asked == [features] * built
