"""What the tests of key safety run in processes of their own, to be killed there."""

import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from storage.key_encryption import ScryptCost, Unlock
from storage.key_safety import backup, restore, rotate
from storage.keys import Vault

FAST = ScryptCost(n=1 << 14, r=1, p=1)
STEPS = ("open", "fsync", "replace", "link", "mkdir", "unlink", "fchmod")


def by_file(folder: Path, name: str = "vault.key") -> Unlock:
    return Unlock(folder / name, None, FAST, "key-file")


def by_passphrase(folder: Path, phrase: str = "correct horse") -> Unlock:
    return Unlock(folder / "vault.key", SecretStr(phrase), FAST, "passphrase")


def rotate_forever(folder: Path) -> None:
    """Back and forth between a key file and a passphrase, from whichever opens the vault now."""
    ways = [by_file(folder), by_passphrase(folder)]
    while True:
        now = which_opens(folder, ways)
        rotate(Vault(folder / "vault.json", ways[now]), ways[1 - now])


def which_opens(folder: Path, ways: list[Unlock]) -> int:
    kind = '"kind": "passphrase"' in (folder / "vault.json").read_text()
    assert Vault(folder / "vault.json", ways[kind]).list()
    return int(kind)


def operation(name: str, folder: Path) -> None:
    """One of the things that write, on a vault that `by_file` opens; see `test_keys_safety.prepared`."""
    vault = Vault(folder / "vault.json", by_file(folder))
    if name == "rotate to a file":
        rotate(vault, by_file(folder, "safe/new.key"))
    elif name == "rotate to a passphrase":
        rotate(vault, by_passphrase(folder), keep=folder / "kept" / "old.json")
    elif name == "create":
        vault.create("photos")
    elif name == "backup":
        backup(vault, folder / "safe" / "backup.json", SecretStr("in a safe"))
    elif name == "restore":
        restore(vault, Vault(folder / "backup.json", by_passphrase(folder)), merge=True)
    else:
        (folder / "vault.json").write_bytes(b"broken")
        restore(vault, Vault(folder / "backup.json", by_passphrase(folder)), replacing=True)


class Stop:
    """Have the `step`-th call that changes the disk end in `how` instead, within a `with` block."""

    def __init__(self, step: int, how: Callable[[], None]) -> None:
        self.step, self.how, self.done = step, how, 0
        self.before = {name: getattr(os, name) for name in STEPS}

    @property
    def reached(self) -> bool:
        return self.done >= self.step

    def _counted(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            self.done += 1
            if self.done == self.step:
                self.how()
            return self.before[name](*args, **more)

        return call

    def __enter__(self) -> "Stop":
        for name in STEPS:
            setattr(os, name, self._counted(name))
        return self

    def __exit__(self, *error: object) -> None:
        for name, original in self.before.items():
            setattr(os, name, original)


def killed_at(step: int, name: str, folder: Path) -> None:
    """The operation in a process that is killed at its `step`-th change of the disk."""
    with Stop(step, lambda: os.kill(os.getpid(), signal.SIGKILL)):
        operation(name, folder)


class Nursery:
    """A process that forks children to be killed: each starts in a moment, with all that is imported here."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.storage.rotating"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def start(self, *job: object) -> int:
        """Have a child do `rotate_forever FOLDER` or `killed_at STEP NAME FOLDER`; returns its process id."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([str(part) for part in job]) + "\n")
        self._process.stdin.flush()
        return self._line()

    def ended(self) -> int:
        """The child's exit status, negative for a signal, once it ended."""
        return self._line()

    def _line(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


def _child(job: list[str]) -> None:
    if job[0] == "rotate_forever":
        rotate_forever(Path(job[1]))
    killed_at(int(job[1]), job[2], Path(job[3]))


def _main() -> None:
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                _child(json.loads(line))
                os._exit(0)
            finally:
                traceback.print_exc()
                os._exit(1)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    _main()
