"""How a prepared stage ends a step whose trainer it cannot hear: the first stage within reach decides.

A trainer commits at the first stage of its route before anywhere else, so what stands there is the outcome:

- Trainer dead or cut off before the first stage recorded the commit: nothing is committed anywhere. The first
  stage aborts by itself (link gone, or silent for a lease), for good: a later commit is refused there, so the
  trainer, should it live, hears of it before it commits anywhere else. The others ask and abort.
- After that: the others ask and commit, whether the trainer reached them or not.
- The first stage dead, before or after its decision: its weights are gone, so either outcome is right if all
  the others share it. The next stage of the route takes its place: the trainer commits there before it goes
  on, and whoever asks follows the first stage of the route that answers.
- The trainer cannot reach the first stage, but others may: its commit is then *unconfirmed*. Who gets one
  asks the stages before it first and takes the trainer's word only if none of them can be reached.
- Nobody before it can be reached and there is no word: ask some more times, then abort. A stage that is cut
  off from its trainer and from its whole route for so long counts as lost, like one that died.

A `PreparedOutcome` is pure; the shell asks everybody on the route and obeys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from distqat.protocol.step_attempts import Verdict

Conclusion = Literal["commit", "abort", "wait"]
TRIES = 3  # how often a stage that hears nobody asks before it is on its own
ASK_AGAIN_S = 1.0


@dataclass
class PreparedOutcome:
    """Of one attempt, at the stage that is number `position` on its route."""

    position: int
    told: bool = False  # an unconfirmed commit came
    unheard: int = 0

    def conclude(self, answers: Sequence[Verdict]) -> Conclusion:
        """What follows from one round of questions.

        Args:
            answers: of all stages of the route in their order, `unknown` where none came; our own is ignored.
        """
        others = [answer for i, answer in enumerate(answers) if i != self.position]
        if "committed" in others:
            return "commit"
        if "aborted" in others:
            return "abort"
        if "undecided" in others[: self.position]:  # it hears the trainer, or will decide by itself
            self.unheard = 0
            return "wait"
        if self.told:
            return "commit"
        self.unheard += 1
        return "wait" if self.position and self.unheard < TRIES else "abort"
