"""Every page, for everyone: labels, headings, contrast in light and dark, phones, speed, a silent console."""

from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, event

from tests.pages.browser import Browser
from tests.pages.place import HOSTILE, Place
from tests.pages.visitor import Visitor

PAGES = {
    "": ["/"],
    "ann": ["/app", "/app/datasets/pets", "/app/datasets/cells", "/app/restore", "/app/restorations", "{restoration}"],
    "olga": [
        "/owner",
        "/owner/requests?state=",
        "/owner/grants",
        "/owner/datasets",
        "/owner/datasets/pets",
        "/owner/usage",
        "/owner/audit",
    ],
    "root": ["/operator", "/owner", "/owner/audit"],
}

FAULTS = r"""
const faults = [];
const shown = (e) => e.getClientRects().length > 0;
if (!document.documentElement.lang) faults.push("no language");
if (!document.title) faults.push("no title");
if (document.querySelectorAll("h1").length !== 1) faults.push("not one h1");
if (document.querySelectorAll("main").length !== 1) faults.push("not one main");
let level = 1;
for (const h of document.querySelectorAll("main h1, main h2, main h3, main h4")) {
  const mine = Number(h.tagName[1]);
  if (mine > level + 1) faults.push("skipped a level of headings: " + h.textContent.trim());
  level = mine;
}
const ids = Array.from(document.querySelectorAll("[id]"), (e) => e.id);
for (const id of new Set(ids)) if (ids.filter((i) => i === id).length > 1) faults.push("id twice: " + id);
for (const e of document.querySelectorAll("input:not([type=hidden]):not([hidden]), select, textarea, progress")) {
  if (!(e.labels && e.labels.length) && !e.getAttribute("aria-label")) faults.push("no label: " + e.outerHTML);
}
for (const e of document.querySelectorAll("[aria-describedby], [aria-labelledby]"))
  for (const id of `${e.getAttribute("aria-describedby") || ""} ${e.getAttribute("aria-labelledby") || ""}`.split(" "))
    if (id && !document.getElementById(id)) faults.push("points nowhere: " + id);
for (const e of document.querySelectorAll("a, button, summary"))
  if (!e.textContent.trim() && !e.getAttribute("aria-label")) faults.push("no words: " + e.outerHTML);
for (const e of document.querySelectorAll("img")) if (!e.hasAttribute("alt")) faults.push("no alt: " + e.outerHTML);
for (const e of document.querySelectorAll("th")) if (!e.scope) faults.push("no scope: " + e.outerHTML);
if (document.documentElement.scrollWidth > document.documentElement.clientWidth) faults.push("wider than the window");

const parse = (text) => (text.match(/[\d.]+/g) || []).map(Number);
const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
  .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const ground = (e) => {
  for (; e; e = e.parentElement) {
    const colour = parse(getComputedStyle(e).backgroundColor);
    if (colour.length === 3 || colour[3] > 0.99) return colour;
  }
  return [255, 255, 255];
};
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const e = walker.currentNode.parentElement;
  if (!walker.currentNode.textContent.trim() || !shown(e) || e.closest("option, noscript, script, .skip")) continue;
  const style = getComputedStyle(e);
  const [a, b] = [light(parse(e.closest("svg") ? style.fill : style.color)), light(ground(e))];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) faults.push(`contrast ${ratio.toFixed(2)}: ${e.textContent.trim().slice(0, 40)}`);
}
return faults;
"""


@pytest.fixture(scope="module")
def furnished(place: Place) -> str:
    """Something of everything is there; the address of a restoration."""
    book = place.registry
    bob, ann = book.get_user("bob"), book.get_user("ann")
    book.ask_access(bob.id, "pets", f"For a paper. {HOSTILE}", images=2000, days=90)
    book.ask_access(bob.id, "cells", "For another.")
    for days_ago in (1, 2, 9):
        place.charge("ann", "pets", 10 * days_ago, days_ago)
    request_id = book.create_request(ann.id, "upload", None, "x" * 150, images=5)
    return f"/app/restorations/{request_id}"


def emulate(browser: Browser, width: int, scheme: str) -> None:
    run = browser.driver.execute_cdp_cmd
    run("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
    size: dict[str, Any] = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    run("Emulation.setDeviceMetricsOverride", size)


@pytest.mark.parametrize("name", PAGES)
def test_every_page_can_be_read_by_everyone(browser: Browser, place: Place, furnished: str, name: str) -> None:
    if name:
        browser.log_in(place.tokens[name])
    try:
        for path in PAGES[name]:
            browser.open(path.format(restoration=furnished))
            for width, scheme in ((360, "light"), (1280, "dark")):
                emulate(browser, width, scheme)
                browser.driver.execute_script("document.querySelectorAll('details').forEach((d) => d.open = true)")
                faults = browser.driver.execute_script(FAULTS)
                assert faults == [], f"{path} at {width} px, {scheme}"
    finally:
        browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_pages_load_from_here_alone_and_are_small(browser: Browser, place: Place) -> None:
    script = "return performance.getEntriesByType('resource').map((e) => [e.name, e.decodedBodySize])"
    browser.log_in(place.tokens["olga"])
    for path in ("/owner", "/app/restore"):
        browser.open(path)
        loaded = browser.driver.execute_script(script)
        assert all(name.startswith(place.address) for name, _ in loaded)
        assert sum(size for _, size in loaded) < 40_000


def statements(visitor: Visitor, path: str) -> int:
    """How many SQL statements a page takes; the least of three, since other threads have some of their own."""
    asked: list[str] = []

    def note(_: Any, __: Any, statement: str, *___: Any) -> None:
        asked.append(statement)

    counts = []
    event.listen(Engine, "before_cursor_execute", note)
    try:
        for _ in range(3):
            asked.clear()
            assert visitor.get(path).status_code == 200
            counts.append(len(asked))
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    return min(counts)


@pytest.mark.parametrize("path", ["/owner", "/owner/grants", "/owner/requests?state=", "/owner/usage"])
def test_a_page_takes_no_more_queries_the_more_it_shows(place: Place, path: str) -> None:
    olga = Visitor(place, "olga")
    before = statements(olga, path)
    for _ in range(8):
        name = f"more-{uuid4().hex[:8]}"
        place.registry.add_user(name)
        place.registry.grant(name, "pets")
        place.registry.ask_access(place.registry.get_user(name).id, "pets", "For more.")
    assert 0 < statements(olga, path) <= before
