"""The stage's metrics: what a sweep compares its trials by."""

import pytest

from tasks.evidence.outputs import figures
from tasks.evidence.records import CellResult
from tests.tasks.evidence.made import cells, evidence, facts


def test_the_treatment_that_serves_a_thief_best_counts_for_each_seed() -> None:
    found = [
        *cells((0, 1, 2), 0.20, 0.25, protection="exact"),
        *cells((0, 1), 0.60, protection="clean", countermeasure="gaussian-blur"),  # no business of the protection's
        *cells((0,), 0.40, protection="exact", countermeasure="gaussian-blur"),
        *cells((1,), 0.30, protection="exact", countermeasure="gaussian-blur"),
        *cells((0, 1), 0.35, protection="exact", attack="class-average"),
    ]
    metrics = _metrics(found)
    assert (metrics["objective"], metrics["objective_std"], metrics["n"]) == (0.25, 0, 3)
    assert metrics["strongest"] == pytest.approx((0.40 + 0.355) / 2)
    assert metrics["strongest_std"] == pytest.approx((0.40 - 0.355) / 2**0.5, abs=1e-6)
    assert metrics["strongest_n"] == 2


def test_where_nothing_was_tried_plain_training_is_the_strongest() -> None:
    metrics = _metrics(cells((0, 1), 0.20, 0.25, protection="exact"))
    for part in ("", "_std"):
        assert metrics[f"strongest{part}"] == metrics[f"objective{part}"]
    assert metrics["strongest_n"] == metrics["n"] == 2
    assert "strongest_std" not in _metrics(cells((0,), 0.20, protection="exact"))


def _metrics(found: list[CellResult]) -> dict[str, float]:
    return figures(evidence(found, protections=[facts("exact")]), "exact")
