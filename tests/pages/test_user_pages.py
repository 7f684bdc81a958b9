"""A user's pages in a real browser: from asking for access to the downloaded images."""

import io
import re
import time
import zipfile
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from selenium.webdriver.common.keys import Keys

from storage.database import utc_now
from storage.png import decode_png, encode_png
from tests.pages.browser import Browser
from tests.pages.place import HOSTILE, IMAGES, Place
from tests.pages.visitor import Visitor

NOISE = encode_png(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))


@pytest.fixture
def newcomer(place: Place) -> str:
    """A user who may have nothing yet."""
    name = f"new-{uuid4().hex[:6]}"
    place.tokens[name] = place.registry.add_user(name)
    return name


@pytest.fixture
def member(place: Place, newcomer: str) -> str:
    """A user who may have everything of `pets`."""
    place.registry.grant(newcomer, "pets", quota=500)
    place.registry.accept_terms(place.registry.get_user(newcomer).id, "pets", 1)
    return newcomer


@pytest.fixture
def images(place: Place, tmp_path: Path) -> Path:
    """A zip with protected images, renamed, and with what can not be restored."""
    path = tmp_path / "holiday.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number, png in enumerate(place.protected):
            archive.writestr(f"summer/{number:02d}.png", png)
        archive.writestr("noise.png", NOISE)
        archive.writestr("notes.txt", "no image")
    return path


def downloaded(browser: Browser) -> bytes:
    """What the browser wrote to its folder last."""
    browser.wait(lambda: any(browser.downloads.glob("*.zip")))
    path = next(browser.downloads.glob("*.zip"))
    data = path.read_bytes()
    path.unlink()
    return data


def restoration_of(browser: Browser) -> str:
    browser.wait(lambda: browser.path.startswith("/app/restorations/"))
    return browser.path.rpartition("/")[2]


def test_from_asking_to_the_images(browser: Browser, place: Place, newcomer: str, images: Path) -> None:
    browser.log_in(place.tokens[newcomer])
    assert "You hold no grant yet." in browser.text
    browser.open("/app/datasets/pets")
    browser.fill("#reason", f"A study. {HOSTILE}")
    browser.fill("#days", "30")
    browser.fill("#images", "100")
    browser.press("Send to the owner")
    assert "was sent to the owner of pets" in browser.find("[role=status]").text
    assert HOSTILE in browser.text
    asked = place.registry.list_access_requests(user=newcomer)[0]
    assert (asked.days, asked.images, asked.state) == (30, 100, "open")

    browser.log_in(place.tokens["olga"])
    card = f"[aria-labelledby='q-{asked.id}']"
    assert HOSTILE in browser.find(card).text
    assert browser.all("main img, main script") == []
    browser.fill(f"#quota-{asked.id}", "20")
    browser.fill(f"#note-{asked.id}", f"Welcome. {HOSTILE}")
    browser.press("Approve", card)
    grant = place.registry.list_grants(newcomer, "pets")[0]
    assert (grant.quota, grant.expires is None) == (20, False)

    browser.log_in(place.tokens[newcomer])
    assert "20 of 20 left" in browser.text
    browser.open("/app/datasets/pets")
    assert f"Welcome. {HOSTILE}" in browser.text
    assert "1. For research only.\n2. Do not pass images on." in browser.find(".terms").text
    browser.find("#read").click()
    browser.press("Accept version 1")
    assert "accepted by you" in browser.text

    browser.open("/app/restore?dataset=pets")
    browser.find("#file").send_keys(str(images))
    browser.press("Upload and restore")
    request_id = restoration_of(browser)
    assert "pending" in browser.text
    browser.driver.execute_script("window.seen = 1")
    place.serve(request_id)
    browser.wait(lambda: "Download as zip" in browser.text)  # by an event: nothing was pressed
    assert browser.driver.execute_script("return window.seen") is None
    assert f"{IMAGES} restored, 2 refused of 14" in browser.text
    assert "notes.txt" in browser.text
    assert "NotProtected" in browser.text

    browser.find("a.button.main").click()
    with zipfile.ZipFile(io.BytesIO(downloaded(browser))) as archive:
        names = archive.namelist()
        assert sum(name.startswith("summer/") for name in names) == IMAGES
        assert {"refused.csv", "report.json"} <= set(names)
        assert decode_png(archive.read("summer/03.png"), "03").shape == (32, 32, 3)
    browser.open("/app")
    assert f"{20 - IMAGES} of 20 left" in browser.text
    record = Visitor(place, "olga").get(f"/owner/audit?restoration={request_id}").text
    assert all(f"<code>{action}</code>" in record for action in ("request.create", "request.done", "download"))


def test_without_a_script_uploads_and_progress_work_as_well(
    browser: Browser, place: Place, member: str, tmp_path: Path
) -> None:
    browser.log_in(place.tokens[member])
    browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.open("/app/restore")
        paths = [tmp_path / f"cat {number}.png" for number in range(3)]
        for path, png in zip(paths, place.protected, strict=False):
            path.write_bytes(png)
        browser.find("#file").send_keys("\n".join(map(str, paths)))
        browser.find("#upload button").click()
        deadline = time.monotonic() + 90
        while "Handed in: 3 files." not in browser.driver.page_source and time.monotonic() < deadline:
            time.sleep(0.05)
        request_id = restoration_of(browser)
        assert 'http-equiv="refresh"' in browser.driver.page_source
        place.serve(request_id)
        browser.open(f"/app/restorations/{request_id}")
        assert "3 restored of 3" in browser.driver.page_source
        assert 'http-equiv="refresh"' not in browser.driver.page_source
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    with zipfile.ZipFile(
        io.BytesIO(Visitor(place, member).get(f"/app/restorations/{request_id}/archive").content)
    ) as z:
        assert {"cat 0.png", "cat 1.png", "cat 2.png"} <= set(z.namelist())


def test_a_refused_upload_says_why_on_the_same_page(
    browser: Browser, place: Place, member: str, tmp_path: Path
) -> None:
    browser.log_in(place.tokens[member])
    browser.open("/app/restore")
    path = tmp_path / "notes.zip"
    path.write_text("no archive")
    browser.find("#file").send_keys(str(path))
    browser.find("#upload button").click()
    browser.wait(lambda: browser.find("#upload .problem").is_displayed())
    assert browser.find("#upload .problem").text.strip()
    assert browser.path == "/app/restore"
    assert browser.find("#upload button").is_enabled()
    browser.driver.execute_script("document.getElementById('upload').dataset.limit = 5")
    browser.find("#upload button").click()
    assert "Choose fewer images." in browser.find("#upload .problem").text
    assert [c for c in browser.complaints() if "400" not in c] == []


def test_a_published_version_and_some_of_it(browser: Browser, place: Place, member: str) -> None:
    browser.log_in(place.tokens[member])
    browser.open("/app/restore?dataset=pets")
    browser.fill("#subset", "00000001, 00000004\n00000007")
    browser.press("Restore", "form[action='/app/restore']")
    request_id = restoration_of(browser)
    place.serve(request_id)
    browser.wait(lambda: "3 restored of 3" in browser.text)
    browser.open("/app/restorations?state=done")
    assert "pets@" in browser.find("tbody").text


def test_the_same_form_sent_twice_starts_one_restoration(place: Place, member: str) -> None:
    visitor = Visitor(place, member)
    version = Visitor(place, member).get("/app/restore").text.partition('value="pets@')[2][:16]
    fields = {"source": f"pets@{version}", "key": "the-same-key-twice"}
    first, second = (visitor.post("/app/restore", **fields).headers["location"] for _ in range(2))
    assert first == second
    files = {"file": ("cat.png", place.protected[0], "image/png")}
    data = {"csrf": visitor.csrf(), "key": "another-key-twice"}
    sent = [visitor.client.post("/app/upload", data=data, files=files).headers["location"] for _ in range(2)]
    assert sent[0] == sent[1] != first
    assert len(place.registry.list_requests(member)) == 2


def test_cancelling(browser: Browser, place: Place, member: str) -> None:
    request_id = place.registry.create_request(place.registry.get_user(member).id, "upload", None, HOSTILE)
    browser.log_in(place.tokens[member])
    browser.open("/app/restorations")
    assert HOSTILE in browser.text
    browser.open(f"/app/restorations/{request_id}")
    assert browser.find("h1").text == HOSTILE
    browser.press("Cancel the restoration")
    assert "The restoration was cancelled." in browser.text
    assert place.registry.get_request(request_id).state == "cancelled"
    again = Visitor(place, member).post(f"/app/restorations/{request_id}/cancel")
    assert again.status_code in (303, 409)


def test_trying_again_and_what_is_not_kept_any_more(browser: Browser, place: Place, member: str) -> None:
    book = place.registry
    request_id = book.create_request(book.get_user(member).id, "upload", "pets", "mine.zip", images=1)
    book.set_request_state(request_id, "failed", message="ServiceError: A worker died.")
    browser.log_in(place.tokens[member])
    browser.open(f"/app/restorations/{request_id}")
    browser.press("Try again")
    assert "The restoration is tried again." in browser.text
    assert book.get_request(request_id).state == "pending"
    book.set_request_state(request_id, "failed")
    assert book.begin_removal(request_id, utc_now() + timedelta(days=1))
    browser.open(f"/app/restorations/{request_id}")
    assert "was removed on" in browser.text and "Hand the images in again" in browser.text
    assert "Try again" not in browser.text
    refused = Visitor(place, member).post(f"/app/restorations/{request_id}/retry")
    assert refused.status_code == 410 and "Hand the images in again" in refused.text


def test_live_progress_counts_up(browser: Browser, place: Place, member: str) -> None:
    book = place.registry
    request_id = book.create_request(book.get_user(member).id, "upload", None, "many.zip", images=1000)
    browser.log_in(place.tokens[member])
    browser.open(f"/app/restorations/{request_id}")
    book.claim_request(request_id)
    for restored in (250, 700):
        book.set_request_state(request_id, "running", restored=restored, refused=1)
        browser.wait(lambda restored=restored: f"{restored} restored, 1 refused of 1,000" in browser.text)
    assert browser.find("progress").get_attribute("value") == "701"
    assert browser.find(".state").text == "running"
    book.set_request_state(request_id, "failed", message="GrantRevoked: The grant was revoked.")
    browser.wait(lambda: "GrantRevoked: The grant was revoked." in browser.text)


def test_withdrawing_and_renewing(browser: Browser, place: Place, member: str) -> None:
    grant = place.registry.list_grants(member, "pets")[0]
    browser.log_in(place.tokens[member])
    browser.open("/app/datasets/pets")
    browser.unfold("Ask for a renewal")
    browser.fill(f"#r-{grant.id}", "The study goes on.")
    browser.fill(f"#rd-{grant.id}", "10")
    browser.press("Ask for it")
    asked = place.registry.list_access_requests(user=member)[0]
    assert (asked.renews, asked.days, asked.state) == (grant.id, 10, "open")
    browser.press("Withdraw")
    assert place.registry.get_access_request(asked.id).state == "withdrawn"
    assert "was withdrawn" in browser.text


def test_by_the_keyboard_alone(browser: Browser, place: Place, newcomer: str) -> None:
    def keys(*pressed: str) -> None:
        browser.driver.switch_to.active_element.send_keys(*pressed)

    def focused() -> str:
        script = "const e = document.activeElement; return e.id || e.name || e.textContent.trim()"
        return str(browser.driver.execute_script(script))

    browser.open("/")
    assert focused() == "token"
    before = browser.find("html")
    keys(place.tokens[newcomer], Keys.ENTER)
    browser.wait(lambda: browser.path == "/app" and before != browser.find("html"))
    keys(Keys.TAB)
    assert focused() == "Skip to content"
    keys(Keys.ENTER)
    assert focused() == "main"

    browser.open("/app/datasets/cells")
    seen = []
    while (not seen or seen[-1] != "Send to the owner") and len(seen) < 40:
        keys(Keys.TAB)
        seen.append(focused())
    form = ["reason", "days", "images", "version", "Some classes only", "Send to the owner"]
    assert seen[-len(form) :] == form
    assert "Log out" in seen
    outline = browser.driver.execute_script("return getComputedStyle(document.activeElement).outlineWidth")
    assert outline == "3px"
    browser.find("#reason").send_keys("By keys.")
    keys(Keys.TAB, Keys.ENTER)
    browser.wait(lambda: bool(place.registry.list_access_requests(user=newcomer)))


def test_a_revoked_grant_ends_the_download(place: Place, member: str) -> None:
    visitor = Visitor(place, member)
    location = visitor.client.post(
        "/app/upload", data={"csrf": visitor.csrf()}, files={"file": ("cat.png", place.protected[0], "image/png")}
    ).headers["location"]
    place.serve(location.rpartition("/")[2])
    assert visitor.get(f"{location}/archive").status_code == 200
    place.registry.revoke(member, "pets")
    answer = visitor.get(f"{location}/archive")
    assert answer.status_code == 403
    assert "was revoked" in answer.text
    assert "Ask its owner for a new grant, on the data set&#39;s page." in answer.text


def test_many_data_sets_come_page_by_page(place: Place, newcomer: str) -> None:
    names = [f"zoo-{number:02d}" for number in range(55)]
    for name in names:
        place.registry.register_dataset(name, "otto")
    visitor = Visitor(place, newcomer)
    first = visitor.get("/app").text
    address = re.search(r'rel="next" href="([^"#]+)', first)
    assert address is not None
    second = visitor.get(address[1]).text
    links = [f'href="/app/datasets/{name}"' for name in names]
    assert all((link in first) is not (link in second) for link in links)
    assert links[0] in first
    assert links[-1] in second


def test_of_very_many_refusals_the_page_names_the_first(
    place: Place, member: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.request.NAMED_REFUSALS", 2)
    visitor = Visitor(place, member)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("good.png", place.protected[0])
        for number in range(5):
            archive.writestr(f"noise-{number}.png", NOISE)
    location = visitor.client.post(
        "/app/upload",
        data={"csrf": visitor.csrf()},
        files={"file": ("noise.zip", buffer.getvalue(), "application/zip")},
    ).headers["location"]
    place.serve(location.rpartition("/")[2])
    page = visitor.get(location).text
    assert "1 restored, 5 refused of 6" in page
    assert "<p>5 images.</p>" in page
    assert "<code>NotProtected</code> 5; and 3 more of them are counted here and not named anywhere." in page
    assert "noise-1.png" in page and "noise-2.png" not in page
