"""The account of samples: given out, given back, consumed. Each is consumed once per epoch.

No IO and no clock: the data server feeds it events and asks it for positions.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from distqat.data.source import Item, parse_place
from distqat.errors import DataError

Place = tuple[int, int]


class Spans:
    """A set of indices of one epoch as sorted, disjoint half-open spans."""

    def __init__(self, spans: Iterable[tuple[int, int]] = ()) -> None:
        self._spans: list[tuple[int, int]] = []
        for start, stop in spans:
            self.add(start, stop)

    def add(self, start: int, stop: int) -> None:
        """Add [start, stop), merging with what it touches."""
        first = bisect.bisect_left(self._spans, start, key=lambda span: span[1])
        last = bisect.bisect_right(self._spans, stop, key=lambda span: span[0])
        if first < last:
            start, stop = min(start, self._spans[first][0]), max(stop, self._spans[last - 1][1])
        self._spans[first:last] = [(start, stop)]

    def __contains__(self, index: int) -> bool:
        at = bisect.bisect_right(self._spans, index, key=lambda span: span[0]) - 1
        return at >= 0 and index < self._spans[at][1]

    def from_(self, low: int) -> list[tuple[int, int]]:
        """The spans at or above `low`."""
        return [(max(start, low), stop) for start, stop in self._spans if stop > low]


class SampleLedger:
    """Which samples are out, which came back, which are done.

    An item is in one of four states: not drawn, returned (drawn and waiting here), out, consumed.
    """

    def __init__(self) -> None:
        self._returned: list[Item] = []  # by place, lowest first
        self._out: set[Place] = set()
        self._done: dict[int, Spans] = {}
        self._epoch = 0  # of the newest item drawn; the source never goes back behind it

    @property
    def lowest_returned(self) -> Place | None:
        """The place of the first sample that waits here; it goes out before any later one."""
        return self._returned[0].place if self._returned else None

    def take_returned(self, count: int) -> list[Item]:
        """Up to `count` items that came back, lowest place first; they are out from now on."""
        taken, self._returned = self._returned[:count], self._returned[count:]
        self._out.update(item.place for item in taken)
        return taken

    def admit(self, items: Sequence[Item]) -> list[Item]:
        """Items fresh from the source; returns those not consumed before a restore, which are out now."""
        new = [item for item in items if item.index not in self._done.get(item.epoch, ())]
        self._out.update(item.place for item in new)
        self._epoch = items[-1].epoch if items else self._epoch
        return new

    def give_back(self, items: Iterable[Item]) -> None:
        """Items that were out and not consumed; they are the next to be given out."""
        for item in items:
            if item.place not in self._out:
                raise RuntimeError(f"sample {item.place} is given back but is not out")
            self._out.remove(item.place)
            bisect.insort(self._returned, item, key=lambda other: other.place)

    def consume(self, items: Iterable[Item]) -> None:
        """Items that a trainer has used; they will not be given out again in their epoch."""
        for item in items:
            if item.place not in self._out:
                raise RuntimeError(f"sample {item.place} is consumed but is not out")
            self._out.remove(item.place)
            self._done.setdefault(item.epoch, Spans()).add(item.index, item.index + 1)
        self._forget()

    def state(self, source: Mapping[str, int]) -> dict[str, Any]:
        """The position: the lowest sample not consumed, and the spans consumed above it.

        Args:
            source: the state of the source, i.e. the next item never drawn.
        """
        low = min([parse_place(source), *self._unconsumed()])
        done = [
            [epoch, start, stop]
            for epoch, spans in sorted(self._done.items())
            if epoch >= low[0]
            for start, stop in spans.from_(low[1] if epoch == low[0] else 0)
        ]
        return {"epoch": low[0], "index": low[1], "done": done}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over a position; the source must be restored to its epoch and index as well."""
        done = state.get("done", [])
        self._returned, self._out, self._done = [], set(), {}
        self._epoch = parse_place(state)[0]
        for entry in done:
            numbers = list(entry)
            if len(numbers) != 3 or not all(isinstance(n, int) and n >= 0 for n in numbers):
                raise DataError(f"a data position has spans [epoch, start, stop], not {entry!r}")
            self._done.setdefault(numbers[0], Spans()).add(numbers[1], numbers[2])

    def _unconsumed(self) -> list[Place]:
        return [*self._out, *(item.place for item in self._returned[:1])]

    def _forget(self) -> None:
        """Drop the accounts of epochs that are over: nothing of them is out or still to be drawn."""
        keep_from = min([self._epoch, *(epoch for epoch, _ in self._unconsumed())])
        for epoch in [epoch for epoch in self._done if epoch < keep_from]:
            del self._done[epoch]
