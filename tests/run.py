"""`python -m tests.run`: the whole test suite, in a process more than there are cores; what `make test` calls.

One more, because tests that drive servers and other processes wait much of their time. Each computes with one thread:
more threads than cores wait for each other, and on processors with AMX they spin meanwhile.

The exit code is pytest's, with one exception: where nothing failed but tests of the folders DRIVING, which drive real
servers, processes and a browser, the files that hold those (few, or it is no accident) run once more, each alone and
with everything started anew, with the same options, and those runs decide. All are shown whole, and the last line names
the files that failed first and passed alone.
"""

import os
import subprocess
import sys

import pytest

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
PROCESSES = str(min(8, CORES + 1))
DRIVING = ("tests/service", "tests/pages", "tests/flows", "tests/storage", "tests/faults")
FEW = 3


class Failures:
    """Which files had a test that failed, or could not be collected."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.named: list[str] = []  # files and folders among the arguments

    def pytest_configure(self, config: pytest.Config) -> None:
        self.named = list(config.option.file_or_dir or ())

    def note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.failed:
            self.files.add(report.nodeid.partition("::")[0])

    pytest_runtest_logreport = note
    pytest_collectreport = note


def main(arguments: list[str]) -> int:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before any process imports torch
    failures = Failures()
    code = int(pytest.main(["--numprocesses", PROCESSES, "--maxprocesses", PROCESSES, *arguments], plugins=[failures]))
    again = sorted(failures.files)
    accident = 0 < len(again) <= FEW and all(file.startswith(DRIVING) for file in again)
    if code != pytest.ExitCode.TESTS_FAILED or not accident:
        return code
    options = without(arguments, failures.named)
    print(f"\nNothing else failed: once more, each alone and started anew: {' '.join(again)}\n", flush=True)
    codes = {
        file: subprocess.run([sys.executable, "-m", "pytest", *options, file], check=False).returncode for file in again
    }
    for what, files in (
        ("failed again alone", [file for file in again if codes[file]]),
        ("failed first and passed alone", [file for file in again if not codes[file]]),
    ):
        if files:
            print(f"\n{len(files)} of {len(again)} files {what}: {' '.join(files)}", flush=True)
    return max(codes.values(), key=abs)


def without(arguments: list[str], named: list[str]) -> list[str]:
    """The arguments but for the files and folders that pytest found among them: options with their values."""
    rest = arguments[::-1]
    for name in named:  # the last of a kind: a value of an option, such as -k, may read the same
        if name in rest:
            rest.remove(name)
    return rest[::-1]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
