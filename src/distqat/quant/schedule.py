"""What changes towards the end of a run: BatchNorm settles and stops moving, then steps are frozen.

    ... | settling: mean of the last batches | statistics stand | and so do steps; biases snap |
        ^ calibrate_batches steps earlier    ^ 1 - share        ^ 1 - share / 2            end ^

A folded BatchNorm is a constant of the integer model, so the last part trains with it as a constant. The
statistics that stay are recalibrated just before: a plain mean over batches of nearly the final weights, in
place of an average that decays over ten of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from distqat.quant.options import WarmupOptions
from distqat.quant.states import quantizers

_OWN_MOMENTUM = "_own_momentum"


@dataclass(frozen=True)
class Moment:
    """What holds at one step of a run."""

    settling: int | None = None
    """Batches (from 0) since BatchNorm began to take a plain mean; None: not yet, or over."""
    norms_frozen: bool = False
    steps_frozen: bool = False


def moment(step: int, total_steps: int, warmup: WarmupOptions) -> Moment:
    """The moment of optimizer step `step` (from 0) of `total_steps`."""
    last = math.floor(total_steps * warmup.freeze_bn_last)
    norms_from, steps_from = total_steps - last, total_steps - last // 2
    settled = step - (norms_from - warmup.calibrate_batches)
    settles = last > 0 and step < norms_from and settled >= 0
    return Moment(
        settling=settled if settles else None,
        norms_frozen=step >= norms_from,
        steps_frozen=step >= steps_from,
    )


def apply(module: nn.Module, now: Moment) -> None:
    """Put BatchNorms and quantizers of a stage in training mode into the state of this moment.

    Called before every step: who joins late, or goes on from a checkpoint, is then where the others are.
    Quantizers only go forward; those that still calibrate stay. Without quantizers nothing happens.
    """
    own = [quantizer for _, quantizer in quantizers(module)]
    if not own:
        return
    for child in module.modules():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            momentum = child.__dict__.setdefault(_OWN_MOMENTUM, child.momentum)
            child.momentum = momentum if now.settling is None else 1 / (now.settling + 1)
            child.train(module.training and not now.norms_frozen)
    if now.steps_frozen:
        for quantizer in own:
            if quantizer.state == "active":
                quantizer.freeze()
