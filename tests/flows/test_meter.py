"""What a stage says of its progress."""

import time

import pytest

from flows.meter import duration, meter


def test_lines_count_shards_and_images(capsys: pytest.CaptureFixture[str]) -> None:
    with meter("protect", 3, 300) as progress:
        for _ in range(3):
            progress.advance(100)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("protect: 1/3 shards, 100/300 images, ")
    assert "left" in lines[0]
    assert lines[-1].startswith("protect: 3/3 shards, 300/300 images, ")
    assert "left" not in lines[-1]
    assert len(lines) == 2  # the second one came too soon after the first


def test_what_an_earlier_run_did_says_nothing_about_speed() -> None:
    with meter("protect", 2, 200) as progress:
        progress.advance(100, reused=True)
        assert "images/s" not in progress.text()
        time.sleep(0.01)
        progress.advance(100)
        assert 0 < progress.rate < 100 / 0.01


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (7200, "2.0 h")]
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text
