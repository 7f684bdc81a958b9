"""The median edge predictor of LOCO-I (Weinberger, Seroussi and Sapiro, 2000), which both coders predict with."""

from numba import njit


@njit(cache=True, nogil=True, inline="always")
def median_edge(a, b, c):  # type: ignore[no-untyped-def]
    """From neighbours on two sides (a, b) and the one between them (c): the median of a, b and a + b - c.

    Without branches: on a perturbed image no processor guesses them.
    """
    return max(min(a, b), min(max(a, b), a + b - c))
