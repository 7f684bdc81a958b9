import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import compare_protection
from benchmarks.compare_protection import Comparison, courses, markdown, method_of, picture, weights_digest
from storage.errors import ParameterError, UsageError
from tasks.learning.training import LabelledImages
from tasks.method.exact import ExactParameters
from tasks.params import load_params
from tasks.protect import ExactMethod, PaperMethod

PROJECT = Path(__file__).resolve().parents[2]
SNAPSHOTS = load_params("cifar10", PROJECT / "params.yaml").surrogate.snapshots


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A comparison that goes on from a file of these results, without images; its surrogate is a given network."""
    blank = LabelledImages(np.zeros((0, 32, 32, 3), np.uint8), np.zeros(0, np.int64))
    monkeypatch.setattr(compare_protection, "load", lambda *_: blank)

    def make(found: dict[str, Any], surrogate: torch.nn.Module) -> Comparison:
        out = tmp_path / "results.json"
        out.write_text(json.dumps(found))
        result = SimpleNamespace(test_accuracy=0.5, seconds=1.0)
        monkeypatch.setattr(compare_protection, "trained", lambda *_: ([surrogate], result))
        return Comparison(argparse.Namespace(images=10, epochs=2, lr=0.05, stem="imagenet", out=out))

    return make


def results(setting: dict[str, Any] | None = None, rows: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    usual = {"images": 10, "epochs": 2, "lr": 0.05, "stem": "imagenet", "snapshots": SNAPSHOTS}
    return {"setting": usual if setting is None else setting, "rows": rows or {}, **more}


def done(*rows: str) -> dict[str, Any]:
    return {row: {"models": {"resnet18-0": {}}} for row in rows}


def test_a_setting_of_before_snapshots_were_named_is_taken(made: Any) -> None:
    network = torch.nn.Linear(2, 2)
    older = {"images": 10, "epochs": 2, "lr": 0.05, "stem": "imagenet"}
    assert made(results(older, done("exact")), network).results["setting"] == older
    for change in ({"epochs": 3}, {"snapshots": SNAPSHOTS + 1}):
        with pytest.raises(UsageError, match="was made with"):
            made(results(older | change), network)


def test_results_of_one_surrogate_go_on_with_that_one(made: Any) -> None:
    network, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    digest = weights_digest([network])
    assert digest != weights_digest([other]) != weights_digest([other, other])
    going_on = made(results(rows=done("exact"), surrogate_sha256=digest), network)
    assert going_on.surrogate == [network]
    for known in ({"surrogate_sha256": digest}, {}):
        with pytest.raises(UsageError, match="has exact with another surrogate") as refused:
            _ = made(results(rows=done("clean", "exact"), **known), other).surrogate
        assert "another file" in refused.value.cure


def test_where_nothing_was_protected_any_surrogate_will_do(made: Any) -> None:
    network = torch.nn.Linear(2, 2)
    started = {"exact": {"models": {}}} | done("clean")
    fresh = made(results(rows=started, surrogate_sha256="0"), network)
    assert fresh.surrogate == [network]
    assert fresh.results["surrogate_sha256"] == weights_digest([network])


@pytest.mark.parametrize(
    "path", sorted((PROJECT / "docs" / "results").glob("cifar10-*0k-*.json")), ids=lambda p: p.stem
)
def test_the_published_results_are_read(path: Path) -> None:
    assert "| resnet18 |" in markdown(json.loads(path.read_text())) or "architectures" in path.stem


def test_pictures_have_all_rows_that_were_trained(tmp_path: Path) -> None:
    models = {
        f"resnet18-{seed}": {"last": 0.2, "peak": 0.5, "history": [0.5, last]} for seed, last in enumerate((0.2, 0.4))
    }
    rows = {"clean": {"models": models}, "exact": {"models": models, "psnr": 26.0}, "paper": {"models": {}}}
    for draw in (picture, courses):
        draw({"rows": rows}, tmp_path / "a.svg")
        text = (tmp_path / "a.svg").read_text()
        assert "<!-- clean -->" in text and "exact" in text and "paper" not in text


def test_a_row_is_a_profile_with_other_values() -> None:
    method = method_of("exact,set.amplitude=8,perturbation.smoothing=0.5")
    assert isinstance(method, ExactMethod)
    assert method.set == ExactParameters(amplitude=8) and method.perturbation.smoothing == 0.5
    assert isinstance(method_of("paper,transform.block=4,transform.classes=4"), PaperMethod)
    with pytest.raises(ParameterError, match="amplitude"):
        method_of("exact,set.amplitude=300")


def test_the_table_has_means_and_deviations() -> None:
    models = {f"resnet18-{seed}": {"last": last, "peak": 0.5} for seed, last in enumerate((0.2, 0.4))}
    rows = {"clean": {"models": models}, "exact": {"models": models, "psnr": 26.0, "beside": 0.02}}
    table = markdown({"rows": rows}).splitlines()
    assert table[2] == "| clean | resnet18 |  |  | 30.0 ± 14.1 | 50.0 ± 0.0 | 2 |"
    assert table[3] == "| exact | resnet18 | 26.00 | 2.00 | 30.0 ± 14.1 | 50.0 ± 0.0 | 2 |"
