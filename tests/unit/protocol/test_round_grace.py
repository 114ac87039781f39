"""How long a round waits: as long again before anything is known, then what arrivals have taught."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distqat.protocol.round_grace import RoundGrace


def test_before_anything_is_known_the_others_get_as_long_again() -> None:
    grace = RoundGrace(4.0)
    assert grace.seconds(30.0) == 30.0
    assert grace.seconds(0.1) == 1.0  # the floor
    grace.arrived(5.0)
    grace.arrived(5.0)
    assert grace.seconds(30.0) == 30.0


def test_then_the_median_and_a_multiple_of_the_spread() -> None:
    grace = RoundGrace(4.0)
    for delay in (2.0, 3.0, 3.0, 4.0, 100.0):
        grace.arrived(delay)
    assert grace.seconds(30.0) == pytest.approx(3.0 + 4.0 * 1.0)


def test_one_straggler_does_not_move_it() -> None:
    grace = RoundGrace(3.0)
    for delay in (1.0, 1.2, 0.8, 1.1, 0.9, 500.0):
        grace.arrived(delay)
    assert grace.seconds(1.0) < 2.0


def test_it_forgets() -> None:
    grace = RoundGrace(3.0, remembered=4)
    for delay in (100.0,) * 10 + (2.0,) * 4:
        grace.arrived(delay)
    assert grace.seconds(1.0) == 2.0


@given(st.lists(st.floats(0, 1e6), max_size=80), st.floats(0, 1e6), st.floats(0, 10))
def test_it_is_never_below_the_floor_and_finite(delays: list[float], first: float, spreads: float) -> None:
    grace = RoundGrace(spreads, floor_s=0.5)
    for delay in delays:
        grace.arrived(delay)
    assert 0.5 <= grace.seconds(first) < 1e8
