"""Owners' and operators' pages in a real browser."""

from datetime import timedelta
from uuid import uuid4

import pytest

from storage.audit import append
from storage.database import utc_now
from storage.errors import BadToken
from tests.pages.browser import Browser
from tests.pages.place import HOSTILE, Place
from tests.pages.visitor import Visitor


@pytest.fixture
def asking(place: Place) -> tuple[str, int]:
    """A user who asks for `pets`, and the request."""
    name = f"ask-{uuid4().hex[:6]}"
    place.tokens[name] = place.registry.add_user(name)
    user = place.registry.get_user(name)
    return name, place.registry.ask_access(user.id, "pets", "For a paper.", days=40, actor=name).id


@pytest.fixture
def granted(place: Place) -> tuple[str, int]:
    """A user with a grant for `pets`, and the grant."""
    name = f"may-{uuid4().hex[:6]}"
    place.tokens[name] = place.registry.add_user(name)
    return name, place.registry.grant(name, "pets", utc_now() + timedelta(days=5), quota=50).id


def test_denying_takes_a_reason(browser: Browser, place: Place, asking: tuple[str, int]) -> None:
    name, identity = asking
    browser.log_in(place.tokens["olga"])
    assert browser.path == "/owner"
    card = f"[aria-labelledby='q-{identity}']"
    browser.unfold("Deny", card)
    browser.find(f"{card} button.danger").click()
    assert place.registry.get_access_request(identity).state == "open"  # the browser asks for the reason
    browser.fill(f"#why-{identity}", f"Name the study. {HOSTILE}")
    browser.press("Deny", card)
    assert f"Request {identity} of {name} was denied." in browser.text
    assert place.registry.get_access_request(identity).note == f"Name the study. {HOSTILE}"
    assert "Name the study." in Visitor(place, name).get("/app").text
    browser.open("/owner/requests?state=denied")
    assert HOSTILE in browser.text
    again = Visitor(place, "olga").post(f"/owner/requests/{identity}/approve")
    assert again.status_code == 409
    assert "The request is denied already." in again.text


def test_another_owner_decides_nothing_of_it(place: Place, asking: tuple[str, int]) -> None:
    otto = Visitor(place, "otto")
    assert asking[0] not in otto.get("/owner").text
    assert otto.post(f"/owner/requests/{asking[1]}/approve").status_code == 404
    assert place.registry.get_access_request(asking[1]).state == "open"


def test_renewing_and_revoking(browser: Browser, place: Place, granted: tuple[str, int]) -> None:
    name, identity = granted
    browser.log_in(place.tokens["olga"])
    browser.open("/owner/grants?dataset=pets")
    form = f"[aria-label='Renew grant {identity}']"
    browser.unfold(f"Change grant {identity}")
    browser.fill(f"#d-{identity}", "300")
    browser.fill(f"#n-{identity}", "75")
    browser.press("Renew", form)
    grant = place.registry.get_grant(identity)
    assert grant.quota == 75
    assert grant.expires is not None
    assert (grant.expires - utc_now()).days in (299, 300)
    browser.unfold(f"Change grant {identity}")
    browser.press("Revoke now", f"[aria-label='Revoke grant {identity}']")
    assert f"Grant {identity} of {name} for pets was revoked." in browser.text
    assert place.registry.get_grant(identity).revoked is not None


def test_giving_a_grant(browser: Browser, place: Place, asking: tuple[str, int]) -> None:
    name, _ = asking
    browser.log_in(place.tokens["olga"])
    browser.open("/owner/grants?dataset=pets")
    browser.fill("#user", name)
    browser.fill("#quota", "9")
    browser.fill("#note", HOSTILE)
    browser.unfold("Some of it only")
    browser.fill("#classes", "cat, dog")
    browser.press("Give the grant")
    grant = place.registry.list_grants(name, "pets")[0]
    assert (grant.quota, grant.classes, grant.note) == (9, ["cat", "dog"], HOSTILE)
    assert HOSTILE in browser.text
    nobody = Visitor(place, "olga").post("/owner/grants", user="nobody", dataset="pets")
    assert nobody.status_code == 404
    assert "There is no user &#39;nobody&#39;." in nobody.text


def test_usage_is_a_chart_and_a_table(browser: Browser, place: Place, granted: tuple[str, int]) -> None:
    name, _ = granted
    for days_ago, images in ((1, 11), (3, 22)):
        place.charge(name, "pets", images, days_ago)
    browser.log_in(place.tokens["olga"])
    browser.open("/owner/usage?days=7&dataset=pets")
    chart = browser.find("svg[role=img]")
    assert "Restored images for each day" in chart.get_attribute("textContent")
    assert len(browser.all("svg[role=img] > rect")) >= 2
    browser.unfold("In numbers")
    rows = {
        tuple(cell.text for cell in row.find_elements("css selector", "td"))
        for row in browser.all("section + section tbody tr")
    }
    days = [f"{utc_now() - timedelta(days=ago):%Y-%m-%d}" for ago in (1, 3)]
    assert {(days[0], "pets", name, "1", "11"), (days[1], "pets", name, "1", "22")} <= rows
    assert name not in Visitor(place, "otto").get("/owner/usage?days=7").text


def test_the_audit_log_page_by_page(browser: Browser, place: Place) -> None:
    name = f"log-{uuid4().hex[:6]}"
    with place.registry.write() as session:
        for number in range(60):
            for action in ("grant.create", "grant.revoke"):
                append(session, actor=f"by-{name}", action=action, dataset="pets", details={"grant": number})
    browser.log_in(place.tokens["olga"])
    browser.open("/owner/audit")
    browser.fill("#actor", f"by-{name}")
    browser.fill("#action", "grant.revoke")
    browser.press("Show")
    numbers = [int(cell.text) for cell in browser.all("tbody td.num")]
    assert len(numbers) == 50
    browser.find("a[rel=next]").click()
    browser.wait(lambda: len(browser.all("tbody td.num")) == 10)
    older = [int(cell.text) for cell in browser.all("tbody td.num")]
    assert numbers + older == sorted(numbers + older, reverse=True)
    assert browser.find("#action").get_attribute("value") == "grant.revoke"
    browser.unfold("Details", "tbody tr:first-child")
    assert "hash" in browser.find("tbody tr:first-child details").text


def test_registering_a_data_set_and_its_terms(browser: Browser, place: Place) -> None:
    name = f"set-{uuid4().hex[:6]}"
    browser.log_in(place.tokens["otto"])
    browser.open("/owner/datasets")
    browser.fill("#name", name)
    browser.fill("#title", HOSTILE)
    browser.fill("#description", "Two lines,\nof text.")
    browser.press("Register")
    assert browser.find("h1").text == HOSTILE
    browser.fill("#text", f"First term.\n{HOSTILE}")
    browser.press("Let this text count")
    terms = place.registry.current_terms(name)
    assert terms is not None
    assert (terms.version, terms.text) == (1, f"First term.\n{HOSTILE}")
    browser.open(f"/app/datasets/{name}")
    assert f"First term.\n{HOSTILE}" in browser.text
    assert place.registry.get_dataset(name).description == "Two lines,\nof text."
    taken = Visitor(place, "olga").post("/owner/datasets", name=name, title="Mine")
    assert taken.status_code == 403


def test_an_operator_adds_a_user_and_shows_the_token_once(browser: Browser, place: Place) -> None:
    name = f"made-{uuid4().hex[:6]}"
    browser.log_in(place.tokens["root"])
    browser.open("/operator")
    browser.fill("#name", name)
    browser.press("Add")
    token = browser.find("#made").get_attribute("value")
    assert place.registry.authenticate(token).name == name
    browser.open("/operator")
    assert token not in browser.driver.page_source
    browser.unfold(f"Change {name}")
    browser.press("New token", f"form[action='/operator/users/{name}/token']")
    second = browser.find("#made").get_attribute("value")
    with pytest.raises(BadToken):
        place.registry.authenticate(token)
    assert place.registry.authenticate(second).name == name
    browser.open("/operator")
    browser.unfold(f"Change {name}")
    browser.press("Shut out now", f"form[action='/operator/users/{name}/disable']")
    assert place.registry.get_user(name).disabled
    browser.unfold(f"Change {name}")
    browser.press("Let in again", f"form[action='/operator/users/{name}/enable']")
    assert not place.registry.get_user(name).disabled
    assert Visitor(place, "root").post("/operator/users", name=name, role="user").status_code == 409
    assert Visitor(place, "root").post("/operator/users/root/disable").status_code == 409


def test_an_operator_checks_the_audit_log(browser: Browser, place: Place) -> None:
    browser.log_in(place.tokens["root"])
    browser.open("/owner/audit")
    browser.press("Check the whole log")
    assert "The log is whole" in browser.text
