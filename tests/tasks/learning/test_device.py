import pytest
import torch

from storage.errors import EnvironmentFault, ParameterError, SettingsError
from tasks.learning import device as module
from tasks.learning.device import (
    at_once,
    computing,
    describe_device,
    enough_memory,
    resolve_device,
    resolve_precision,
    usable_cores,
)


def test_auto_takes_a_gpu_when_there_is_one() -> None:
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_device("cpu").type == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_without_a_gpu_is_refused() -> None:
    with pytest.raises(SettingsError, match="DMCP_DEVICE=cpu"):
        resolve_device("cuda")


def gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], *builds: str) -> None:
    """A GPU, and what this build of torch has code for."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(builds))
    module._note.cache_clear()


@pytest.mark.parametrize(
    ("capability", "builds"),
    [
        ((9, 0), ["sm_80", "sm_90a"]),
        ((8, 9), ["sm_75", "sm_86"]),
        ((12, 1), ["sm_100", "sm_120"]),
        ((13, 0), ["sm_90", "compute_120"]),
        ((9, 4), ["gfx942"]),
        ((7, 0), []),
    ],
)
def test_a_gpu_that_torch_has_code_for_is_taken(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], builds: list[str]
) -> None:
    gpu(monkeypatch, capability, *builds)
    assert resolve_device("auto").type == resolve_device("cuda").type == "cuda"


@pytest.mark.parametrize(
    ("capability", "builds"), [((6, 1), ["sm_75", "sm_90"]), ((8, 0), ["sm_86"]), ((7, 0), ["compute_75"])]
)
def test_a_gpu_that_torch_has_no_code_for_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capability: tuple[int, int], builds: list[str]
) -> None:
    gpu(monkeypatch, capability, *builds)
    assert resolve_device("auto").type == resolve_device("auto").type == "cpu"
    assert [line.count("Networks compute on the CPU.") for line in caplog.messages] == [1]
    with pytest.raises(
        SettingsError, match=rf"no code for the GPU, of compute capability {capability[0]}\."
    ) as refused:
        resolve_device("cuda")
    assert "DMCP_DEVICE=cpu" in refused.value.cure


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried"), torch.AcceleratorError("CUDA error: out of memory")]
)
def test_memory_that_is_used_up_is_said_with_a_cure(error: Exception) -> None:
    with pytest.raises(EnvironmentFault, match="memory is used up: CUDA") as said, computing(torch.device("cpu")):
        raise error
    assert "batch_size" in said.value.cure and "DMCP_DEVICE=cpu" in said.value.cure
    with pytest.raises(torch.AcceleratorError, match="illegal"), enough_memory():
        raise torch.AcceleratorError("CUDA error: illegal memory access")


@pytest.mark.parametrize(("side", "count"), [(16, 500), (32, 500), (64, 256), (512, 4), (4096, 1)])
def test_large_images_are_taken_fewer_at_once(side: int, count: int) -> None:
    assert at_once(500, 1 << 20, side, side) == count


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
