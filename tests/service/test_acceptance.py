"""The service as a new user meets it, from the owner's publication to the audit log, by HTTP through real processes."""

import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from storage.png import decode_png
from tasks.method.seal import DataKey
from tests.protected import protect_images
from tests.service.conftest import Shop
from tests.service.place import Caller, Place, altered, encoded, sha256, wait_until, zipped

GOOD, FOREIGN, ALTERED = 474, 20, 5
TERMS = "For research only.\nDo not pass images on."
REPORTS = {"report.json", "refused.csv"}
pytestmark = pytest.mark.timeout(1500)


def a_mixed_upload(place: Place, shop: Shop) -> tuple[dict[str, bytes], dict[str, int], set[str]]:
    """500 files, shuffled: their contents, which image each good one is, and which must be refused."""
    pictures, random = shop.pictures, np.random.default_rng(4)
    good = {f"{'abc'[i % 3]}/holiday {random.integers(1 << 60):x}.png": i for i in range(GOOD)}
    clean = np.stack([decode_png(sample.png, sample.key) for sample in pictures.clean[:8]])
    unknown = protect_images(clean[:7], DataKey(bytes(range(32)), "pictures"))
    others = protect_images(clean[:5], place.key_of("sample"))  # a data set that this user was never granted
    foreign = [*(encoded(Image.fromarray(image)) for image in clean), *unknown, *others]
    assert len(foreign) == FOREIGN
    bad = {f"a/picture {i}.png": png for i, png in enumerate(foreign)}
    bad |= {f"b/scan {i}.png": altered(pictures.protected[GOOD + i].png) for i in range(ALTERED)}
    bad["c/cut.png"] = pictures.protected[GOOD + ALTERED].png[:-200]
    files = {name: pictures.protected[i].png for name, i in good.items()} | bad
    shuffled = [list(files)[i] for i in random.permutation(len(files))]
    return {name: files[name] for name in shuffled}, good, set(bad)


def test_from_publication_to_revocation_and_all_of_it_on_record(place: Place, shop: Shop) -> None:
    owner, operator = shop.owner, shop.operator
    owner.call("PUT", "/owner/datasets/pictures/terms", json={"text": TERMS})
    bea = place.caller(operator.call("POST", "/operator/users", json={"name": "bea"})["token"])

    # She finds the data set, may not have it restored yet, and asks.
    (found,) = [one for one in bea.pages("/datasets") if one["name"] == "pictures"]
    assert (found["granted"], found["terms"], found["accepted"]) == (False, 1, None)
    published = {"dataset": "pictures", "version": "latest"}
    bea.refused(403, "NoGrant", "POST", "/restorations", json=published)
    ask = {"dataset": "pictures", "reason": "Comparing optimisers.", "images": 5000, "days": 30}
    asked = bea.call("POST", "/access-requests", json=ask)
    (waiting,) = owner.pages("/owner/access-requests", state="open")
    assert (waiting["id"], waiting["user"], waiting["reason"]) == (asked["id"], "bea", ask["reason"])
    grant = owner.call("POST", f"/owner/access-requests/{asked['id']}/approve", json={"note": "Welcome."})
    assert bea.call("GET", f"/access-requests/{asked['id']}")["state"] == "approved"
    assert (grant["quota"], grant["used"], grant["in_force"]) == (5000, 0, True)
    bea.refused(403, "TermsNotAccepted", "POST", "/restorations", json=published)
    assert bea.call("GET", "/datasets/pictures/terms")["text"] == TERMS
    bea.call("POST", "/datasets/pictures/terms/1/accept")

    # She uploads, follows it, and gets her images and the reasons for the rest.
    files, good, bad = a_mixed_upload(place, shop)
    assert len(files) == 500
    restoration = bea.upload(zipped(files), filename="holidays.zip")
    told = bea.follow(restoration["id"])
    assert (told[-1]["state"], told[-1]["restored"], told[-1]["refused"]) == ("done", GOOD, len(bad)), told[-1]
    assert_exact(bea, restoration["id"], shop, good)
    assert_reasons(bea, restoration["id"], bad)
    assert_presigned(bea, restoration["id"])
    assert bea.call("GET", f"/grants/{grant['id']}")["used"] == GOOD
    (usage,) = owner.call("GET", "/owner/usage", params={"dataset": "pictures"})["items"]
    assert (usage["user"], usage["requests"], usage["images"]) == ("bea", 1, GOOD)
    mallory = place.caller(operator.call("POST", "/operator/users", json={"name": "mallory"})["token"])
    for path in ("", "/report", "/results", "/archive"):
        mallory.refused(404, "NotFound", "GET", f"/restorations/{restoration['id']}{path}")

    # The owner revokes: what runs stops, and the next call is refused.
    second = bea.call("POST", "/restorations", json=published)
    begun = wait_until(lambda: running(bea, second["id"]), 400, "a worker restores")
    assert begun["restored"] < begun["images"] == 500
    owner.call("POST", f"/owner/grants/{grant['id']}/revoke")
    stopped = bea.follow(second["id"])[-1]
    assert (stopped["state"], stopped["message"].partition(":")[0]) == ("failed", "GrantRevoked"), stopped
    bea.refused(409, "Conflict", "GET", f"/restorations/{second['id']}/archive")
    bea.refused(403, "GrantRevoked", "POST", "/restorations", json=published)
    body = {
        "content": zipped({"1.png": shop.pictures.protected[0].png}),
        "headers": {"Content-Type": "application/zip"},
    }
    bea.refused(403, "GrantRevoked", "POST", "/restorations/upload", params={"dataset": "pictures"}, **body)
    bea.refused(403, "GrantRevoked", "GET", f"/restorations/{restoration['id']}/archive")

    assert_on_record(operator, owner, restoration["id"], second["id"])


def running(user: Caller, restoration: str) -> Any:
    """The restoration, once a worker restores it."""
    now = user.call("GET", f"/restorations/{restoration}")
    assert now["state"] in ("pending", "running"), now
    return now if now["state"] == "running" else None


def assert_exact(user: Caller, restoration: str, shop: Shop, good: dict[str, int]) -> None:
    """Every good image, under the name it was handed in with, is the clean one bit for bit."""
    archive = user.archive(restoration)
    assert set(archive) == set(good) | REPORTS
    assert [name for name, i in good.items() if archive[name] != shop.pictures.clean[i].png] == []


def assert_reasons(user: Caller, restoration: str, bad: set[str]) -> None:
    report = user.call("GET", f"/restorations/{restoration}/report")
    assert (report["restored"], len(report["refused"])) == (GOOD, len(bad))
    assert {one["name"] for one in report["refused"]} == bad
    assert all(one["reason"] for one in report["refused"])
    kinds = Counter(one["error"] for one in report["refused"])
    assert kinds["NotProtected"] == 8
    assert kinds["UnknownKey"] == 7
    assert kinds["NoGrant"] == 5
    assert kinds["AlteredImage"] == ALTERED
    (cut,) = (one for one in report["refused"] if one["name"] == "c/cut.png")
    assert cut["error"] == "UnsupportedImage"


def assert_presigned(user: Caller, restoration: str) -> None:
    """The addresses need no token, and give what the list says."""
    files = list(user.pages(f"/restorations/{restoration}/results"))
    assert sum(file["samples"] for file in files) == GOOD
    for file in files:
        assert sha256(httpx.get(file["url"]).content) == file["sha256"]
        assert sha256(user.http.get(f"/restorations/{restoration}/results/{file['name']}").content) == file["sha256"]


def assert_on_record(operator: Caller, owner: Caller, restored: str, stopped: str) -> None:
    """Every step stands in the log, which is whole; the owner sees what is about the own data set."""
    log = list(operator.pages("/operator/audit", limit=100))
    assert [entry["seq"] for entry in log] == list(range(1, len(log) + 1))
    mine = [entry for entry in log if entry["dataset"] == "pictures"]
    steps = Counter(entry["action"] for entry in mine)
    once = "dataset.register key.create version.publish terms.set terms.accept access.ask access.approve grant.create"
    assert {action: steps[action] for action in once.split()} == dict.fromkeys(once.split(), 1)
    assert steps["grant.revoke"] == 1
    created = [entry["subject"] for entry in log if entry["action"] == "user.create"]
    assert {"olga", "bea", "mallory"} <= set(created)
    for request, end in ((restored, "request.done"), (stopped, "request.failed")):
        of_request = Counter(entry["action"] for entry in log if entry["request_id"] == request)
        assert (of_request["request.create"], of_request["request.claim"], of_request[end]) == (1, 1, 1)
    (released,) = (entry for entry in log if (entry["request_id"], entry["action"]) == (restored, "release"))
    assert (released["details"]["images"], released["subject"]) == (GOOD, "bea")
    assert sum(entry["action"] == "download" and entry["request_id"] == restored for entry in log) == 3
    seen = list(owner.pages("/owner/audit", dataset="pictures"))
    assert [entry["seq"] for entry in seen] == [entry["seq"] for entry in mine]
    verdict = operator.call("GET", "/operator/audit/verify")
    assert (verdict["whole"], verdict["fault"]) == (True, None)
    assert verdict["entries"] >= len(log)


def test_no_result_lies_in_the_bucket_without_its_entry_in_the_log(place: Place, shop: Shop) -> None:
    log = list(shop.operator.pages("/operator/audit", action="release", limit=1000))
    entered = {(one["request_id"], one["details"]["name"], one["details"]["sha256"]) for one in log}
    store, found = place.private(), 0
    for info in store.list("requests/"):
        _, request, *_, name = info.key.split("/")
        if name.startswith("result-"):
            found += 1
            assert (request, name, sha256(store.get_bytes(info.key))) in entered
    assert found


@contextmanager
def one_byte_edited(place: Place, seq: int) -> Iterator[None]:
    """One character of an entry is another, as who can write to the database would do it; undone at the end."""
    with closing(sqlite3.connect(place.settings.home_path("registry.db"), timeout=60)) as database:
        guards = database.execute("SELECT name, sql FROM sqlite_master WHERE tbl_name = 'audit_entries'")
        triggers = [(name, sql) for name, sql in guards if sql and sql.startswith("CREATE TRIGGER")]
        assert triggers
        with pytest.raises(sqlite3.DatabaseError, match="audit"):
            database.execute("UPDATE audit_entries SET subject = 'eve' WHERE seq = ?", (seq,))
        database.rollback()
        (before,) = database.execute("SELECT details FROM audit_entries WHERE seq = ?", (seq,)).fetchone()
        after = before.replace(f'"images":{GOOD}', f'"images":{GOOD - 1}')
        assert len(after) == len(before)
        assert after != before
        try:
            for name, _ in triggers:
                database.execute(f'DROP TRIGGER "{name}"')
            database.execute("UPDATE audit_entries SET details = ? WHERE seq = ?", (after, seq))
            database.commit()
            yield
        finally:
            database.execute("UPDATE audit_entries SET details = ? WHERE seq = ?", (before, seq))
            for _, sql in triggers:
                database.execute(sql)
            database.commit()


def test_one_edited_byte_in_the_log_shows(place: Place, shop: Shop) -> None:
    releases = shop.operator.pages("/operator/audit", action="release")
    seq = next(one["seq"] for one in releases if one["details"]["images"] == GOOD)
    with one_byte_edited(place, seq):
        verdict = shop.operator.call("GET", "/operator/audit/verify")
        assert verdict["whole"] is False
        assert str(seq) in verdict["fault"]
        assert verdict["entries"] == seq - 1
        told = place.dmcp("audit", "verify")
        assert told.code == 3
        assert str(seq) in told.err
    assert shop.operator.call("GET", "/operator/audit/verify")["whole"] is True
