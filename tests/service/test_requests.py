"""Requests by the command line, through the Prefect server and its worker, and the stack itself."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from flows import daemons
from storage.png import decode_png
from tasks.method.seal import DataKey
from tests.protected import protect_images
from tests.service.conftest import GOOD
from tests.service.place import SERVICES, Place, altered, encoded, write

pytestmark = pytest.mark.timeout(900)


def test_up_again_changes_nothing_and_says_where_everything_is(place: Place) -> None:
    before = {name: daemons.find(place.settings.home_path(), name) for name in SERVICES}
    again = place.dmcp("up")
    assert again.code == 0
    assert {name: daemons.find(place.settings.home_path(), name) for name in before} == before
    for name in ("gateway", "prefect", "mlflow"):
        assert place.address(name).startswith("http://127.0.0.1:")
        assert place.address(name) in again.out
        assert httpx.get(place.address(name)).is_success
    answer = httpx.post(f"{place.address('prefect')}/api/deployments/filter", json={})
    names = {"evidence", "pipeline", "protect-shards", "restore", "train-evaluate"}
    assert {deployment["name"] for deployment in answer.json()} == names
    shown = place.dmcp("status").out
    assert shown.count("running") == len(SERVICES) + 1
    assert "stopped" not in shown


def test_nothing_listens_beyond_this_machine(place: Place) -> None:
    for name in SERVICES:
        process = psutil.Process(place.daemon(name).pid)
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
        **{f"other-{i}.png": p for i, p in enumerate(protect_images(place.clean[:3], place.key_of("other")))},
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
        registry.grant("eve", "sample", datetime.now(UTC) + timedelta(seconds=5))
    ended = time.monotonic() + 5
    said = {}
    for name, token in (("none", ""), ("wrong", "dmcp_wrong"), ("bob", bob), ("eve", eve)):
        if name == "eve":
            time.sleep(max(0.0, ended - time.monotonic()) + 0.01)
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
    daemons.stop(place.settings.home_path(), "gateway")  # which would have them served before the grant is revoked
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
    place.done("up")


def test_the_nightly_run_is_scheduled(place: Place) -> None:
    """Prefect's scheduler makes the runs of the cron deployment once a minute."""
    wanted = {
        "deployments": {"name": {"any_": ["pipeline"]}},
        "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
    }
    deadline = time.monotonic() + 400
    times: list[str] = []
    while not times and time.monotonic() < deadline:
        answer = httpx.post(f"{place.address('prefect')}/api/flow_runs/filter", json=wanted)
        times = [run["expected_start_time"] for run in answer.json()]
        time.sleep(1)
    assert times
    assert all("T02:00:00" in moment for moment in times)
