"""The committed steps of one batch: one, or as many as the phases of its task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from distqat.protocol.hop import Hop
from distqat.tasks.base import Batch, Task


@dataclass(frozen=True)
class PhaseStep:
    """One committed step: its microbatches, and the stages (by position) that stay as they are in it."""

    name: str
    parts: Sequence[Batch]
    frozen: frozenset[int] = frozenset()
    number: int = 0  # among the steps of its batch
    last: bool = True  # of them

    @property
    def samples(self) -> int:
        """Samples of the batch, told once: by the first of its steps."""
        return 0 if self.number else sum(part.size for part in self.parts)

    def uids(self, route: Sequence[Hop]) -> list[str]:
        """Who on the route is frozen."""
        return [route[position].uid for position in sorted(self.frozen)]


@dataclass
class BatchTally:
    """What the steps of one batch add up to, for who is told of batches."""

    samples: int = 0
    seconds: float = 0.0
    losses: dict[str, float] = field(default_factory=dict)  # by the name of the phase

    def add(self, step: PhaseStep, loss: float, seconds: float) -> None:
        """A step is committed."""
        self.samples += step.samples
        self.seconds += seconds
        self.losses[step.name] = loss

    def fields(self) -> dict[str, float]:
        """Of a report: with phases `loss` is the sum of their losses, which stand beside it."""
        parts = {f"loss_{name}": loss for name, loss in self.losses.items() if name}
        total = {"loss": sum(self.losses.values()), "samples": self.samples, "seconds": self.seconds}
        return {**total, **parts}


def phase_steps(
    task: Task, batches: Sequence[Batch], *, stages: int, microbatches: int
) -> tuple[PhaseStep, ...]:
    """The steps for `batches` (several: their gradients are added up), each batch cut into `microbatches`.

    Raises ValueError when the task takes its batches in different phases.
    """
    phased = [task.phases(batch) for batch in batches]
    steps = []
    for number, each in enumerate(zip(*phased, strict=True)):
        phase = each[0][0]
        steps.append(
            PhaseStep(
                phase.name,
                [part for _, batch in each for part in batch.microbatches(microbatches)],
                frozenset(i for i in range(stages) if not phase.trained(i, stages)),
                number,
                number == len(phased[0]) - 1,
            )
        )
    return tuple(steps)
