"""Whether the loss jumps when a run goes into its next phase: the run says so, and goes on."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Any

from distqat.metrics import Sink
from distqat.process import notice
from distqat.protocol.calls.step_calls import StageStanding
from distqat.quant.quant_schedule import PHASES

WINDOW = 10
"""Batches before the change, and after it at most, that are compared."""
FEWEST, ENOUGH = 3, 5
"""After the first so many a jump is believed, after the second that there is none."""
SPREADS = 4.0
"""A rise is one where it is more than so many standard deviations of the losses before."""
SETTLED = 2 * WINDOW
"""After so many batches the loss has come down again that rises where a model becomes quantized."""
_QUANTIZED = PHASES[1]  # the phase that follows training in float


@dataclass(frozen=True)
class PhaseChange:
    """Mean losses on both sides of a change; `jumped`: the later is out of all proportion."""

    phase: str
    step: int
    before: float
    after: float
    jumped: bool

    def record(self) -> dict[str, Any]:
        """For the metrics."""
        told = {"phase": self.phase, "step": self.step, "jumped": self.jumped}
        return {"event": "phase", **told, "loss_before": self.before, "loss_after": self.after}

    def sentence(self) -> str:
        """For the person at the terminal, where it jumped."""
        rose = f"the loss rose from {self.before:.3g} to {self.after:.3g}"
        if self.phase == _QUANTIZED:
            return (
                f"{rose} when the model was quantized, at step {self.step}, and stays there: more than half "
                "of what it had learned in float is lost; give it more bits (quant.weight.bits, "
                "quant.activation.bits) or more steps quantized (a smaller quant.warmup.float_share)"
            )
        return (
            f"{rose} at step {self.step}, where the run's "
            f"next phase begins: {self.phase}; quant.warmup.freeze_bn_last: 0 trains without that phase, and "
            "diloco.lr_schedule: cosine makes steps small before it"
        )


class LossWatch:
    """Follows the losses of one trainer. Phases only go forward.

    Where a model becomes quantized its loss rises, at few bits by a multiple, and is trained down again. What
    counts is where it has settled, against all that had been learned.
    """

    def __init__(self) -> None:
        self._first: list[float] = []  # of the whole run
        self._phase = 0
        self._before: list[float] = []  # the last of the phases before
        self._losses: list[float] = []  # of this phase
        self._began = 0
        self._told = True

    def add(self, loss: float, phase: str, step: int) -> PhaseChange | None:
        """The loss of batch `step`, trained in `phase`; what there is to say of the last change, once."""
        number = PHASES.index(phase)
        if number > self._phase:
            known = [*self._before, *self._losses][-WINDOW:]
            self._phase, self._before, self._losses = number, known, []
            self._began, self._told = step, len(known) < FEWEST
        if math.isfinite(loss):
            self._losses = [*self._losses, loss][-WINDOW:]
            self._first = [*self._first, loss][:FEWEST]
        if self._told or len(self._losses) < FEWEST:
            return None
        before, after = fmean(self._before), fmean(self._losses)
        rise, noise = after - before, SPREADS * pstdev(self._before)
        if PHASES[self._phase] == _QUANTIZED:
            if step - self._began < SETTLED:
                return None
            jumped = rise > max(noise, abs(before) / 2, (fmean(self._first) - before) / 2)
        else:
            jumped = rise > max(noise, abs(before))
            if not jumped and len(self._losses) < ENOUGH:
                return None
        self._told = True
        return PhaseChange(PHASES[self._phase], self._began, before, after, jumped)


def phase_of(standing: Iterable[StageStanding]) -> str:
    """The phase of the next step by what stages said at their commits: that of the furthest."""
    told = [each.phase for each in standing]
    return max((phase for phase in told if phase in PHASES), key=PHASES.index, default=PHASES[0])


def tell(change: PhaseChange | None, sink: Sink, pipeline: int) -> None:
    """The metrics of a change, and the person at the terminal of one that made the loss jump."""
    if change is not None:
        sink.write({**change.record(), "pipeline": pipeline})
        if change.jumped:
            notice(change.sentence())
