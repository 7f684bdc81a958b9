"""Trained networks as files: `model.pt`, one file that says all it takes to build the network again.

Written by torch.save and read with weights_only=True, so that a file from elsewhere can not run code. The same network
gives the same bytes.
"""

import io
from collections.abc import Callable, Sequence
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


def save_model(path: Path, model: "Normalized", info: ModelInfo, earlier: "Sequence[Normalized]" = ()) -> None:
    """Write a network (from any device) atomically, with those from earlier epochs of its training."""
    import torch

    content: dict[str, Any] = {
        "format": FORMAT,
        "info": asdict(info),
        "mean": model.mean.flatten().tolist(),
        "std": model.std.flatten().tolist(),
        "state": _state(model),
    }
    if earlier:
        content["earlier"] = [_state(one) for one in earlier]
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomic(path, buffer.getvalue())


def _state(model: "Normalized") -> dict[str, Any]:
    import torch

    # clone, because contiguous() lets the strides of 1x1 kernels be, and they are saved too
    return {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in model.network.state_dict().items()
    }


def load_model(path: Path, device: str = "cpu") -> LoadedModel:
    """Read a network, and not those from earlier epochs.

    Args:
        device: "auto", "cpu" or "cuda".

    Raises:
        DatasetError: the file is missing, damaged, or no model of this project.
        SettingsError: the device is not there.
    """
    return load_models(path, device)[-1]


def load_models(path: Path, device: str = "cpu") -> list[LoadedModel]:
    """Read a network after those from earlier epochs of its training, where the file has any.

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
        models = []
        for state in (*content.get("earlier", ()), content["state"]):
            network = build_model(info.architecture, len(info.classes), info.stem)
            network.load_state_dict(state)
            models.append(Normalized(network, tuple(content["mean"]), tuple(content["std"])))
    except (KeyError, TypeError, RuntimeError) as error:
        raise _foreign(path) from error
    where = resolve_device(device)
    return [
        LoadedModel(model.to(where, memory_format=torch.channels_last).eval(), info)  # type: ignore[call-overload]
        for model in models
    ]


def load_features(
    path: Path, layer: str, device: str = "cpu", precision: str = "auto"
) -> "tuple[Callable[[torch.Tensor], torch.Tensor], ...]":
    """The activations of a saved network: float32 [n, 3, h, w] in 0..1 to float32 [n, d], averaged over positions.

    Args:
        layer: see `tasks.learning.features.Features`.
        precision: "auto", "bf16" or "fp32".

    Returns:
        for logits, those of the networks from earlier epochs as well, the last epoch's last. For any other layer the
        last epoch's alone: what is aimed at there are activations of one network.

    Raises:
        DatasetError, SettingsError: as `load_model`.
        ParameterError: the network has no such layer.
    """
    from tasks.learning.features import LOGITS, Features

    models = load_models(path, device)
    return tuple(Features(one.model, layer, precision) for one in (models if layer == LOGITS else models[-1:]))


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
