"""The median edge predictor of LOCO-I (Weinberger, Seroussi and Sapiro, 2000), which both coders predict with."""

from numba import njit


@njit(cache=True, nogil=True, inline="always")
def median_edge(a, b, c):  # type: ignore[no-untyped-def]
    """From neighbours on two sides (a, b) and the one between them (c)."""
    low, high = (a, b) if a < b else (b, a)
    if c >= high:
        return low
    if c <= low:
        return high
    return a + b - c
