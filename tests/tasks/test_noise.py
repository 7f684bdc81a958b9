import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.noise import contrast

shares = st.lists(st.floats(0, 1), min_size=1, max_size=5)


def test_two_seeds_or_more_give_welchs_interval() -> None:
    first, second = [0.80, 0.82, 0.84], [0.52, 0.54, 0.56]
    found = contrast([(-1, first), (1, second)], 1000)
    half = 2.7764451 * np.sqrt(2 * 0.02**2 / 3)  # equal variances: the t distribution of 2 + 2 degrees of freedom
    assert found.value == pytest.approx(-0.28)
    assert (found.low, found.high) == pytest.approx((-0.28 - half, -0.28 + half))
    assert found.basis == "3 seeds each"
    assert not found.within_noise


def test_one_seed_is_taken_to_spread_as_those_of_several() -> None:
    lone, several = [0.60], [0.52, 0.54, 0.56]
    found = contrast([(-1, several), (1, lone)], 1000)
    half = 4.3026527 * np.sqrt(0.02**2 * (1 + 1 / 3))  # the t distribution of 2 degrees of freedom
    assert (found.low, found.high) == pytest.approx((0.06 - half, 0.06 + half))
    assert found.basis == "3 and 1 seeds; the spread of one is taken from the settings that have several"
    pooled = contrast([(-1, [0.5]), (1, lone)], 1000, [several, lone, [0.5], [0.1, 0.2]])
    half = 3.1824463 * np.sqrt((2 * 0.02**2 + 0.1**2 / 2) / 3 * 2)
    assert (pooled.low, pooled.high) == pytest.approx((0.1 - half, 0.1 + half))
    assert pooled.basis.startswith("one seed each; ")


def test_one_seed_among_none_of_several_gives_the_sampling_error_and_says_so() -> None:
    found = contrast([(1, [0.5]), (-0.5, [0.2]), (-0.5, [0.8])], 100)
    half = 1.96 * np.sqrt((0.25 + 0.25 * 0.16 + 0.25 * 0.16) / 100)
    assert (found.low, found.high) == pytest.approx((-half, half))
    assert found.within_noise
    assert "one seed tells nothing" in found.basis
    assert "2 seeds agreed" in contrast([(-1, [0.5, 0.5]), (1, [0.5, 0.5])], 100).basis


@given(shares, shares)
def test_the_other_way_round_is_the_same_with_the_other_sign(first: list[float], second: list[float]) -> None:
    one, other = contrast([(-1, first), (1, second)], 50), contrast([(-1, second), (1, first)], 50)
    assert one.low <= one.value <= one.high
    assert (one.value, one.low, one.high) == pytest.approx((-other.value, -other.high, -other.low), abs=1e-9)
