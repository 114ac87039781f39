"""Measures, with a clock made of a list."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distqat.metrics import Busy, Rate


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@given(rate=st.floats(0.1, 1e4), times=st.lists(st.floats(0.001, 100), min_size=1, max_size=20))
def test_a_constant_rate_is_met_whatever_the_reports(rate: float, times: list[float]) -> None:
    meter = Rate()
    for seconds in times:
        value = meter.add(rate * seconds, seconds)
        assert value == pytest.approx(rate)


def test_rate_forgets_by_time() -> None:
    meter = Rate(window_s=10.0)
    assert meter.value == 0.0
    meter.add(100, 10.0)
    assert meter.add(0, 10.0) == pytest.approx(100 * 0.5 / (10.0 * 0.5 + 10.0))
    assert Rate().add(5, 0.0) == 0.0


def test_busy_adds_up_to_the_time_that_passed() -> None:
    clock = Clock()
    busy = Busy(clock)
    assert busy.shares() == {"idle": 1.0}
    with busy.doing("forward"):
        clock.now += 1.0

    def fail() -> None:
        with busy.doing("backward"):
            clock.now += 2.0
            raise ValueError

    with pytest.raises(ValueError):
        fail()
    clock.now += 1.0
    assert busy.seconds() == {"forward": 1.0, "backward": 2.0, "idle": 1.0}
    assert busy.shares() == {"forward": 0.25, "backward": 0.5, "idle": 0.25}
    busy.reset()
    clock.now += 3.0
    assert busy.seconds() == {"idle": 3.0}
