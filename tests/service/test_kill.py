"""SIGKILL to the gateway, to the worker and to every restoration, in the middle; then `dmcp up`. Nothing is lost, and
nothing happens twice.
"""

import io
import signal
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest
from sqlalchemy import select

from flows.dispatcher import Dispatcher
from storage.registry import Request
from storage.registry_models import Charge
from storage.shards import read_shard
from tests.service.conftest import PICTURES, Shop
from tests.service.place import Caller, Place, wait_until, zipped

pytestmark = pytest.mark.timeout(1500)
UPLOADED, SUBSET = 120, 60
HALF_KEY, WHOLE_KEY = "half-sent-upload", "whole-upload"


def killed(pid: int) -> list[psutil.Process]:
    """A process and all below it, ended by SIGKILL; they can do nothing about it."""
    process = psutil.Process(pid)
    family = [process, *process.children(recursive=True)]
    for one in family:
        with suppress(psutil.NoSuchProcess):
            one.send_signal(signal.SIGKILL)
    psutil.wait_procs(family, timeout=60)
    return family


@contextmanager
def impatient_dispatcher(place: Place) -> Iterator[None]:
    """One more dispatcher, which takes workers for dead much sooner than the gateway's own, beside which it works."""
    dispatcher, stop = (
        Dispatcher(place.settings, stale_seconds=15, start_seconds=45, pause_seconds=2),
        threading.Event(),
    )
    thread = threading.Thread(target=dispatcher.run, args=(stop,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        dispatcher.wake()
        thread.join(120)


def break_off_an_upload(place: Place, caller: Caller, content: bytes) -> None:
    """Send half of an upload, and kill the gateway that takes it."""

    def half() -> Iterator[bytes]:
        yield content[: len(content) // 2]
        desks = place.settings.home_path("work", "gateway")
        wait_until(lambda: list(desks.glob("gateway-*/*/upload")), 120, "the upload begins")
        killed(place.daemon("gateway").pid)

    headers = {"Content-Type": "application/zip", "Idempotency-Key": HALF_KEY}
    with pytest.raises(httpx.TransportError):
        caller.http.post("/restorations/upload", content=half(), headers=headers)


def sent_again(caller: Caller, content: bytes) -> str:
    """Send the upload that was broken off again, as clients do until the dead gateway's claim to it has run out."""
    headers = {"Content-Type": "application/zip", "Idempotency-Key": HALF_KEY}

    def accepted() -> str:
        answer = caller.http.post(
            "/restorations/upload", params={"filename": "b.zip"}, content=content, headers=headers
        )
        assert answer.is_success or answer.status_code == 409, answer.text
        return answer.json()["id"] if answer.is_success else ""

    return str(wait_until(accepted, 120, "the upload is taken"))


def states(place: Place, ids: list[str]) -> list[Request]:
    with place.registry() as registry:
        return [registry.get_request(request) for request in ids]


def test_every_request_is_completed_exactly_once(place: Place, shop: Shop) -> None:
    pictures = shop.pictures
    kim = place.caller(shop.operator.call("POST", "/operator/users", json={"name": "kim"})["token"])
    grant = shop.owner.call("POST", "/owner/grants", json={"user": "kim", "dataset": "pictures", "quota": 2000})
    terms = kim.call("GET", "/datasets/pictures").get("terms")
    if terms:
        kim.call("POST", f"/datasets/pictures/terms/{terms}/accept")
    files = {f"{i:03d}.png": pictures.protected[i].png for i in range(UPLOADED)}
    keys = [sample.key for sample in pictures.protected[:SUBSET]]
    published = {"dataset": "pictures", "version": shop.version}
    whole = kim.call("POST", "/restorations", json=published)["id"]
    upload = kim.upload(zipped(files), key=WHOLE_KEY, filename="a.zip")["id"]
    subset = kim.call("POST", "/restorations", json=published | {"subset": keys})["id"]

    # The gateway goes in the middle of an upload, the worker and what runs below it in the middle of restorations.
    wait_until(lambda: states(place, [whole])[0].restored, 400, "the first shards are restored")
    workers = killed(place.daemon("worker").pid)
    assert len(workers) > 1, "no restoration was running"
    under_way = states(place, [whole, upload, subset])
    assert under_way[0].state == "running"
    assert under_way[0].restored < PICTURES
    break_off_an_upload(place, kim, zipped(files))
    with pytest.raises(httpx.TransportError):
        kim.call("GET", "/me")

    place.done("up")
    kim = place.caller(kim.http.headers["Authorization"].removeprefix("Bearer "))
    again = sent_again(kim, zipped(files))
    assert kim.upload(zipped(files), key=HALF_KEY, filename="b.zip")["id"] == again
    assert kim.upload(zipped(files), key=WHOLE_KEY, filename="a.zip")["id"] == upload
    expected = {whole: PICTURES, upload: UPLOADED, subset: SUBSET, again: UPLOADED}
    with impatient_dispatcher(place):
        wait_until(lambda: all_over(place, list(expected)), 600, "all requests are done")
    assert {request["id"] for request in kim.pages("/restorations")} == set(expected)
    ended = {request.id: (request.state, request.restored, request.refused) for request in states(place, [*expected])}
    assert ended == {request: ("done", images, 0) for request, images in expected.items()}
    assert not list(place.settings.home_path("work", "gateway").glob("gateway-*/*"))

    assert_once(place, kim, expected, grant["id"])
    assert states(place, [whole])[0].attempt >= 2  # more where a machine is so busy that a living one seems dead
    clean = {sample.key: sample.png for sample in pictures.clean}
    for request in (upload, again):
        named = {name: png for name, png in kim.archive(request).items() if name.endswith(".png")}
        assert named == {f"{i:03d}.png": pictures.clean[i].png for i in range(UPLOADED)}
    assert restored_shards(kim, whole, place.folder / "whole") == clean
    assert restored_shards(kim, subset, place.folder / "subset") == {key: clean[key] for key in keys}


def all_over(place: Place, ids: list[str]) -> bool:
    return all(request.state not in ("pending", "running") for request in states(place, ids))


def assert_once(place: Place, user: Caller, expected: dict[str, int], grant: int) -> None:
    """Charged once, ended once, and that on record in a log that is whole."""
    with place.registry() as registry:
        charges = registry.all(select(Charge).where(Charge.request_id.in_(expected)))
    charged: Counter[str] = Counter()
    for charge in charges:
        charged[charge.request_id] += charge.images
        assert charge.grant_id == grant
    assert charged == expected
    assert user.call("GET", f"/grants/{grant}")["used"] == sum(expected.values())
    with place.audit() as log:
        for request in expected:
            ends = [one.action for one in log.entries(action="request", request_id=request)]
            assert (ends.count("request.create"), ends.count("request.done")) == (1, 1), ends
            assert ends.count("request.failed") == 0
        verdict = log.verify(log.anchors(place.private()))
    assert verdict.ok, verdict


def restored_shards(user: Caller, restoration: str, folder: Path) -> dict[str, bytes]:
    """Images by key, from an archive of shards."""
    answer = user.http.get(f"/restorations/{restoration}/archive")
    assert answer.status_code == 200, answer.text
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        archive.extractall(folder)
    samples = [sample for shard in sorted(folder.glob("*.tar")) for sample in read_shard(shard)]
    images = {sample.key: sample.png for sample in samples}
    assert len(images) == len(samples), "an image came twice"
    return images
