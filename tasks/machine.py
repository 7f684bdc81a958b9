"""What a figure was measured with: processor, memory, GPU, and versions of what computes. No host or user name."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    "dmcp", "torch", "torchvision", "numpy", "numba", "pillow", "pycryptodome", "scikit-image",
    "prefect", "mlflow", "dvc", "matplotlib",
)  # fmt: skip


def describe_machine() -> dict[str, str]:
    """Processor, cores, memory, GPU and operating system, as short texts in the order to show them."""
    import psutil

    physical, logical = psutil.cpu_count(logical=False), psutil.cpu_count(logical=True)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else logical
    return {
        "Processor": _processor(),
        "Cores": f"{usable} usable, {logical} logical, {physical or 'unknown'} physical",
        "Memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "GPU": _gpu(),
        "System": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    }


def package_versions() -> dict[str, str]:
    """Installed versions of the packages that decide results, by name."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "Model") and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        return "none"
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ", ".join(f"{names.count(name)} × {name}" for name in sorted(set(names)))
