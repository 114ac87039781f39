"""`lsq+`: a learned offset beside the learned step (arXiv:2004.09576), for GELU and SiLU.

Such tensors reach -0.17 or -0.28 below zero and far above, so symmetric codes waste half of the range. The
paper quantizes (x - offset) / step; here the offset is rounded to a code, so zero is one (padding stays
exact) and an integer runtime takes it as the zero point.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distqat.quant.fake_quantize import fake_quantize, step_size
from distqat.quant.methods.method import QuantizerGrid


class LsqPlusMethod:
    """Step and offset learn; per tensor only."""

    quantizes, learns_step, has_offset, follows_weight = True, True, True, False

    def fake_quantize(
        self, x: Tensor, log_step: Tensor, offset: Tensor | None, grid: QuantizerGrid
    ) -> Tensor:
        """As `lsq` on the shifted range; the offset gets the gradient of what is clipped (equation 7)."""
        assert offset is not None
        y = fake_quantize(
            x,
            log_step,
            grid.qmin,
            grid.qmax,
            axis=None,
            gradient_scale=grid.gradient_scale,
            compiled=grid.compiled,
        )
        moved: Tensor = _Shift.apply(y, x, log_step.detach(), offset, grid)  # type: ignore[no-untyped-call]
        return moved


class _Shift(torch.autograd.Function):
    """y as it is; d/d offset is 1 where x is outside of the range, else 0."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, x: Tensor, log_step: Tensor, offset: Tensor, grid: QuantizerGrid
    ) -> Tensor:
        ctx.save_for_backward(x, log_step)
        ctx.grid = grid
        return y.view_as(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, log_step = ctx.saved_tensors
        codes = x / step_size(log_step)
        outside = (codes < ctx.grid.qmin) | (codes > ctx.grid.qmax)
        of_offset = (grad.float() * outside).sum() * ctx.grid.gradient_scale
        return grad, None, None, of_offset, None


METHOD = LsqPlusMethod()
