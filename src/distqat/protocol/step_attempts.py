"""Attempts at steps: their names, which of two ends the other, and which are over."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from distqat.protocol.call_schema import Bounds, Count

Verdict = Literal["committed", "aborted", "undecided", "unknown"]
"""What a replica says of an attempt. `unknown`: it never held it, forgot it, or is another process by now."""
_ENDINGS_REMEMBERED = 1024  # per replica, over all trainers
_STEPS_REMEMBERED = 16  # per trainer: far more than its steps in flight


@dataclass(frozen=True, order=True)
class StepId:
    """One attempt at one step of one life of a trainer."""

    trainer: Annotated[str, Bounds(0, 100)]
    life: Count  # of the trainer: a later one has a higher number
    step: Count
    attempt: Count

    def __str__(self) -> str:
        return f"step {self.step} attempt {self.attempt} of trainer {self.trainer} (life {self.life})"

    def supersedes(self, other: StepId) -> bool:
        """Whether this ends `other`: a later attempt at the same step, or a later life of the trainer."""
        if self.trainer != other.trainer:
            return False
        if self.life != other.life:
            return self.life > other.life
        return self.step == other.step and self.attempt > other.attempt


@dataclass
class TrainerLife:
    """What is over at this replica for one life of a trainer."""

    life: int
    committed: tuple[int, int] = (-1, -1)  # step, attempt
    closed: dict[int, int] = field(default_factory=dict)  # step -> highest attempt that is over
    oldest: int = 0  # steps below are over

    def close(self, step: int, attempt: int) -> None:
        """Attempts at `step` up to `attempt` are over."""
        if attempt < 0:
            return
        self.closed[step] = max(attempt, self.closed.get(step, -1))
        while len(self.closed) > _STEPS_REMEMBERED:
            forgotten = min(self.closed)
            del self.closed[forgotten]
            self.oldest = max(self.oldest, forgotten + 1)

    def commit(self, step: int, attempt: int) -> None:
        """`step` was applied with `attempt`: it and all steps before it are over."""
        self.committed = step, attempt
        self.closed = {other: n for other, n in self.closed.items() if other > step}

    def is_over(self, id: StepId) -> bool:
        """Whether nothing may happen for `id` any more."""
        if id.life != self.life:
            return id.life < self.life
        if id.step <= self.committed[0] or id.step < self.oldest:
            return True
        return id.attempt <= self.closed.get(id.step, -1)


class AttemptEndings:
    """How attempts ended at this replica: the last ones, each for good."""

    def __init__(self) -> None:
        self._known: dict[StepId, Verdict] = {}

    def add(self, id: StepId, ending: Verdict) -> None:
        """The first ending stands."""
        self._known.setdefault(id, ending)
        while len(self._known) > _ENDINGS_REMEMBERED:
            del self._known[next(iter(self._known))]

    def verdict(self, id: StepId) -> Verdict:
        """How the attempt ended here; `unknown` if it is not among the last ones."""
        return self._known.get(id, "unknown")
