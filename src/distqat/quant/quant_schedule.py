"""What changes over a run: it trains in float, then quantized; near the end quantizers' steps stand, then
weights, and BatchNorm is measured.

    in float | training ... | steps are frozen, biases snap | weights stand: BatchNorm is measured |
             ^ float_share  ^ 1 - freeze_bn_last / 2        ^ the last round                   end ^

Quantizers appear at the end of a round, in all replicas at once (docs/decisions/0036-float-first.md).

A folded BatchNorm is a constant of the integer model, and running averages are bad constants: they lag
behind weights that move fast, and after a round they are those of the replicas' weights, while the weights
are an extrapolation of them. Training on with constants is worse. Without the normalisation a step of the
same rate moves what the layers behind get by as much as it likes, and directions that the norm had cancelled
(the bias in front of it) have hardly any second moment in Adam, so that they begin with up to six times the
rate (docs/decisions/0032-statistics-of-the-last-weights.md). So norms follow their batches as long as
anything is trained. In the last round nothing is (the one before takes the steps of both): every replica has
the weights of the round before, and the statistics that stay are the plain mean over all batches of all
replicas (arXiv:2105.07576, section 3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from distqat.diloco.options import DilocoOptions
from distqat.quant.batchnorm_statistics import tracked_norms
from distqat.quant.options import WarmupOptions
from distqat.quant.quantizer_states import quantizers

FEWEST_ROUNDS = 4
"""A run of fewer rounds averages after each, and does without: two of them become one."""

_OWN_MOMENTUM = "_own_momentum"


@dataclass(frozen=True)
class ScheduleMoment:
    """What holds at one step of a run."""

    steps_frozen: bool = False
    measuring: bool = False
    """Weights stand, and BatchNorm takes the mean over all batches since they do."""
    in_float: bool = False
    """Quantizers have still to appear."""

    @property
    def phase(self) -> str:
        """For people: what of the run this is."""
        if self.in_float:
            return PHASES[0]
        return PHASES[3 if self.measuring else 2 if self.steps_frozen else 1]


PHASES = ("training in float", "training", "steps are frozen", "statistics are measured")
"""In their order."""


def measures(outer_steps: int, warmup: WarmupOptions) -> bool:
    """Whether a run with so many rounds measures statistics in its last one, if it has any."""
    return warmup.freeze_bn_last > 0 and outer_steps >= FEWEST_ROUNDS


def float_rounds(diloco: DilocoOptions, warmup: WarmupOptions) -> int:
    """How many rounds of a run train in float; the last of them ends with quantizers in all replicas.

    `float_share` of them, to the nearest, but steps learn for one round at least before they are frozen. 0:
    quantizers are calibrated before the first step.
    """
    rounds = diloco.outer_steps
    frozen = -(
        -_frozen_from(diloco.total_steps, warmup) // diloco.inner_steps
    )  # the round that freezes steps
    if measures(rounds, warmup):
        frozen = min(frozen, rounds - 1)
    return max(0, min(math.floor(rounds * (warmup.float_share or 0.0) + 0.5), frozen - 1))


def moment(
    step: int, total_steps: int, warmup: WarmupOptions, *, measuring: bool = False, in_float: bool = False
) -> ScheduleMoment:
    """The moment of optimizer step `step` (from 0) of `total_steps`."""
    return ScheduleMoment(measuring or step >= _frozen_from(total_steps, warmup), measuring, in_float)


def _frozen_from(total_steps: int, warmup: WarmupOptions) -> int:
    return total_steps - math.floor(total_steps * warmup.freeze_bn_last) // 2


def apply(module: nn.Module, now: ScheduleMoment) -> None:
    """Put BatchNorms and quantizers of a stage into the state of this moment.

    Called before every step: who joins late, or goes on from a checkpoint, is then where the others are.
    Quantizers only go forward; those that still calibrate, or wait for values, stay.
    """
    for _, norm in tracked_norms(module):
        momentum = norm.__dict__.setdefault(_OWN_MOMENTUM, norm.momentum)
        norm.momentum = None if now.measuring else momentum  # None: the mean over all that are counted
    if now.steps_frozen:
        for _, quantizer in quantizers(module):
            if quantizer.state == "active":
                quantizer.freeze()
