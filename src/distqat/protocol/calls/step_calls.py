"""The calls of one inner step, from a trainer to the stages of its route and from stage to stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from distqat.errors import Busy, Refused, StageUnavailable, StaleAttempt
from distqat.protocol.call_schema import FLAT, SERVER, Call, Count, Name, Positive
from distqat.protocol.hop import Hop
from distqat.protocol.step_attempts import StepId, Verdict

AttemptId = Annotated[StepId, FLAT]


@dataclass(frozen=True)
class Done:
    """It is done; there is nothing more to say."""


@dataclass(frozen=True)
class StepOpened:
    """The attempt holds the step lock of this replica."""

    calibrating: bool  # its quantizers still have to see batches


@dataclass(frozen=True)
class OpenStep(
    Call[StepOpened],
    method="open",
    served_by=(SERVER,),
    raises=(StaleAttempt, Busy, Refused, StageUnavailable),
):
    """Wait for the step lock of a replica. Trainers take the locks in stage order, so none can deadlock."""

    id: AttemptId
    route: tuple[Hop, ...]
    microbatches: Count  # 0: as many as come before `prepare`
    train: bool  # false: quantizers calibrate, and nothing is trained
    draw: Name = ""  # seeds dropout; empty: the trainer and the step do
    frozen: tuple[Name, ...] = ()  # UIDs of stages that take part and stay as they are


@dataclass(frozen=True)
class MicrobatchScores:
    """What the last stage made of a microbatch."""

    scores: Mapping[str, float]  # `loss` and what the task counts, summed over the pipeline's stages


@dataclass(frozen=True)
class TrainMicrobatch(
    Call[MicrobatchScores],
    method="train",
    served_by=(SERVER,),
    tensors=(
        "inputs of the stage, by name; those of its teacher as `teacher.NAME`",
        "gradients of those that want one",
    ),
    raises=(StaleAttempt,),
):
    """Forward and backward of one microbatch through this stage and, in nested calls, all behind it."""

    id: AttemptId
    microbatch: Count
    share: Positive  # of the samples of the step
    scale: Positive  # of the loss
    budget: Positive  # seconds for this call
    stands: bool = False  # no weights up to here move any more


@dataclass(frozen=True)
class SendLabels(
    Call[Done], method="labels", served_by=(SERVER,), tensors=("labels, by name", ""), raises=(StaleAttempt,)
):
    """Labels of a microbatch, from the trainer straight to the last stage."""

    id: AttemptId
    microbatch: Count


@dataclass(frozen=True)
class OwnLosses:
    """What stages add to the loss themselves."""

    auxiliary_loss: float  # summed over this stage and all behind it


@dataclass(frozen=True)
class ForwardMicrobatch(
    Call[OwnLosses],
    method="forward",
    served_by=(SERVER,),
    tensors=("inputs of the stage, by name", "outputs of the last stage"),
    raises=(StaleAttempt,),
):
    """Forward through this stage and those behind it; the graph stays until `backward`."""

    id: AttemptId
    microbatch: Count
    budget: Positive  # seconds for this call
    stands: bool = False  # no weights up to here move any more


@dataclass(frozen=True)
class BackwardMicrobatch(
    Call[Done],
    method="backward",
    served_by=(SERVER,),
    tensors=("gradients of the last stage's outputs", "gradients of this stage's inputs"),
    raises=(StaleAttempt,),
):
    """Backward of a microbatch that went forward before."""

    id: AttemptId
    microbatch: Count
    budget: Positive  # seconds for this call
    auxiliary_loss: float  # gradient of the stages' own losses


@dataclass(frozen=True)
class PrepareStep(
    Call[Done],
    method="prepare",
    served_by=(SERVER,),
    tensors=("", "`norms`: the norm of every parameter's gradient, float32 [P]"),
    raises=(StaleAttempt, Refused),
):
    """All microbatches are through: from here on only a commit or an abort ends the step."""

    id: AttemptId
    microbatches: Count


@dataclass(frozen=True)
class CommitTerms:
    """How a step is applied."""

    samples: Count
    skip: bool  # a gradient was not finite: nothing is applied
    factor: Positive  # what gradients are multiplied with: unscaling and clipping in one
    mark: Name = ""  # name of the checkpoint step that this is


@dataclass(frozen=True)
class DecideStep(Call[Done], method="decide", served_by=(SERVER,), raises=(StaleAttempt, Refused)):
    """Record that the step is committed, and begin to apply it. Answered before it is applied."""

    id: AttemptId
    terms: Annotated[CommitTerms, FLAT]
    unconfirmed: bool = False  # the trainer could not reach the stages before this one


@dataclass(frozen=True)
class StageStanding:
    """What a stage says of itself when a step is applied."""

    step: Count
    saved: Name = ""  # the newest checkpoint step that is on disk
    round: Count = 0
    generation: Count = 0
    phase: Name = ""  # of the quantization schedule


@dataclass(frozen=True)
class CommitStep(Call[StageStanding], method="commit", served_by=(SERVER,), raises=(StaleAttempt, Refused)):
    """Apply the step, decided before or now; repeating it gets the same answer."""

    id: AttemptId
    terms: Annotated[CommitTerms, FLAT]
    unconfirmed: bool = False  # as in `decide`


@dataclass(frozen=True)
class AbortStep(Call[Done], method="abort", served_by=(SERVER,), raises=(StaleAttempt,)):
    """Undo the attempt; repeating it changes nothing. StaleAttempt: it is committed here."""

    id: AttemptId


@dataclass(frozen=True)
class AttemptOutcome:
    """What became of an attempt here. An ending binds: no other follows it."""

    verdict: Verdict
    commit: CommitTerms | None = None  # of a committed one, and of no other

    def __post_init__(self) -> None:
        if (self.verdict == "committed") != (self.commit is not None):
            raise ValueError(f"an outcome that is {self.verdict} has commit {self.commit}")


@dataclass(frozen=True)
class AskOutcome(Call[AttemptOutcome], method="outcome", served_by=(SERVER,)):
    """Ask a stage what became of an attempt; answered at once."""

    id: AttemptId


@dataclass(frozen=True)
class EvaluateBatch(
    Call[Done],
    method="evaluate",
    served_by=(SERVER,),
    tensors=("inputs of the stage, by name", "outputs of the last stage"),
):
    """Forward in eval mode through this stage and those behind it, outside any step."""

    route: tuple[Hop, ...]  # the stages behind this one
    budget: Positive  # seconds for this call
