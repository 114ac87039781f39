"""Small measures. The clock is handed in, so that tests need none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Rate:
    """Things per second as a moving average over the time spent, not over the number of reports."""

    def __init__(self, window_s: float = 30.0) -> None:
        """`window_s`: after this much time an old value weighs half."""
        self._window_s = window_s
        self._amount = 0.0
        self._seconds = 0.0

    def add(self, amount: float, seconds: float) -> float:
        """Count `amount` things that took `seconds`; returns the rate now."""
        keep = 0.5 ** (max(seconds, 0.0) / self._window_s)
        self._amount = keep * self._amount + amount
        self._seconds = keep * self._seconds + max(seconds, 0.0)
        return self.value

    @property
    def value(self) -> float:
        """0.0 before anything was counted."""
        return self._amount / self._seconds if self._seconds > 0 else 0.0


class Busy:
    """How one thread spends its time: named activities, and `idle` for the rest. They do not overlap."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._began = clock()
        self._spent: dict[str, float] = {}

    @contextmanager
    def doing(self, activity: str) -> Iterator[None]:
        """Count the time of the block, also when it raises."""
        began = self._clock()
        try:
            yield
        finally:
            self._spent[activity] = self._spent.get(activity, 0.0) + self._clock() - began

    def seconds(self) -> dict[str, float]:
        """Seconds per activity since the last reset, `idle` among them."""
        idle = max(0.0, self._clock() - self._began - sum(self._spent.values()))
        return {**self._spent, "idle": idle}

    def shares(self) -> dict[str, float]:
        """The same as shares of 1; all idle where no time has passed."""
        seconds = self.seconds()
        total = sum(seconds.values())
        return {name: each / total for name, each in seconds.items()} if total > 0 else {"idle": 1.0}

    def reset(self) -> None:
        """Begin a new period."""
        self._began, self._spent = self._clock(), {}
