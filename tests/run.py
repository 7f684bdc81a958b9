"""`python -m tests.run`: the whole test suite, in a process more than there are cores; what `make test` calls.

One more, because tests that drive servers and other processes wait much of their time. Each computes with one thread:
more threads than cores wait for each other, and on processors with AMX they spin meanwhile.

The exit code is pytest's, with one exception: where nothing failed but tests of the folders DRIVING, which drive real
servers, processes and a browser, the files that hold those (few, or it is no accident) run once more, alone and with
everything started anew, and that run decides. Both are shown whole, and the last line says that there was a second one.
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
    accident = len(again) <= FEW and all(file.startswith(DRIVING) for file in again)
    if code != pytest.ExitCode.TESTS_FAILED or not accident:
        return code
    print(f"\nNothing else failed: once more, alone and started anew: {' '.join(again)}\n", flush=True)
    second = subprocess.run([sys.executable, "-m", "pytest", *again], check=False).returncode
    print(f"\nFailed at first, {'and again' if second else 'passed the second time'}: {' '.join(again)}", flush=True)
    return second


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
