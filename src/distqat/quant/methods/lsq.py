"""`lsq`: learned step size (arXiv:1902.08153); see `distqat.quant.fake_quantize` for the arithmetic."""

from __future__ import annotations

from torch import Tensor

from distqat.quant.fake_quantize import fake_quantize
from distqat.quant.methods.method import QuantizerGrid


class LsqMethod:
    """The step learns from rounding errors inside the range and from what is clipped outside."""

    quantizes, learns_step, has_offset, follows_weight = True, True, False, False

    def fake_quantize(
        self, x: Tensor, log_step: Tensor, offset: Tensor | None, grid: QuantizerGrid
    ) -> Tensor:
        """Equations 1 to 5 of the paper."""
        return fake_quantize(
            x,
            log_step,
            grid.qmin,
            grid.qmax,
            axis=grid.axis,
            gradient_scale=grid.gradient_scale,
            compiled=grid.compiled,
        )


METHOD = LsqMethod()
