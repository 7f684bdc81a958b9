"""Load on the gateway: users who look again and again, and users who have images restored, all at once.

    python -m benchmarks.load_gateway --seconds 300 --pollers 50 --restorers 10 --out docs/results/gateway-load.json

Everything is its own, and on loopback: a temporary HOME with the stack of `dmcp up` (gateway, object store, Prefect
with a worker), a published data set (CIFAR-10 from DMCP_MIRROR, else `sample`), users, grants. It is stopped and
removed at the end, whatever happened.

A poller asks once every `--interval` seconds, in turn for everything that a user's client looks at. A restorer uploads
a zip of protected images under new names with a foreign one among them, looks once an interval until it is done,
fetches the archive, and compares every image with the clean one, byte by byte. Restorations under way when the time is
over are waited for. Latencies are those that the client sees, which shares the machine with all the rest.
"""

import argparse
import asyncio
import io
import json
import math
import os
import random
import sys
import tempfile
import time
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.pictures import Pictures, make_pictures
from flows import daemons, stack
from storage.keys import open_vault
from storage.objects import open_store
from storage.png import encode_png
from storage.registry import open_registry
from storage.settings import settings
from tasks.machine import describe_machine
from tasks.method.seal import DataKey
from tasks.publish import publish_variant

DATASET = "pictures"
LIMITS = {"seconds": 1800, "pollers": 200, "restorers": 50, "images": 1000}
GRACE_SECONDS = 300
SHOWN_ERRORS = 20
READS = (
    "/me",
    "/datasets",
    f"/datasets/{DATASET}",
    f"/datasets/{DATASET}/versions",
    f"/datasets/{DATASET}/terms",
    "/access-requests",
    "/grants",
    "/restorations",
)


@dataclass
class Measured:
    """What happened. `seconds` are latencies by call, for example `GET /me`."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    errors: Counter[str] = field(default_factory=Counter)
    messages: list[str] = field(default_factory=list)
    restorations: list[float] = field(default_factory=list)
    images: int = 0
    wrong: int = 0

    def failed(self, call: str, why: str) -> None:
        """A call that did not go as it should."""
        self.errors[call] += 1
        if len(self.messages) < SHOWN_ERRORS:
            self.messages.append(f"{call}: {why}")


@dataclass(frozen=True)
class Service:
    """A running gateway, its data set, and the tokens of its users."""

    address: str
    pictures: Pictures
    pollers: list[str]
    restorers: list[str]


# --- the service -----------------------------------------------------------------------------------------------------


@contextmanager
def running_service(pollers: int, restorers: int, images: int) -> Iterator[Service]:
    """The stack in a temporary HOME, with data and users, for the length of the block."""
    mirror = os.environ.get("DMCP_MIRROR")
    kept = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(("DMCP_", "PREFECT_"))}
    with tempfile.TemporaryDirectory(prefix="dmcp-load-", ignore_cleanup_errors=True) as folder:
        # MLflow has no part in this: it counts as placed elsewhere, so it is not started.
        own = {"HOME": f"{folder}/home", "DATA": f"{folder}/data", "MLFLOW_URI": "http://127.0.0.1:9"}
        own["GATEWAY_PORT"] = "0"
        os.environ.update({f"DMCP_{name}": value for name, value in own.items()})
        settings.cache_clear()
        try:
            pictures = _pictures(Path(folder), Path(mirror) if mirror else None, images)
            stack.up(settings(), lambda text: print(f"{text} ...", file=sys.stderr))
            publish_variant(pictures.folder, open_store(settings(), "public"), DATASET)
            tokens = _users(pollers + restorers)
            daemon = daemons.find(settings().home_path(), "gateway")
            assert daemon is not None
            assert daemon.address.startswith("http://127.0.0.1:")
            yield Service(daemon.address, pictures, tokens[:pollers], tokens[pollers:])
        finally:
            stack.down(settings())
            for name in own:
                del os.environ[f"DMCP_{name}"]
            os.environ.update(kept)
            settings.cache_clear()


def _pictures(folder: Path, mirror: Path | None, images: int) -> Pictures:
    vault = open_vault(settings())
    key = DataKey(vault.secret(vault.create(DATASET).key_id), DATASET)
    return make_pictures(folder / "pictures", DATASET, key, mirror, images, shard=100)


def _users(count: int) -> list[str]:
    """Tokens of users who accepted the terms and hold a grant."""
    with open_registry(settings()) as registry:
        registry.add_user("olga", "owner")
        registry.register_dataset(DATASET, "olga", "Pictures", actor="olga")
        registry.set_terms(DATASET, "For research only.", actor="olga")
        tokens = []
        for number in range(count):
            name = f"user-{number}"
            tokens.append(registry.add_user(name))
            registry.accept_terms(registry.get_user(name).id, DATASET, 1, actor=name)
            registry.grant(name, DATASET, actor="olga")
    return tokens


# --- the load --------------------------------------------------------------------------------------------------------


class Load:
    """All users, in one event loop."""

    def __init__(self, service: Service, http: httpx.AsyncClient, interval: float) -> None:
        self.service = service
        self.http = http
        self.interval = interval
        self.measured = Measured()
        self.clean = {sample.key: sample.png for sample in service.pictures.clean}

    async def call(self, token: str, method: str, path: str, name: str = "", **more: Any) -> httpx.Response | None:
        """One call, timed; None when it failed, which is counted."""
        name = f"{method} {name or path}"
        headers = {"Authorization": f"Bearer {token}"} | more.pop("headers", {})
        start = time.perf_counter()
        try:
            answer = await self.http.request(method, path, headers=headers, **more)
        except httpx.HTTPError as error:
            self.measured.failed(name, f"{type(error).__name__}: {error}")
            return None
        self.measured.seconds[name].append(time.perf_counter() - start)
        if not answer.is_success:
            self.measured.failed(name, f"{answer.status_code} {answer.text[:200]}")
            return None
        return answer

    async def poll(self, token: str, number: int, until: float) -> None:
        """A user who looks around until the time is over."""
        await asyncio.sleep(self.interval * random.random())
        while (start := time.monotonic()) < until:
            await self.call(token, "GET", READS[number % len(READS)])
            number += 1
            await asyncio.sleep(max(0.0, start + self.interval - time.monotonic()))

    async def restore(self, token: str, images: int, until: float) -> None:
        """A user who has images restored, again and again until the time is over."""
        while time.monotonic() < until:
            start = time.monotonic()
            names = {f"{random.getrandbits(60):x}.png": sample.key for sample in self._some(images)}
            if not await self._restore_once(token, names):
                await asyncio.sleep(self.interval)
                continue
            self.measured.restorations.append(time.monotonic() - start)
            self.measured.images += len(names)

    def _some(self, images: int) -> list[Any]:
        return random.sample(self.service.pictures.protected, images)

    async def _restore_once(self, token: str, names: dict[str, str]) -> bool:
        body = await asyncio.to_thread(self._packed, names)
        kind = {"Content-Type": "application/zip"}
        made = await self.call(token, "POST", "/restorations/upload", content=body, headers=kind)
        if made is None:
            return False
        path, name = f"/restorations/{made.json()['id']}", "/restorations/{id}"
        while True:
            await asyncio.sleep(self.interval)
            answer = await self.call(token, "GET", path, name)
            state = answer.json() if answer else {"state": "unknown"}
            if state["state"] in ("failed", "cancelled"):
                self.measured.failed("restoration", f"{state['state']}: {state['message']}")
                return False
            if state["state"] == "done":
                break
        archive = await self.call(token, "GET", f"{path}/archive", f"{name}/archive")
        if archive is None:
            return False
        return await asyncio.to_thread(self._check, archive.content, names)

    def _packed(self, names: dict[str, str]) -> bytes:
        protected = {sample.key: sample.png for sample in self.service.pictures.protected}
        files = {name: protected[key] for name, key in names.items()} | {"foreign.png": FOREIGN}
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name in random.sample(sorted(files), len(files)):
                archive.writestr(name, files[name])
        return buffer.getvalue()

    def _check(self, content: bytes, names: dict[str, str]) -> bool:
        """Whether all that was asked for came back as it was, and nothing else."""
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            came = {name: archive.read(name) for name in archive.namelist() if name.endswith(".png")}
            refused = json.loads(archive.read("report.json"))["refused"]
        wrong = sum(came.get(name) != self.clean[key] for name, key in names.items()) + len(set(came) - set(names))
        if wrong or [one["name"] for one in refused] != ["foreign.png"]:
            self.measured.wrong += wrong
            self.measured.failed("restoration", f"{wrong} wrong images; refused: {refused[:3]}")
            return False
        return True


def _foreign() -> bytes:
    import numpy as np

    return encode_png(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))


FOREIGN = _foreign()
"""An image that nobody protected."""


async def load(service: Service, seconds: float, interval: float, images: int) -> tuple[Measured, float]:
    """Run all users for so long; what happened, and the seconds that it took with the last restorations."""
    most = len(service.pollers) + len(service.restorers)
    limits = httpx.Limits(max_connections=most, max_keepalive_connections=most)
    start = time.monotonic()
    async with httpx.AsyncClient(
        base_url=f"{service.address}/api/v1", timeout=60, limits=limits, trust_env=False
    ) as http:
        users = Load(service, http, interval)
        until = start + seconds
        async with asyncio.timeout(seconds + GRACE_SECONDS), asyncio.TaskGroup() as group:
            for number, token in enumerate(service.pollers):
                group.create_task(users.poll(token, number, until))
            for token in service.restorers:
                group.create_task(users.restore(token, images, until))
    return users.measured, time.monotonic() - start


# --- the report ------------------------------------------------------------------------------------------------------


def percentile(values: list[float], share: float) -> float:
    """The smallest value that so large a share of all values does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)] if ordered else math.nan


def row(values: list[float], errors: int) -> dict[str, float]:
    """Number, errors, and latencies in milliseconds."""
    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    return {"n": len(values), "errors": errors} | {
        name: round(1000 * percentile(values, share), 1) for name, share in shares.items()
    }


def summary(measured: Measured, wall: float, options: dict[str, Any], origin: str) -> dict[str, Any]:
    """Everything that is reported."""
    reads = [name for name in measured.seconds if name.startswith("GET ") and not name.endswith("/archive")]
    calls = {name: row(measured.seconds[name], measured.errors[name]) for name in sorted(measured.seconds)}
    every = [seconds for name in reads for seconds in measured.seconds[name]]
    return {
        "machine": describe_machine(),
        "options": options,
        "images_from": origin,
        "wall_seconds": round(wall, 1),
        "reads": row(every, sum(measured.errors[name] for name in reads)),
        "calls": calls,
        "errors": measured.errors.total(),
        "messages": measured.messages,
        "restorations": len(measured.restorations),
        "restoration_seconds_p50": round(percentile(measured.restorations, 0.5), 1) if measured.restorations else None,
        "images": measured.images,
        "wrong_images": measured.wrong,
        "images_per_second": round(measured.images / wall, 1),
    }


def markdown(report: dict[str, Any]) -> str:
    """The table."""
    lines = ["| call | n | errors | p50, ms | p95, ms | p99, ms | max, ms |", f"|---|{'---:|' * 6}"]
    for name, one in {**report["calls"], "all reads": report["reads"]}.items():
        cells = [f"{one['n']:,}", f"{one['errors']:,}", *(f"{one[key]:,.0f}" for key in ("p50", "p95", "p99", "max"))]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Measure and print; 1 when anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--pollers", type=int, default=50)
    parser.add_argument("--restorers", type=int, default=10)
    parser.add_argument("--images", type=int, default=100, help="images of one restoration")
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between two looks of one user")
    parser.add_argument("--out", type=Path, help="a JSON file")
    options = parser.parse_args()
    for name, most in LIMITS.items():
        if not 0 < getattr(options, name) <= most:
            parser.error(f"--{name} is at most {most}")
    with running_service(options.pollers, options.restorers, max(300, options.images)) as service:
        before = _cpu()
        measured, wall = asyncio.run(load(service, options.seconds, options.interval, options.images))
        shares = {name: round(spent - before[name], 1) for name, spent in _cpu().items()}
    told = {name: value for name, value in vars(options).items() if name != "out"}
    report = summary(measured, wall, told, service.pictures.origin) | {"processor_seconds": shares}
    print(markdown(report))
    machine = report["machine"]
    print(
        f"\n{options.pollers} users look once in {options.interval:g} s and {options.restorers} restore "
        f"{options.images} images of {report['images_from']} each, for {options.seconds} s ({wall:.0f} s with the last "
        f"restorations): {report['errors']} errors, {report['wrong_images']} wrong images, {report['restorations']} "
        f"restorations (median {report['restoration_seconds_p50']} s), {report['images_per_second']} images/s. "
        f"Processor seconds: {shares}.\n{machine['Processor']}; {machine['Cores']}; {machine['System']}."
    )
    for message in report["messages"]:
        print(f"  {message}", file=sys.stderr)
    if options.out:
        options.out.write_text(json.dumps(report, indent=2) + "\n")
    return 1 if report["errors"] or report["wrong_images"] else 0


def _cpu() -> dict[str, float]:
    """Processor seconds so far of the gateway, and of this client."""
    daemon = daemons.find(settings().home_path(), "gateway")
    spent = {"client": sum(psutil.Process().cpu_times()[:2])}
    if daemon is not None:
        spent["gateway"] = sum(psutil.Process(daemon.pid).cpu_times()[:2])
    return spent


if __name__ == "__main__":
    sys.exit(main())
