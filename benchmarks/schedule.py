"""How long one inner step would take if communication were free: 1F1B over stages of known speed."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class StageSeconds:
    """Seconds of one stage: `forward` and `backward` per microbatch, `closing` per step.

    The last stage computes forward, loss and backward in one job, which stands in `forward`. `closing` is
    what a stage does when the microbatches are through: its optimizer.
    """

    forward: float
    backward: float
    closing: float


def makespan(stages: Sequence[StageSeconds], microbatches: int) -> float:
    """Seconds from the first forward to the last optimizer of one step, with free communication.

    Each stage does one job at a time, without preemption, backward before forward, microbatches in order,
    and holds at most (stages behind it) + 2 graphs, as `Steps.open` allows. No optimizer begins before the
    last gradient of the whole pipeline: the norm of all stages is known only then, and a commit cannot be
    undone. So

        makespan = (end of the last backward job) + max over stages of `closing`
    """
    line = _Line(stages, microbatches)
    while line.running:
        line.finish_next()
    return line.now + max(stage.closing for stage in stages)


class _Line:
    """The jobs of one step as events in time."""

    def __init__(self, stages: Sequence[StageSeconds], microbatches: int) -> None:
        self.now = 0.0
        self.running: list[tuple[float, int, bool]] = []  # end, stage, whether it is a backward job
        self._stages = stages
        self._last = len(stages) - 1
        self._forward = [deque[int]() for _ in stages]
        self._backward = [deque[int]() for _ in stages]
        self._job: list[int | None] = [None] * len(stages)
        self._held = [0] * len(stages)
        self._forward[0].extend(range(microbatches))
        self._start(0)

    def finish_next(self) -> None:
        self.now, stage, backward = heapq.heappop(self.running)
        microbatch = self._job[stage]
        assert microbatch is not None
        self._job[stage] = None
        if not backward and stage < self._last:
            self._forward[stage + 1].append(microbatch)
            self._start(stage + 1)
        else:
            self._held[stage] -= 1
            if stage > 0:
                self._backward[stage - 1].append(microbatch)
                self._start(stage - 1)
        self._start(stage)

    def _start(self, stage: int) -> None:
        if self._job[stage] is not None:
            return
        seconds = self._stages[stage]
        if self._backward[stage]:
            self._job[stage] = self._backward[stage].popleft()
            heapq.heappush(self.running, (self.now + seconds.backward, stage, True))
        elif self._forward[stage] and self._held[stage] < self._last - stage + 2:
            self._job[stage] = self._forward[stage].popleft()
            self._held[stage] += 1
            heapq.heappush(self.running, (self.now + seconds.forward, stage, False))
