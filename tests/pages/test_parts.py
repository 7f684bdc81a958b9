"""What pages are made of: the chart's geometry, uploads that come in any pieces, templates without anything inline."""

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from flows.gateway import pages_views
from flows.gateway.pages_chart import BOTTOM, HEIGHT, LEFT, OTHERS, SERIES, TOP, WIDTH, usage_chart
from flows.gateway.pages_upload import Upload
from flows.gateway.schemas import UsageInfo
from storage.errors import Forbidden, InputError

LAST = date(2026, 11, 24)
TEMPLATES = Path(pages_views.__file__).parent / "templates"

usage_rows = st.lists(
    st.builds(
        lambda ago, dataset, images: UsageInfo(
            day=str(LAST - timedelta(days=ago)), dataset=dataset, user="ann", requests=1, images=images
        ),
        st.integers(0, 399),
        st.sampled_from([f"set-{i}" for i in range(8)]),
        st.integers(0, 10**9),
    ),
    max_size=40,
)


@given(usage_rows, st.integers(400, 3660) | st.integers(400, 500))
def test_a_chart_holds_all_images_and_stays_within_its_frame(rows: list[UsageInfo], days: int) -> None:
    chart = usage_chart(rows, LAST - timedelta(days=days - 1), LAST)
    assert chart.total == sum(row.total for row in chart.rows) == sum(row.images for row in rows)
    assert len(chart.series) <= SERIES
    assert all(sum(row.images.values()) == row.total for row in chart.rows)
    for piece in chart.pieces:
        assert LEFT <= piece.x <= piece.x + piece.width <= WIDTH
        assert TOP - 0.1 <= piece.y <= piece.y + piece.height <= HEIGHT - BOTTOM + 0.1
    heights = [tick.at for tick in chart.ticks]
    assert heights == sorted(heights, reverse=True)


@pytest.mark.parametrize(
    ("days", "unit", "bars"), [(7, "day", 7), (30, "day", 30), (90, "week", 13), (365, "month", 13)]
)
def test_bars_are_days_weeks_or_months(days: int, unit: str, bars: int) -> None:
    first = LAST - timedelta(days=days - 1)
    every = [
        UsageInfo(day=str(first + timedelta(days=i)), dataset="pets", user="ann", requests=1, images=4)
        for i in range(days)
    ]
    chart = usage_chart(every, first, LAST)
    assert chart.unit == unit
    assert len(chart.pieces) in (bars, bars + 1)
    assert chart.total == 4 * days


def test_the_smallest_data_sets_are_drawn_together() -> None:
    rows = [UsageInfo(day=str(LAST), dataset=f"set-{i}", user="a", requests=1, images=10 - i) for i in range(7)]
    chart = usage_chart(rows, LAST, LAST)
    assert chart.series == ["set-0", "set-1", "set-2", "set-3", OTHERS]
    assert chart.rows[0].images[OTHERS] == 6 + 5 + 4


# --- uploads ---------------------------------------------------------------------------------------------------------


def body(files: list[tuple[str, bytes]], end: bool = True) -> bytes:
    parts = [b'--b\r\nContent-Disposition: form-data; name="csrf"\r\n\r\ntoken\r\n']
    for name, data in files:
        head = f'--b\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
        parts.append(head.encode() + b"Content-Type: image/png\r\n\r\n" + data + b"\r\n")
    return b"".join(parts) + (b"--b--\r\n" if end else b"")


def request(pieces: list[bytes]) -> Request:
    waiting = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    waiting.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> Any:
        return waiting.pop(0)

    headers = [(b"content-type", b"multipart/form-data; boundary=b")]
    scope = {"type": "http", "method": "POST", "path": "/app/upload", "headers": headers, "session": {"csrf": "token"}}
    return Request(scope, receive)


async def read(upload: Upload) -> list[tuple[str, bytes]]:
    async def all_of(pieces: AsyncIterator[bytes]) -> bytes:
        return b"".join([piece async for piece in pieces])

    return [(file.filename, await all_of(file.pieces)) async for file in upload.files()]


@given(
    st.lists(st.tuples(st.from_regex(r"[a-z]{1,8}\.png", fullmatch=True), st.binary(max_size=200)), max_size=4),
    st.integers(1, 60),
)
def test_files_come_back_whatever_pieces_they_come_in(files: list[tuple[str, bytes]], size: int) -> None:
    data = body([(name, content.replace(b"--b", b"")) for name, content in files])
    pieces = [data[i : i + size] for i in range(0, len(data), size)]
    got = asyncio.run(read(Upload(request(pieces), 5)))
    assert got == [(name, content.replace(b"--b", b"")) for name, content in files]


@given(st.integers(0, 300))
def test_an_upload_that_ends_early_is_refused(cut: int) -> None:
    data = body([("a.png", b"x" * 60)])
    cut = min(cut, len(data) - 5)
    with pytest.raises((InputError, Forbidden), match=r"broke off|not sent by a page"):
        asyncio.run(read(Upload(request([data[:cut]]), 5)))


def test_no_form_at_all_is_refused() -> None:
    scope = {"type": "http", "method": "POST", "headers": [(b"content-type", b"text/plain")], "session": {}}
    with pytest.raises(InputError, match="without a file"):
        Upload(Request(scope), 5)


# --- templates -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(TEMPLATES.glob("*.html")), ids=lambda path: path.name)
def test_templates_hold_nothing_inline_and_escape_everything(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son[a-z]+=|javascript:|https?://", text)
    assert not re.search(r"\|\s*safe\b|autoescape", text)
    forms = re.findall(r'<form[^>]*method="post"[^>]*>(.*?)</form>', text, re.DOTALL)
    assert all('name="csrf"' in form or "csrf_field(csrf)" in form for form in forms)
    assert len(forms) == text.count('method="post"')
