"""What became of the inner steps of one replica: how many, with how many samples, and how long they took."""

from __future__ import annotations

from statistics import median
from typing import Literal

StepOutcome = Literal["applied", "skipped", "frozen", "calibrated"]
"""By the optimizer; after an overflow; in a step that trained other stages; while quantizers calibrate."""
TIMES_KEPT = 32


class StepTally:
    """Counts since the server began. `samples` are those of applied steps."""

    def __init__(self) -> None:
        self.counts = {"applied": 0, "skipped": 0, "frozen": 0, "aborted": 0}
        self.samples = 0
        self.step_seconds: list[float] = []
        """Of the last applied steps; each with the frozen steps that came before it."""
        self._frozen_s = 0.0

    @property
    def median_s(self) -> float:
        """Median of the last applied steps in seconds; 0 before the first."""
        return median(self.step_seconds or [0.0])

    def ended(self, outcome: StepOutcome, samples: int, seconds: float) -> None:
        """A step that took `seconds` is over. Calibration counts for nothing."""
        if outcome == "calibrated":
            return
        self.counts[outcome] += 1
        if outcome == "frozen":
            self._frozen_s += seconds
        elif outcome == "applied":
            self.samples += samples
            self.step_seconds = [*self.step_seconds[1 - TIMES_KEPT :], seconds + self._frozen_s]
            self._frozen_s = 0.0
