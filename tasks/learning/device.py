"""Where and how exactly networks compute: device, number format, threads, memory.

The CPU computes convolutions in bfloat16 (under autocast, weights stay float32) where the processor has instructions
for it, the GPU likewise with TF32 for what stays float32. Both are several times faster, and the accuracy of a trained
network is the same within the noise between seeds.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Literal, cast

import torch

from storage.errors import EnvironmentFault, ParameterError, SettingsError

Precision = Literal["bf16", "fp32"]

DEVICE_ERRORS = (torch.OutOfMemoryError, torch.AcceleratorError)


def resolve_device(name: str = "auto") -> torch.device:
    """The device that a setting names: "auto" (a GPU when there is one that torch has code for), "cpu" or "cuda".

    Raises:
        SettingsError: another name, or CUDA where torch finds no GPU or has no code for it.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise SettingsError(f"The device {name!r} is unknown.", "Set DMCP_DEVICE to auto, cpu or cuda.")
    found = name != "cpu" and torch.cuda.is_available()
    if name == "cuda" and not found:
        raise SettingsError("No CUDA device was found.", "Set DMCP_DEVICE=cpu, or check the driver with nvidia-smi.")
    lacking = _lacking() if found else ""
    if name == "cuda" and lacking:
        raise SettingsError(lacking, "Set DMCP_DEVICE=cpu, or install a build of torch for this GPU.")
    if lacking:
        _note(f"{lacking} Networks compute on the CPU.")
    return torch.device("cuda" if found and not lacking else "cpu")


@cache
def _note(text: str) -> None:
    """Say it once a process."""
    logging.getLogger(__name__).warning(text)


def _lacking() -> str:
    """Why torch can not compute on the GPU that it finds; empty where it can."""
    major, minor = torch.cuda.get_device_capability()
    builds = torch.cuda.get_arch_list()
    if not builds or any(_runs(build, 10 * major + minor) for build in builds):
        return ""
    return f"This build of torch ({', '.join(builds)}) has no code for the GPU, of compute capability {major}.{minor}."


def _runs(build: str, capability: int) -> bool:
    """Whether code runs on a GPU: sm_86 on 8.6 up to 8.9, compute_86 (compiled when loaded) on all from 8.6 on."""
    kind, _, version = build.partition("_")
    if kind not in ("sm", "compute"):
        return True  # of another maker, which has no such numbers
    number = int(version.rstrip("af"))
    return number <= capability and (kind == "compute" or number // 10 == capability // 10)


def resolve_precision(wanted: str, device: torch.device) -> Precision:
    """The number format of a setting: "auto" is bf16 wherever the device multiplies it in hardware.

    On a CPU this asks for AMX or AVX-512 with bfloat16: elsewhere it is emulated, and slower than float32.

    Raises:
        ParameterError: not one of auto, bf16, fp32.
    """
    if wanted == "auto":
        if device.type == "cuda":
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
        return "bf16" if _cpu_multiplies_bf16() else "fp32"
    if wanted not in ("bf16", "fp32"):
        raise ParameterError(f"The precision {wanted!r} is unknown.", "Choose auto, bf16 or fp32.")
    return cast(Precision, wanted)


def arithmetic(device: torch.device) -> str:
    """How networks compute on a device when nothing else is asked for: what besides the code decides their numbers."""
    return f"{resolve_precision('auto', device)} by torch {torch.__version__} on {_processor(device)}"


def _processor(device: torch.device) -> str:
    """The GPU's name, or the instructions that kernels are chosen by: bf16 sums differ between them."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA")
    return "+".join([torch.backends.cpu.get_cpu_capability(), *_bf16_instructions(), *([limit] if limit else [])])


def _cpu_multiplies_bf16() -> bool:
    return torch.backends.mkldnn.is_available() and bool(_bf16_instructions())


def _bf16_instructions() -> list[str]:
    # Private names of torch: where a release lacks one, float32 is the safe answer.
    names = {"amx": "_is_amx_tile_supported", "avx512_bf16": "_is_avx512_bf16_supported"}
    asks = {short: getattr(torch.cpu, name, None) for short, name in names.items()}
    return [short for short, ask in asks.items() if ask is not None and ask()]


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The context in which a network computes in this precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def usable_cores() -> int:
    """Cores this process may run on, and no more than OMP_NUM_THREADS: who shares the cores out sets that.

    More threads than cores are no harmless waste: oneDNN's kernels for AMX meet at barriers that spin.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return min(cores, int(share)) if share.isdigit() and int(share) else cores


def at_once(most: int, pixels: int, height: int, width: int) -> int:
    """How many images of a size to take at once: at most so many, and no more pixels unless one image has them."""
    return max(1, min(most, pixels // (height * width)))


@contextmanager
def enough_memory() -> Iterator[None]:
    """Run a block in which networks compute.

    Raises:
        EnvironmentFault: the GPU's memory is used up.
    """
    try:
        yield
    except DEVICE_ERRORS as error:
        if "out of memory" not in str(error):
            raise
        raise EnvironmentFault(
            f"The GPU's memory is used up: {str(error).splitlines()[0]}",
            "Set a smaller batch_size in params.yaml, fewer networks at once (DMCP_WORKERS), or DMCP_DEVICE=cpu.",
        ) from error


@contextmanager
def computing(device: torch.device, threads: int | None = None) -> Iterator[int]:
    """Settings of torch for the time of a training: threads, denormals, TF32, no autotuning. Yields the threads.

    Results on the CPU are the same bit for bit on the same machine with the same number of threads. On a GPU cuDNN is
    kept to its deterministic algorithms, but some backward passes of torch still add in no fixed order.

    Args:
        threads: of the CPU; None: every usable core. Give cores / processes when several train side by side, and set
            OMP_WAIT_POLICY=PASSIVE before Python starts: waiting threads that spin slow each other down.

    Raises:
        EnvironmentFault: see `enough_memory`.
    """
    before = torch.get_num_threads()
    cudnn = torch.backends.cudnn
    flags = (cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
    count = threads or usable_cores()
    torch.set_num_threads(count)
    torch.set_flush_denormal(True)  # Adam's second moments of dead channels get there, and are slow there
    if device.type == "cuda":
        cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32 = True, False, True
        torch.backends.cuda.matmul.allow_tf32 = True
    try:
        with enough_memory():
            yield count
    finally:
        torch.set_num_threads(before)
        torch.set_flush_denormal(False)
        cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32 = flags[:3]
        torch.backends.cuda.matmul.allow_tf32 = flags[3]


def describe_device(device: torch.device, threads: int) -> str:
    """The device in words, for records: the GPU's name, or the CPU with its number of threads."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"cpu, {threads} thread{'s' if threads > 1 else ''}"
