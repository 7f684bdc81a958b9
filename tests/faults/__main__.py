"""The long runs: `python -m tests.faults s3|kills|fuzz --times N --out FILE`; see the modules of these names."""

import argparse
import json
import random
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from storage.server import running_server
from tasks.machine import describe_machine
from tests.faults.fuzz import replay, run_fuzz
from tests.faults.s3_faults import RATE, Account, publish_and_pull
from tests.services import make_variant

KINDS = ["protect", "publish", "restore"]


def run_s3(times: int, seed: int, folder: Path) -> dict[str, Any]:
    """Publish and pull through a failing object store; every second time by a client that tries a request once."""
    account, scratch = Account(), folder / "scratch"
    scratch.mkdir()
    with running_server(folder / "home") as server:
        for turn in range(times):
            variant = folder / f"variant-{turn}"
            make_variant(variant, seed=10 * turn)
            publish_and_pull(server, variant, scratch, seed + turn, account, attempts=1 + 2 * (turn % 2))
            print(f"s3: {turn + 1} of {times}, {account.tries} tries, {account.requests} requests", flush=True)
    return {"rate_by_attempts": RATE, **vars(account)}  # asdict would count a Counter's items


def run_kills(times: int, seed: int, folder: Path, jobs: list[str]) -> dict[str, Any]:
    """Kill each kind of job so many times."""
    from tests.faults.arena import arena  # Prefect has threads, and the fuzzer forks
    from tests.faults.kills import JOBS, Outcome, kill_once, launcher, undisturbed

    draw, outcomes = random.Random(seed), {name: Outcome() for name in jobs}
    with arena(folder), launcher() as context:
        for name, outcome in outcomes.items():
            outcome.undisturbed_seconds = round(undisturbed(context, JOBS[name]), 2)
            for turn in range(times):
                kill_once(context, JOBS[name], draw.uniform(0, outcome.undisturbed_seconds), outcome)
                print(f"{name}: {turn + 1} of {times}", flush=True)
    return {name: asdict(outcome) for name, outcome in outcomes.items()}


def main() -> None:
    """Run one of them, and write down what happened."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("what", choices=["s3", "kills", "fuzz"])
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--jobs", nargs="+", choices=KINDS, default=KINDS, help="kills: of these")
    parser.add_argument("--processes", type=int, default=2, help="fuzz: so many at once")
    parser.add_argument("--seconds", type=float, help="fuzz: begin nothing more after so long")
    parser.add_argument("--replay", metavar="TARGET:N", help="fuzz: one input again; --out is where it is written")
    options = parser.parse_args()
    if options.replay:
        return replay(options.replay, options.seed, options.out)
    with tempfile.TemporaryDirectory() as folder:
        if options.what == "fuzz":
            found = run_fuzz(options.times, options.seed, options.processes, options.seconds)
        elif options.what == "kills":
            found = run_kills(options.times, options.seed, Path(folder), options.jobs)
        else:
            found = run_s3(options.times, options.seed, Path(folder))
    found = {"times": options.times, "seed": options.seed, "found": found, "machine": describe_machine()}
    text = json.dumps(found, indent=1) + "\n"
    if options.out:
        options.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
