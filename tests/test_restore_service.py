"""The service as it runs: `dmcp up` in a fresh home, requests through the Prefect server and its worker, `dmcp down`.

One stack for all tests of this module. Everything is real: processes, registry, vault, object store, command line.
"""

import io
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from PIL import Image

from flows import daemons
from storage.keys import open_vault
from storage.png import decode_png
from storage.registry import Registry, open_registry
from storage.settings import Settings
from tasks.method.seal import DataKey
from tasks.variants import load_arrays
from tests.protected import protect_images

PROJECT = Path(__file__).resolve().parent.parent
GOOD = 200
pytestmark = pytest.mark.timeout(1200)


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


@dataclass
class Place:
    """A home with a running stack, and a data set in it: `clean` and the PNGs that protect it."""

    folder: Path
    settings: Settings
    clean: NDArray[np.uint8]
    protected: list[bytes]
    ann: str = ""

    def dmcp(self, *arguments: str, token: str = "") -> Done:
        """Run the real command, in a process of its own."""
        environment = os.environ | {
            "DMCP_HOME": str(self.settings.home),
            "DMCP_DATA": str(self.folder / "data"),
            "DMCP_TOKEN": token,
        }
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", *arguments],
            env=environment,
            cwd=PROJECT,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert "Traceback" not in done.stdout + done.stderr, done.stderr
        return Done(done.returncode, done.stdout, done.stderr)

    def request(self, folder: Path, token: str) -> str:
        """Hand in a folder and return the request's id."""
        done = self.dmcp("request", str(folder), "--quiet", token=token)
        assert done.code == 0, done.err
        return done.out.strip()

    def registry(self) -> Registry:
        return open_registry(self.settings)

    def address(self, name: str) -> str:
        daemon = daemons.find(self.settings.home_path(), name)
        assert daemon is not None
        return daemon.address

    def restore_runs(self) -> Counter[str]:
        """Flow runs of the deployment `restore`, by state."""
        answer = httpx.post(
            f"{self.address('prefect')}/api/flow_runs/filter", json={"flows": {"name": {"any_": ["restore"]}}}
        )
        return Counter(run["state_type"] for run in answer.json() if run["deployment_id"])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("service")
    settings = Settings(home=folder / "home", data=folder / "data")
    place = Place(folder, settings, np.empty(0, np.uint8), [])
    try:
        data = str(folder / "data" / "sample")
        built = place.dmcp("data", "get", "sample", data, "--set", f"train_limit={GOOD}", "--set", "test_limit=20")
        assert built.code == 0, built.err
        assert place.dmcp("key", "create", "sample").code == 0
        place.ann = place.dmcp("access", "add-user", "ann", "--quiet").out.strip()
        assert place.dmcp("access", "grant", "ann", "sample", "--days", "1").code == 0
        started = place.dmcp("up")
        assert started.code == 0, started.err
        place.clean = load_arrays(folder / "data" / "sample" / "clean").images
        place.protected = protect_images(place.clean, key_of(place, "sample"))
        yield place
    finally:
        place.dmcp("down")


def key_of(place: Place, dataset: str) -> DataKey:
    vault = open_vault(place.settings)
    return DataKey(vault.secret(vault.current(dataset).key_id), dataset)


def altered(png: bytes) -> bytes:
    """The same image with one upper bit flipped."""
    image = decode_png(png, "x").copy()
    image[9, 9, 1] ^= 0x40
    return encoded(Image.fromarray(image))


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def test_up_again_changes_nothing_and_says_where_everything_is(place: Place) -> None:
    before = {name: daemons.find(place.settings.home_path(), name) for name in ("prefect", "worker", "mlflow")}
    again = place.dmcp("up")
    assert again.code == 0
    assert {name: daemons.find(place.settings.home_path(), name) for name in before} == before
    for name in ("prefect", "mlflow"):
        assert place.address(name).startswith("http://127.0.0.1:")
        assert place.address(name) in again.out
        assert httpx.get(place.address(name)).is_success
    answer = httpx.post(f"{place.address('prefect')}/api/deployments/filter", json={})
    assert {deployment["name"] for deployment in answer.json()} == {"pipeline", "restore", "train-evaluate"}
    shown = place.dmcp("status").out
    assert shown.count("running") == 4
    assert "stopped" not in shown


def test_nothing_listens_beyond_this_machine(place: Place) -> None:
    for name in ("prefect", "worker", "mlflow"):
        daemon = daemons.find(place.settings.home_path(), name)
        assert daemon is not None
        process = psutil.Process(daemon.pid)
        for one in [process, *process.children(recursive=True)]:
            listening = [c.laddr.ip for c in one.net_connections() if c.status == psutil.CONN_LISTEN]
            assert set(listening) <= {"127.0.0.1"}, (name, listening)


def test_a_mixed_request_goes_through_the_worker(place: Place) -> None:
    """200 renamed and shuffled PNGs among foreign and altered ones: the good come back, the bad with their reasons."""
    random = np.random.default_rng(1)
    source, out = place.folder / "mixed", place.folder / "mixed-out"
    where: dict[str, int] = {}
    for i in random.permutation(GOOD):
        name = f"{'abc'[i % 3]}/holiday {random.integers(1 << 60):x}.png"
        where[name] = int(i)
        write(source / name, place.protected[i])
    unknown = DataKey(bytes(range(32)), "sample")
    place.dmcp("key", "create", "other")
    bad = {
        **{f"altered-{i}.png": altered(place.protected[i]) for i in range(5)},
        **{f"unknown-{i}.png": p for i, p in enumerate(protect_images(place.clean[:4], unknown))},
        **{f"other-{i}.png": p for i, p in enumerate(protect_images(place.clean[:3], key_of(place, "other")))},
        "plain.png": encoded(Image.fromarray(place.clean[0])),
        "alpha.png": encoded(Image.fromarray(place.clean[0]).convert("RGBA")),
        "photo.png": encoded(Image.fromarray(place.clean[0]), "JPEG"),
        "cut.png": place.protected[0][:-200],
        "notes.txt": b"not an image",
    }
    for name, content in bad.items():
        write(source / name, content)
    runs = place.restore_runs().total()
    request_id = place.request(source, place.ann)
    done = place.dmcp("restore", request_id, str(out))
    assert done.code == 0, done.err
    assert place.restore_runs().total() == runs + 1  # not in the command's own process
    assert_restored(place, out, where)
    reasons = refusals(out)
    assert set(reasons) == set(bad)
    expected = {"altered": "AlteredImage", "unknown": "UnknownKey", "other": "NoGrant", "plain": "NotProtected"}
    for name, (error, reason) in reasons.items():
        wanted = expected.get(name.split("-")[0].split(".")[0])
        assert wanted is None or error == wanted, (name, error, reason)
        assert reason
        assert error in done.out
    assert reasons["alpha.png"][0] == "UnsupportedImage"
    assert "JPEG" in reasons["photo.png"][1]
    with place.registry() as registry:
        request = registry.get_request(request_id)
    assert (request.state, request.restored, request.refused) == ("done", GOOD, len(bad))

    again = place.dmcp("restore", request_id, str(place.folder / "mixed-again"))  # served already: only fetched
    assert again.code == 0
    assert place.restore_runs().total() == runs + 1
    occupied = place.dmcp("restore", request_id, str(out))
    assert occupied.code == 2
    assert "not empty" in occupied.err


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def assert_restored(place: Place, out: Path, where: dict[str, int]) -> None:
    """Exactly these images came back, under these names, within the bound of their bit planes."""
    found = {path.relative_to(out).as_posix(): path for path in out.rglob("*.png")}
    assert set(found) == set(where)
    for name, i in where.items():
        error = np.abs(decode_png(found[name].read_bytes(), name).astype(int) - place.clean[i].astype(int))
        assert error.max() <= 4


def refusals(out: Path) -> dict[str, tuple[str, str]]:
    """Name to (class of error, reason), from report.json."""
    report = json.loads((out / "report.json").read_text())
    return {entry["name"]: (entry["error"], entry["reason"]) for entry in report["refused"]}


def test_who_may_not_hands_in_nothing_and_is_told_why(place: Place) -> None:
    """No token, a wrong one, no grant, an expired one: the same code, other messages."""
    source = place.folder / "one"
    write(source / "1.png", place.protected[0])
    bob = place.dmcp("access", "add-user", "bob", "--quiet").out.strip()
    eve = place.dmcp("access", "add-user", "eve", "--quiet").out.strip()
    with place.registry() as registry:
        registry.grant("eve", "sample", datetime.now(UTC) + timedelta(seconds=0.5))
    said = {}
    for name, token in (("none", ""), ("wrong", "dmcp_wrong"), ("bob", bob), ("eve", eve)):
        done = place.dmcp("request", str(source), token=token)
        assert done.code == 6, (name, done.err)
        said[name] = next(line for line in done.err.splitlines() if line.startswith("Error: "))
    assert len(set(said.values())) == len(said), said
    assert "expired" in said["eve"]


def test_the_flow_itself_refuses_with_codes_of_its_own(place: Place) -> None:
    """A grant revoked after the request, an unknown key, an altered image: three requests at once, one worker."""
    carl = place.dmcp("access", "add-user", "carl", "--quiet").out.strip()
    assert place.dmcp("access", "grant", "carl", "sample").code == 0
    unknown = protect_images(place.clean[:2], DataKey(bytes(range(1, 33)), "sample"))
    for name, png in (
        ("revoked", place.protected[0]),
        ("unknown", unknown[0]),
        ("altered", altered(place.protected[1])),
    ):
        write(place.folder / name / "1.png", png)
    tokens = {"revoked": carl, "unknown": place.ann, "altered": place.ann}
    ids = {name: place.request(place.folder / name, token) for name, token in tokens.items()}
    assert place.dmcp("access", "revoke", "carl", "sample").code == 0
    with ThreadPoolExecutor() as pool:
        restored = pool.map(lambda name: place.dmcp("restore", ids[name], str(place.folder / f"{name}-out")), ids)
        done = dict(zip(ids, restored, strict=True))
    assert {name: one.code for name, one in done.items()} == {"revoked": 6, "unknown": 5, "altered": 7}
    assert "was revoked" in done["revoked"].err
    assert "not in the vault" in done["unknown"].err
    assert "AlteredImage" in done["altered"].out
    assert not (place.folder / "revoked-out").exists()
    assert refusals(place.folder / "altered-out").keys() == {"1.png"}
    assert place.dmcp("restore", "0" * 32, str(place.folder / "missing-out")).code == 8

    assert place.dmcp("access", "grant", "carl", "sample").code == 0
    after = place.dmcp("restore", ids["revoked"], str(place.folder / "granted-out"))  # the same request, tried again
    assert after.code == 0, after.err
    assert_restored(place, place.folder / "granted-out", {"1.png": 0})


def test_the_nightly_run_is_scheduled(place: Place) -> None:
    """Prefect's scheduler makes the runs of the cron deployment once a minute."""
    wanted = {
        "deployments": {"name": {"any_": ["pipeline"]}},
        "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
    }
    deadline = time.monotonic() + 180
    times: list[str] = []
    while not times and time.monotonic() < deadline:
        answer = httpx.post(f"{place.address('prefect')}/api/flow_runs/filter", json=wanted)
        times = [run["expected_start_time"] for run in answer.json()]
        time.sleep(1)
    assert times
    assert all("T02:00:00" in moment for moment in times)


def test_down_stops_everything_and_up_would_start_it_at_the_same_address(place: Place) -> None:
    """Last: the stack is gone afterwards."""
    home = place.settings.home_path()
    living = [daemon for name in ("prefect", "worker", "mlflow") if (daemon := daemons.find(home, name))]
    families = [p for d in living for p in (psutil.Process(d.pid), *psutil.Process(d.pid).children(recursive=True))]
    done = place.dmcp("down")
    assert done.code == 0
    assert all(name in done.out for name in ("object store", "Prefect", "Prefect worker", "MLflow"))
    psutil.wait_procs(families, timeout=5)
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in families)
    assert place.dmcp("down").out.startswith("Nothing was running")
    assert place.dmcp("status").out.count("stopped") == 4
    port = int(next(d for d in living if d.name == "prefect").address.rpartition(":")[2])
    assert daemons.port_for(home, "prefect") == port
