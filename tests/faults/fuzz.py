"""Fuzzing of everything that reads bytes from outside.

    python -m tests.faults fuzz --times 1000000 --seed 0 --out fuzz.json
    python -m tests.faults fuzz --replay protected-v2:1234 --out input.bin      # one input again, and its traceback

does what `test_fuzz.py` does a few times. Input N of a target depends on seed, target and N only. It may raise an error
of this project's tree, or give what a valid input gives (`fuzz_targets.py` says what that is). Everything else is a
failure: another exception, a wrong result, more than `LONGEST` seconds, memory without bounds, or the end of the
process. Inputs run in processes that are forked block by block, so one that ends costs its own input only.
"""

import multiprocessing
import os
import resource
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from random import Random
from typing import Any

from storage.errors import DmcpError
from tests.faults.fuzz_targets import Target, targets

LONGEST = 20
"""Seconds after which an input hangs; none takes more than a tenth of one."""
MOST_MEMORY = 2 << 30
"""Bytes that a process may take beside what it has when it begins."""
BLOCK = 500
MOST_FAILURES = 20
"""So many failures of a target are kept with their inputs; the others are counted."""


class Hang(BaseException):
    """No `Exception`: nothing that is fuzzed may catch it."""


@dataclass
class Account:
    """What became of one target's inputs."""

    inputs: int = 0
    seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    failed: int = 0
    failures: list[dict[str, Any]] = field(default_factory=list)

    def add(self, other: "Account") -> None:
        """Add what became of more of them."""
        self.inputs += other.inputs
        self.seconds = round(self.seconds + other.seconds, 3)
        self.outcomes += other.outcomes
        self.errors += other.errors
        self.failed += other.failed
        self.failures = (self.failures + other.failures)[:MOST_FAILURES]

    def fail(self, name: str, number: int, what: str) -> None:
        """One more failure."""
        self.failed += 1
        if len(self.failures) < MOST_FAILURES:
            self.failures.append({"replay": f"{name}:{number}", "what": what[:500]})


@contextmanager
def workshop() -> Iterator[dict[str, Target]]:
    """All targets, with their files in memory where the machine has a file system there."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield targets(Path(folder))


def input_of(target: Target, name: str, seed: int, number: int) -> bytes:
    """Input `number` of a target."""
    return target.input(Random(f"{seed}:{name}:{number}"))


def run_block(
    target: Target, name: str, seed: int, numbers: range, begun: Callable[[int], None] = lambda number: None
) -> Account:
    """Fuzz a target with these inputs, in this process; `begun` is told each before it is read."""
    account, started = Account(), time.monotonic()
    for number in numbers:
        begun(number)
        account.inputs += 1
        try:
            account.outcomes[_within(LONGEST, lambda n=number: target.check(input_of(target, name, seed, n)))] += 1
        except DmcpError as error:
            account.errors[type(error).__name__] += 1
        except (Exception, Hang) as error:
            account.fail(name, number, f"{type(error).__name__}: {error}")
    account.seconds = round(time.monotonic() - started, 3)
    return account


def _within(seconds: float, act: Callable[[], str]) -> str:
    def ring(*_: object) -> None:
        raise Hang(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return act()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# --- many, in processes ----------------------------------------------------------------------------------------------


def run_fuzz(times: int, seed: int, processes: int = 2, seconds: float | None = None) -> dict[str, Any]:
    """Give `times` inputs to all targets together, as many to each; after `seconds` no more blocks begin."""
    with workshop() as all_targets:
        share = -(-times // len(all_targets))
        jobs = [
            (name, range(first, min(first + BLOCK, share))) for first in range(0, share, BLOCK) for name in all_targets
        ]
        accounts = {name: Account() for name in all_targets}
        started = time.monotonic()
        running: list[_Running] = []
        while jobs or running:
            if seconds is not None and time.monotonic() - started > seconds:
                jobs.clear()
            while jobs and len(running) < processes:
                running.append(_Running(all_targets, seed, *jobs.pop(0)))
            if not running:
                break
            ready = wait([r.answers for r in running], timeout=2 * LONGEST)
            for done in [r for r in running if r.answers in ready or r.stuck(bool(ready))]:
                running.remove(done)
                account, again = done.end()
                accounts[done.name].add(account)
                for failure in account.failures:
                    print(f"fuzz: {failure['replay']}: {failure['what']}", flush=True)
                jobs[:0] = [(done.name, numbers) for numbers in again if numbers]
                total = sum(a.inputs for a in accounts.values())
                print(f"fuzz: {total:,} inputs, {sum(a.failed for a in accounts.values())} failures", flush=True)
    return {
        "inputs": sum(account.inputs for account in accounts.values()),
        "wall_seconds": round(time.monotonic() - started, 1),
        "processes": processes,
        "failed": sum(account.failed for account in accounts.values()),
        "targets": {name: vars(account) for name, account in accounts.items()},
    }


class _Running:
    """A process that works on a block."""

    def __init__(self, all_targets: dict[str, Target], seed: int, name: str, numbers: range) -> None:
        context = multiprocessing.get_context("fork")
        self.name, self.numbers = name, numbers
        self.current = context.RawValue("q", numbers.start)
        self.answers, sending = context.Pipe(duplex=False)
        arguments = (all_targets[name], name, seed, numbers, self.current, sending)
        self.process = context.Process(target=_work, args=arguments)
        self.process.start()
        sending.close()
        self.seen = -1

    def stuck(self, others: bool) -> bool:
        """Whether it is at the input at which it was before, so long that not even its own alarm was heard."""
        if others:  # an answer came before the time was over
            return False
        before, self.seen = self.seen, int(self.current.value)
        if before == self.seen:
            self.process.kill()
        return before == self.seen

    def end(self) -> tuple[Account, list[range]]:
        """What became of the block, and what is to be done (again) when the process ended on the way."""
        try:
            account: Account = self.answers.recv()
            again: list[range] = []
        except EOFError:
            self.process.join()
            at = int(self.current.value)
            account, again = Account(inputs=1), [range(self.numbers.start, at), range(at + 1, self.numbers.stop)]
            account.fail(self.name, at, f"the process ended with {self.process.exitcode}")
        self.process.join()
        self.answers.close()
        return account, again


def _work(target: Target, name: str, seed: int, numbers: range, current: Any, answers: Connection) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    if pages:
        most = pages * os.sysconf("SC_PAGE_SIZE") + MOST_MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))

    def begun(number: int) -> None:
        current.value = number

    answers.send(run_block(target, name, seed, numbers, begun))
    os._exit(0)  # nothing that the parent registered is to run in each child


def replay(which: str, seed: int, out: Path | None) -> None:
    """Make one input again, write it to a file if one is named, and read it: what it raises leaves as it is."""
    name, _, number = which.partition(":")
    with workshop() as all_targets:
        data = input_of(all_targets[name], name, seed, int(number))
        if out:
            out.write_bytes(data)
        print(f"{len(data)} bytes: {data[:200]!r}")
        print(all_targets[name].check(data))
