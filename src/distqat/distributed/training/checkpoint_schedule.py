"""Checkpoint steps as a trainer marks them, and what it needs to go on from one. docs/protocol.md."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from distqat.protocol.calls.step_calls import StageStanding

PATIENCE_S = 60.0  # a stage that has not written a mark by then has died or is out of disk: mark again


@dataclass
class TrainerProgress:
    """What a trainer counts, over all its lives."""

    step: int = 0
    """Trained batches: the steps of a batch that takes several count once."""
    taken: int = 0
    """Steps by their ids, those that calibrated included."""
    samples: int = 0
    """Trained."""
    scaler: dict[str, Any] = field(default_factory=dict)

    def take(self) -> int:
        """The number of the next step."""
        self.taken += 1
        return self.taken

    def fields(self) -> dict[str, Any]:
        """As plain values, for the trainer's part of a checkpoint step."""
        return {"step": self.step, "taken": self.taken, "samples": self.samples, "scaler": self.scaler}

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> TrainerProgress:
        """From `fields()` of the last life of this pipeline's trainer; zeros where there is none."""
        step, taken, samples = (int(said.get(key, 0)) for key in ("step", "taken", "samples"))
        return cls(step, taken, samples, dict(said.get("scaler", {})))


class CheckpointSchedule:
    """Says which steps are checkpoint steps: the first after a committed round, and one every so often.

    While a stage still writes the last one no other is marked, so what is marked is complete on all stages
    unless somebody died.
    """

    def __init__(self, pipeline: int, life: int, every_s: float) -> None:
        self._name = f"{pipeline}-{life}"
        self._every_s = every_s
        self._marked_at = time.monotonic()
        self._pending = ""
        self._rounds: tuple[int, ...] = ()
        self._due = False

    def next(self, step: int) -> str:
        """The mark of a step that is about to be taken; empty for most."""
        waited = time.monotonic() - self._marked_at
        if self._pending and waited < PATIENCE_S:
            return ""
        return f"{self._name}-{step:08d}" if self._due or waited >= self._every_s else ""

    def committed(self, mark: str, standing: Iterable[StageStanding], *, told: bool) -> None:
        """A step was committed; what the stages of its route said of themselves, and whether they know it."""
        said = list(standing)
        if mark:
            self._pending, self._marked_at, self._due = mark if told else "", time.monotonic(), False
        elif self._pending and all(each.saved == self._pending for each in said):
            self._pending = ""
        rounds = tuple(each.round for each in said)
        if rounds != self._rounds:
            self._rounds, self._due = rounds, True
