"""What a replica holds of the attempt at a step that it is working on."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

Named = dict[str, Tensor]


@dataclass(frozen=True)
class MicrobatchWeight:
    """How a microbatch counts: its share of the batch, and the loss scale of the step."""

    share: float = 1.0
    scale: float = 1.0


@dataclass
class MicrobatchGraph:
    """One microbatch between its forward and its backward pass."""

    inputs: Named
    outputs: Named
    auxiliary: Tensor | None = None  # the stage's own loss of it


@dataclass(frozen=True)
class PreparedStep:
    """Answer to a prepare: microbatches counted, and the gradient's norm per parameter (float32, scaled)."""

    count: int
    norms: Tensor


@dataclass
class StepAttempt:
    """What one attempt has done so far here, and the buffers from before it."""

    seed: str
    buffers: Named
    calibrates: bool  # whether its quantizers were calibrating when it began
    frozen: bool = False
    measures: bool = False  # weights stand, here and in the stages before; False once one of those moves
    held: list[nn.Parameter] = field(default_factory=list)  # parameters without gradients for this attempt
    graphs: dict[int, MicrobatchGraph] = field(default_factory=dict)
    done: int = 0
