"""Waiting for something that another thread or process does: as long as it takes, on whatever machine."""

import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")

LONGEST_SECONDS = 300.0
"""After so long it is not slow but broken."""


def wait_for(look: Callable[[], Value], good: Callable[[Value], object] = bool, pause: float = 0.005) -> Value:
    """Look again and again until what is seen is good; that is returned. Raises AssertionError when it never is."""
    end = time.monotonic() + LONGEST_SECONDS
    while True:
        seen = look()
        if good(seen):
            return seen
        assert time.monotonic() < end, f"still {seen!r} after {LONGEST_SECONDS:.0f} s"
        time.sleep(pause)
