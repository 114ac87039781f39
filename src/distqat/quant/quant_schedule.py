"""What changes towards the end of a run: quantizers' steps stand, then weights, and BatchNorm is measured.

    ... | steps are frozen, biases snap   | weights stand: BatchNorm's statistics are measured |
        ^ 1 - share / 2                   ^ the last round                                 end ^

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

    @property
    def phase(self) -> str:
        """For people: what of the run this is."""
        if self.measuring:
            return "statistics are measured"
        return "steps are frozen" if self.steps_frozen else "training"


PHASES = ("training", "steps are frozen", "statistics are measured")
"""In their order."""


def measures(outer_steps: int, warmup: WarmupOptions) -> bool:
    """Whether a run with so many rounds measures statistics in its last one, if it has any."""
    return warmup.freeze_bn_last > 0 and outer_steps >= FEWEST_ROUNDS


def moment(step: int, total_steps: int, warmup: WarmupOptions, *, measuring: bool = False) -> ScheduleMoment:
    """The moment of optimizer step `step` (from 0) of `total_steps`."""
    last = math.floor(total_steps * warmup.freeze_bn_last)
    return ScheduleMoment(steps_frozen=measuring or step >= total_steps - last // 2, measuring=measuring)


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
