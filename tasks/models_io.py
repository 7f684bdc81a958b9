"""Trained networks as files: `model.pt`, one file that says all it takes to build the network again.

Written by torch.save and read with weights_only=True, so that a file from elsewhere can not run code. The same network
gives the same bytes.
"""

import io
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage.errors import DatasetError
from storage.files import write_atomic

if TYPE_CHECKING:
    import torch

    from tasks.learning.models import Normalized

FORMAT = "dmcp-model/1"


@dataclass(frozen=True)
class ModelInfo:
    """What a trained network is.

    Attributes:
        architecture, stem: as `tasks.learning.models.build_model` takes them.
        classes: names, in the order of the outputs.
        height, width: of the images it was trained on.
    """

    architecture: str
    stem: str
    classes: list[str]
    height: int
    width: int


@dataclass(frozen=True)
class LoadedModel:
    """A network in eval mode, and what it is."""

    model: "Normalized"
    info: ModelInfo


def save_model(path: Path, model: "Normalized", info: ModelInfo) -> None:
    """Write a network (from any device) atomically."""
    import torch

    content = {
        "format": FORMAT,
        "info": asdict(info),
        "mean": model.mean.flatten().tolist(),
        "std": model.std.flatten().tolist(),
        # clone, because contiguous() lets the strides of 1x1 kernels be, and they are saved too
        "state": {
            name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, value in model.network.state_dict().items()
        },
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomic(path, buffer.getvalue())


def load_model(path: Path, device: str = "cpu") -> LoadedModel:
    """Read a network.

    Args:
        device: "auto", "cpu" or "cuda".

    Raises:
        DatasetError: the file is missing, damaged, or no model of this project.
        SettingsError: the device is not there.
    """
    import torch

    from tasks.learning.device import resolve_device
    from tasks.learning.models import Normalized, build_model

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise DatasetError(f"{path} is missing.", "Run the stage that writes it: dvc repro.") from error
    except Exception as error:  # torch has no error of its own for a foreign file; whatever it raises is that
        raise _foreign(path) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise _foreign(path)
    try:
        info = ModelInfo(**content["info"])
        network = build_model(info.architecture, len(info.classes), info.stem)
        network.load_state_dict(content["state"])
        model = Normalized(network, tuple(content["mean"]), tuple(content["std"]))
    except (KeyError, TypeError, RuntimeError) as error:
        raise _foreign(path) from error
    where = resolve_device(device)
    model = model.to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return LoadedModel(model.eval(), info)


def load_features(
    path: Path, layer: str, device: str = "cpu", precision: str = "auto"
) -> "Callable[[torch.Tensor], torch.Tensor]":
    """The activations of a saved network: float32 [n, 3, h, w] in 0..1 to float32 [n, d], averaged over positions.

    Args:
        layer: see `tasks.learning.features.Features`.
        precision: "auto", "bf16" or "fp32".

    Raises:
        DatasetError, SettingsError: as `load_model`.
        ParameterError: the network has no such layer.
    """
    from tasks.learning.features import Features

    return Features(load_model(path, device).model, layer, precision)


def _foreign(path: Path) -> DatasetError:
    return DatasetError(f"{path} is no trained model of this project, or it is damaged.", "Run its stage again.")


TrainingState = dict[str, Any]


def save_state(path: Path, state: TrainingState) -> None:
    """Write the state of a training that is under way, atomically."""
    import torch

    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(path, buffer.getvalue())


def load_state(path: Path) -> TrainingState | None:
    """The state of an earlier training, or None when there is none that can be read (then it begins again)."""
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # missing, or damaged in whatever way: it is only a shortcut
        return None
    return state if isinstance(state, dict) else None
