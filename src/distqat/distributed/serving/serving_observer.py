"""What the steps and the rounds of a replica tell, and ask, the server that holds it."""

from __future__ import annotations

from typing import Any

from distqat.distributed.serving.step_tally import StepOutcome
from distqat.protocol.calls.step_calls import StageStanding
from distqat.protocol.step_attempts import StepId


class ServingObserver:
    """Given to a `StepService` and a `RoundMember` when they are made; as it stands, it ignores all events.

    All methods are called on the event loop and return at once.
    """

    def admit(self) -> None:
        """Raises Refused unless an inner step may begin now."""

    def standing(self, step: int) -> StageStanding:
        """What a trainer hears when inner step `step` is applied."""
        return StageStanding(step)

    def step_ended(self, id: StepId, outcome: StepOutcome, samples: int, mark: str) -> None:
        """A step is over and was not aborted; its trainer has not heard of it yet.

        Args:
            samples: how many the step trained on; they count when the outcome is `applied`.
            mark: name of the checkpoint step, if this is one; otherwise "".
        """

    def round_ended(self, record: dict[str, Any]) -> None:
        """A round that the replica took part in was committed or discarded, as `record` says."""
