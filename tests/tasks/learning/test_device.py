import pytest
import torch

from storage.errors import ParameterError, SettingsError
from tasks.learning.device import computing, describe_device, resolve_device, resolve_precision, usable_cores


def test_auto_takes_a_gpu_when_there_is_one() -> None:
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_device("cpu").type == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_without_a_gpu_is_refused() -> None:
    with pytest.raises(SettingsError, match="DMCP_DEVICE=cpu"):
        resolve_device("cuda")


def test_unknown_names_are_refused() -> None:
    with pytest.raises(SettingsError):
        resolve_device("tpu")
    with pytest.raises(ParameterError):
        resolve_precision("fp8", torch.device("cpu"))


def test_precision_is_what_was_asked_for() -> None:
    cpu = torch.device("cpu")
    assert resolve_precision("fp32", cpu) == "fp32"
    assert resolve_precision("bf16", cpu) == "bf16"
    assert resolve_precision("auto", cpu) in ("fp32", "bf16")


def test_threads_are_set_and_put_back() -> None:
    before = torch.get_num_threads()
    with computing(torch.device("cpu"), 1) as threads:
        assert threads == torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
    with computing(torch.device("cpu")) as threads:
        assert threads == usable_cores()
    assert describe_device(torch.device("cpu"), 2) == "cpu, 2 threads"


@pytest.mark.parametrize(
    ("share", "cores"), [("1", 1), ("1,1", 1), ("100000", None), ("", None), ("0", None), ("x", None)]
)
def test_a_share_of_the_cores_is_kept_to(monkeypatch: pytest.MonkeyPatch, share: str, cores: int | None) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    every = usable_cores()
    monkeypatch.setenv("OMP_NUM_THREADS", share)
    assert usable_cores() == (cores or every)
