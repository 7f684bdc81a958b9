"""Disks of so many bytes, that can be made larger or read-only: file systems in memory, mounted for a test."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class Disk:
    """A file system of its own, mounted on a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def resize(self, size: int) -> None:
        """Give it so many bytes; what it holds stays."""
        _run("mount", "-o", f"remount,rw,size={size}", str(self.folder))

    def read_only(self) -> None:
        """Let nobody write, not even root, whom modes do not stop."""
        _run("mount", "-o", "remount,ro", str(self.folder))


@contextmanager
def disk(folder: Path, size: int) -> Iterator[Disk]:
    """A disk of `size` bytes at this folder, empty; the test is skipped where this process may not mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small disk")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
