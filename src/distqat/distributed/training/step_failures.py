"""Whether the failures of a trainer's steps will go away: those that will not end the run."""

from __future__ import annotations

import math

from distqat.distributed.training.step_driver import StepResult
from distqat.errors import BadFrame, DistqatError, RemoteFault, RunFailed, SwarmError
from distqat.failures import REPEATS, Repeats
from distqat.process import notice
from distqat.topology.expert import ExpertId

SHORTAGES = 20  # memory that cannot be had may be free in a minute; each retry waits up to two seconds
SKIPS_ELSEWHERE = 5  # steps in a row that were skipped: perhaps one replica is broken
SKIPS_SAID = 10
SKIPS_END = 50  # a loss scaler that starts at 2**16 skips 17 at most
_SHORT = ("MemoryError", "OutOfMemoryError")


class StepFailures:
    """Counts what went wrong since the last step that was applied everywhere. Its methods raise RunFailed."""

    def __init__(self) -> None:
        self.skips = 0  # in a row
        self._repeats = Repeats()
        self._shortages = Repeats(SHORTAGES)
        self._reports = Repeats()

    def failed(self, error: SwarmError, step: int) -> None:
        """An attempt failed. An exception in a stage that repeats on whatever replica is the model's."""
        if not isinstance(error, RemoteFault | BadFrame):
            return
        stage = ExpertId.parse(error.at).stage if error.at else "the last stage asked"
        if isinstance(error, BadFrame):
            again = self._repeats.add((stage, error.code, _without_digits(str(error))))
            said = str(error)
        else:
            short = error.kind in _SHORT or "allocate memory" in error.said
            counted = self._shortages if short else self._repeats
            again = counted.add((stage, error.kind, error.place))
            said = error.said
        if again:
            raise RunFailed(f"step {step} fails at stage {stage} in the same way at every attempt: {said}")

    def report_failed(self, error: SwarmError) -> None:
        """The client met an exception in the report of a step."""
        if isinstance(error, RemoteFault) and self._reports.add((error.kind, error.place)):
            raise RunFailed(f"the client fails in the same way at every report of a step: {error.said}")

    def committed(self, result: StepResult, step: int) -> None:
        """A step was committed; it may have been skipped, or not applied at a stage."""
        for error in result.faults:
            self.failed(error, step)
        bad = result.skipped or not math.isfinite(result.loss)
        self.skips = self.skips + 1 if bad else 0
        if not bad and not result.lost:
            self._repeats.clear()
            self._shortages.clear()
        if self.skips == SKIPS_SAID:
            notice(self._sentence(result, step))
        if self.skips >= SKIPS_END:
            raise RunFailed(self._sentence(result, step))

    @property
    def look_elsewhere(self) -> bool:
        """Whether the replicas of the route should be left alone for a while, if there are others."""
        return self.skips > 0 and self.skips % SKIPS_ELSEWHERE == 0

    def _sentence(self, result: StepResult, step: int) -> str:
        where = f" at stage {', '.join(result.not_finite)}" if result.not_finite else ""
        what = "the loss" if not math.isfinite(result.loss) else "a gradient"
        return (
            f"the last {self.skips} steps, up to step {step}, changed nothing: {what} is not finite{where} "
            f"(loss {result.loss:g}); lower the learning rate, set diloco.max_grad_norm, or look for values "
            "in the data that are not finite"
        )


class BatchFailures:
    """Counts failed requests for a batch since the last one that came."""

    def __init__(self) -> None:
        self._repeats = Repeats()

    def failed(self, error: DistqatError) -> None:
        """Raises RunFailed when the data cannot be read in the same way again and again."""
        if self._repeats.add((type(error), str(error))):
            raise RunFailed(f"no batch can be made of the data, {REPEATS} times alike: {error}") from error

    def succeeded(self) -> None:
        """A batch came."""
        self._repeats.clear()


def _without_digits(text: str) -> str:
    return "".join(letter for letter in text if not letter.isdigit())
