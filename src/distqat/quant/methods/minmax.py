"""`minmax`: the largest value is the largest code; nothing is learned.

A weight's step follows the weight at every step of training. An activation's is what calibration saw.
"""

from __future__ import annotations

from torch import Tensor

from distqat.quant.fake_quantize import fake_quantize
from distqat.quant.methods.method import QuantizerGrid


class MinMaxMethod:
    """Straight-through gradients for the tensor, none for the step."""

    quantizes, learns_step, has_offset, follows_weight = True, False, False, True

    def fake_quantize(
        self, x: Tensor, log_step: Tensor, offset: Tensor | None, grid: QuantizerGrid
    ) -> Tensor:
        """Rounded and clamped."""
        return fake_quantize(
            x,
            log_step.detach(),
            grid.qmin,
            grid.qmax,
            axis=grid.axis,
            gradient_scale=0.0,
            compiled=grid.compiled,
        )


METHOD = MinMaxMethod()
