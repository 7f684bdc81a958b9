import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from storage.errors import DatasetError, ParameterError
from tasks.learning.models import Normalized, build_model
from tasks.models_io import ModelInfo, load_features, load_model, load_models, load_state, save_model, save_state

INFO = ModelInfo("resnet18", "small", ["cat", "dog", "ox"], 32, 24)


def made(seed: int = 4) -> Normalized:
    return Normalized(build_model("resnet18", 3, "small", seed), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)).eval()


def test_a_network_comes_back_as_it_was(tmp_path: Path) -> None:
    model = made()
    save_model(tmp_path / "model.pt", model.to(memory_format=torch.channels_last), INFO)
    loaded = load_model(tmp_path / "model.pt")
    images = torch.rand(2, 3, 32, 24)
    assert loaded.info == INFO and not loaded.model.training
    assert torch.equal(loaded.model(images), model(images))


def test_the_same_network_is_the_same_bytes(tmp_path: Path) -> None:
    for name, layout in (("a.pt", torch.contiguous_format), ("b.pt", torch.channels_last)):
        save_model(tmp_path / name, made().to(memory_format=layout), INFO)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


def test_features_come_from_the_file(tmp_path: Path) -> None:
    save_model(tmp_path / "model.pt", made(), INFO)
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    (features,) = load_features(tmp_path / "model.pt", "layer4", precision="fp32")
    activations = features(images)
    assert activations.shape == (2, 512) and activations.dtype == torch.float32
    activations.sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
    with pytest.raises(ParameterError):
        load_features(tmp_path / "model.pt", "layer9")


def test_networks_of_earlier_epochs_come_back_too(tmp_path: Path) -> None:
    networks = [made(seed) for seed in (1, 2, 3)]
    save_model(tmp_path / "model.pt", networks[-1], INFO, networks[:-1])
    images = torch.rand(1, 3, 16, 16)
    for loaded, saved in zip(load_models(tmp_path / "model.pt"), networks, strict=True):
        torch.testing.assert_close(loaded.model(images), saved(images))
    torch.testing.assert_close(load_model(tmp_path / "model.pt").model(images), networks[-1](images))
    logits = load_features(tmp_path / "model.pt", "logits", precision="fp32")
    assert len(logits) == 3
    torch.testing.assert_close(logits[0](images), networks[0](images), rtol=1e-3, atol=1e-3)
    assert len(load_features(tmp_path / "model.pt", "layer4")) == 1


class _Runs:
    """Would create a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.path, "w")


def test_a_file_that_is_no_model_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    files = {
        "text.pt": b"not a model",
        "empty.pt": b"",
        "pickle.pt": pickle.dumps(_Runs(trap)),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    torch.save(_Runs(trap), tmp_path / "torch-pickle.pt")
    torch.save({"state": {}}, tmp_path / "state-only.pt")
    torch.save({"format": "dmcp-model/2"}, tmp_path / "later.pt")
    save_model(tmp_path / "whole.pt", made(), INFO)
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:-1000])
    save_model(tmp_path / "other.pt", made(), replace(INFO, classes=["one", "two"]))
    for path in sorted(tmp_path.glob("*.pt")):
        if path.name != "whole.pt":
            with pytest.raises(DatasetError, match=path.name):
                load_model(path)
    assert not trap.exists()


def test_a_missing_file_names_the_stage_as_cure(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="dvc repro"):
        load_model(tmp_path / "none.pt")


def test_a_state_that_can_not_be_read_is_none(tmp_path: Path) -> None:
    assert load_state(tmp_path / "none.pt") is None
    (tmp_path / "bad.pt").write_bytes(b"x")
    assert load_state(tmp_path / "bad.pt") is None
    save_state(tmp_path / "good.pt", {"history": [{"epoch": 1}], "model": {"w": torch.ones(2)}})
    state = load_state(tmp_path / "good.pt")
    assert state is not None and state["history"] == [{"epoch": 1}] and torch.equal(state["model"]["w"], torch.ones(2))
