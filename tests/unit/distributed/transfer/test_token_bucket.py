"""The rate limit, over a clock that the test moves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distqat.distributed.transfer.token_bucket import TokenBucket

RATE, BURST = 100.0, 50.0
SEND = st.tuples(st.floats(0, 2), st.floats(0.1, 40))


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_goes_at_once_and_the_rest_waits() -> None:
    clock = Clock()
    bucket = TokenBucket(RATE, BURST, clock)
    waits = [bucket.take(25, patience_s=10) for _ in range(5)]
    assert waits == pytest.approx([0, 0, 0, 0.25, 0.5])
    clock.now += 100
    assert [bucket.take(25, patience_s=10) for _ in range(4)] == pytest.approx([0, 0, 0, 0.25])


def test_who_has_no_patience_takes_nothing() -> None:
    bucket = TokenBucket(RATE, BURST, Clock())
    assert bucket.take(150, patience_s=10) == 0
    for _ in range(3):
        assert bucket.take(10, patience_s=0.5) is None
    assert bucket.take(10, patience_s=1.1) == pytest.approx(1.0)


def test_without_a_limit_nobody_waits() -> None:
    bucket = TokenBucket(None, 0.0, Clock())
    assert {bucket.take(1e12, patience_s=0) for _ in range(5)} == {0.0}


@given(st.lists(SEND, min_size=1, max_size=40))
def test_no_stretch_of_time_gets_more_than_the_rate(sends: list[tuple[float, float]]) -> None:
    clock = Clock()
    bucket = TokenBucket(RATE, BURST, clock)
    sent = []
    for pause, amount in sends:
        clock.now += pause
        wait = bucket.take(amount, patience_s=1e9)
        assert wait is not None
        sent.append((clock.now + wait, amount))
    assert sent == sorted(sent, key=lambda each: each[0]), "nobody overtakes"
    for first, (begin, _) in enumerate(sent):
        total = 0.0
        for end, amount in sent[first:]:
            assert total <= RATE * (end - begin) + BURST + 1e-6
            total += amount
