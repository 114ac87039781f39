"""The account of samples, against a plain simulation: each consumed once per epoch, whatever happens."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distqat.data.serving.sample_ledger import SampleLedger, Spans
from distqat.data.source import Item
from distqat.errors import DataError


class Counting:
    """A source of `size` samples per epoch."""

    def __init__(self, size: int, at: tuple[int, int] = (0, 0)) -> None:
        self.size, self.at = size, at

    def take(self, count: int) -> list[Item]:
        epoch, index = self.at
        if index == self.size:
            epoch, index = epoch + 1, 0
        stop = min(self.size, index + count)
        self.at = (epoch, stop)
        return [Item(epoch, i, {}) for i in range(index, stop)]

    def state(self) -> dict[str, int]:
        return {"epoch": self.at[0], "index": self.at[1]}


def draw(ledger: SampleLedger, source: Counting, count: int) -> list[Item]:
    items = ledger.take_returned(count)
    while len(items) < count:
        items += ledger.admit(source.take(count - len(items)))
    return items


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 6)), max_size=20), st.integers(0, 40))
def test_spans_are_a_set(parts: list[tuple[int, int]], low: int) -> None:
    spans = Spans((start, start + length) for start, length in parts)
    expected = {i for start, length in parts for i in range(start, start + length)}
    assert {i for i in range(60) if i in spans} == expected
    above = spans.from_(low)
    assert {i for start, stop in above for i in range(start, stop)} == {i for i in expected if i >= low}
    assert all(a[1] < b[0] for a, b in pairwise(above))


@given(seed=st.integers(0, 10_000), size=st.integers(3, 40))
def test_each_sample_once_per_epoch_over_deaths_and_restarts(seed: int, size: int) -> None:
    chance = random.Random(seed)
    ledger, source = SampleLedger(), Counting(size)
    leases: list[list[Item]] = []
    consumed: Counter[tuple[int, int]] = Counter()
    for _ in range(120):
        event = chance.random()
        if event < 0.45 and len(leases) < 5:
            leases.append(draw(ledger, source, chance.randint(1, 7)))
        elif event < 0.75 and leases:
            items = leases.pop(chance.randrange(len(leases)))
            ledger.consume(items)
            consumed.update(item.place for item in items)
        elif event < 0.93 and leases:
            ledger.give_back(leases.pop(chance.randrange(len(leases))))
        elif event >= 0.97:  # the server dies and goes on from its position; the leases die with it
            state = ledger.state(source.state())
            ledger, source, leases = SampleLedger(), Counting(size, (state["epoch"], state["index"])), []
            ledger.restore(state)
    for items in leases:
        ledger.give_back(items)
    last = source.at[0]
    while source.at[0] <= last:
        items = draw(ledger, source, 1)
        ledger.consume(items)
        consumed.update(item.place for item in items)
    assert set(consumed.values()) == {1}
    assert {place for place in consumed if place[0] <= last} == {
        (e, i) for e in range(last + 1) for i in range(size)
    }


def test_what_came_back_goes_out_first_in_order() -> None:
    ledger, source = SampleLedger(), Counting(10)
    first, second = draw(ledger, source, 2), draw(ledger, source, 2)
    ledger.give_back(second)
    ledger.give_back(first)
    assert ledger.lowest_returned == (0, 0)
    assert [item.index for item in draw(ledger, source, 6)] == [0, 1, 2, 3, 4, 5]


def test_position_is_small_and_exact() -> None:
    ledger, source = SampleLedger(), Counting(10)
    a, b, c = (draw(ledger, source, 4) for _ in range(3))
    ledger.consume(b)
    ledger.consume(c)  # 8, 9 of the first epoch and 0, 1 of the second
    assert ledger.state(source.state()) == {"epoch": 0, "index": 0, "done": [[0, 4, 10], [1, 0, 2]]}
    ledger.consume(a)
    assert ledger.state(source.state()) == {"epoch": 1, "index": 2, "done": []}


def test_nothing_is_consumed_twice() -> None:
    ledger = SampleLedger()
    items = draw(ledger, Counting(4), 2)
    ledger.consume(items)
    for again in (ledger.consume, ledger.give_back):
        with pytest.raises(RuntimeError, match="not out"):
            again(items)


@pytest.mark.parametrize("done", [[[0, 1]], [[0, -1, 2]], [["0", 1, 2]]])
def test_positions_that_cannot_be(done: list[list[object]]) -> None:
    with pytest.raises(DataError, match="spans"):
        SampleLedger().restore({"epoch": 0, "index": 0, "done": done})
