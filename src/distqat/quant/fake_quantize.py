"""Fake quantization with a learned step (LSQ, Esser et al., arXiv:1902.08153), in the logarithm of the step.

    t = x / step;  y = step * clamp(round(t), qmin, qmax)
    dy/dx    = 1 where qmin <= t <= qmax, else 0                                     (equation 5)
    dy/dstep = round(t) - t inside, qmin below, qmax above                           (equation 3)
    dy/dlog(step) = step * dy/dstep = y - x * dy/dx

The last line needs no division and holds inside and outside, so the gradient of log(step) is
sum(g * y) - sum(gx * x), with gx the gradient of x that is computed anyway. It is multiplied by the paper's
1 / sqrt(N * qmax) (section 2.2). torch's own fused operators take ten times as long on a CPU (no SIMD).
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LOG_STEP_BOUND = 64.0
"""|log(step)| beyond this counts as this, so neither the step nor its inverse ever leaves float32."""

EDGE, TINY = 1 + 1e-6, 1e-30
"""Widen the range so that a value on an outermost code (zero included) is inside, however x / step rounds."""


def step_size(log_step: Tensor) -> Tensor:
    """The step, always positive and finite if `log_step` is not NaN."""
    return log_step.clamp(-LOG_STEP_BOUND, LOG_STEP_BOUND).exp()


def fake_quantize(
    x: Tensor,
    log_step: Tensor,
    qmin: int,
    qmax: int,
    *,
    axis: int | None,
    gradient_scale: float,
    compiled: bool = False,
) -> Tensor:
    """`x` rounded to step * {qmin..qmax}; same shape and dtype, straight-through gradient.

    `log_step` is a scalar (axis None) or has one entry per index of `axis`; its gradient is multiplied
    by `gradient_scale`. Quantizing the result again changes nothing (in float32 and float64).
    `compiled`: torch.compile makes one kernel of each direction; on a CPU it needs a C++ compiler.
    """
    y: Tensor = _FakeQuantize.apply(x, log_step, qmin, qmax, axis, gradient_scale, compiled)  # type: ignore[no-untyped-call]
    return y


class _FakeQuantize(torch.autograd.Function):
    """Keeps x and y only: a layer and the ReLU before it keep the same tensors, so this costs no memory."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        log_step: Tensor,
        qmin: int,
        qmax: int,
        axis: int | None,
        gradient_scale: float,
        compiled: bool,
    ) -> Tensor:
        step = step_size(log_step)
        inverse = step.reciprocal()
        aligned = _aligned(step, x.dim(), axis), _aligned(inverse, x.dim(), axis)
        y: Tensor
        if compiled:
            y = _fused(_rounded, x.device.type)(_wide(x).detach(), *aligned, qmin, qmax)
        else:
            y = _rounded(_wide(x), *aligned, qmin, qmax)
        y = y if y.dtype == x.dtype else y.to(x.dtype)
        ctx.save_for_backward(x, y, log_step)
        ctx.axis, ctx.gradient_scale, ctx.compiled = axis, gradient_scale, compiled
        ctx.range = qmin * EDGE - TINY, qmax * EDGE  # of x * scale
        ctx.scale = inverse
        if axis is None and x.device.type == "cpu" and not compiled:
            # The same of x: a pass less, but a wait on a GPU; a compiled kernel takes the pass with it.
            size = float(step)
            ctx.range, ctx.scale = (ctx.range[0] * size, ctx.range[1] * size), None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y, log_step = ctx.saved_tensors
        learns = ctx.needs_input_grad[1]
        scale = None if ctx.scale is None else _aligned(ctx.scale, x.dim(), ctx.axis)
        if ctx.compiled:
            wide = (_wide(each).detach() for each in (grad, x, y))
            grad_x, grad_step = _fused(_gradients, x.device.type)(*wide, scale, ctx.range, learns)
        else:
            grad_x, grad_step = _gradients(_wide(grad), _wide(x), _wide(y), scale, ctx.range, learns)
        if grad_step is not None:
            grad_step = (grad_step * ctx.gradient_scale).to(log_step.dtype).view(log_step.shape)
        if not ctx.needs_input_grad[0]:
            return None, grad_step, None, None, None, None, None
        grad_x = grad_x if grad_x.dtype == x.dtype else grad_x.to(x.dtype)
        return grad_x, grad_step, None, None, None, None, None


def _rounded(x: Tensor, step: Tensor, inverse: Tensor, qmin: int, qmax: int) -> Tensor:
    y: Tensor = (x * inverse).round_().clamp_(qmin, qmax).mul_(step)
    return y


def _gradients(
    grad: Tensor, x: Tensor, y: Tensor, scale: Tensor | None, bounds: tuple[float, float], learns: bool
) -> tuple[Tensor, Tensor | None]:
    """(gradient of x, that of log(step) before its scale); `scale` None: `bounds` are those of x itself."""
    place = x if scale is None else x * scale
    grad_x = torch.ops.aten.hardtanh_backward(grad, place, *bounds)
    if not learns:
        return grad_x, None
    if scale is None or scale.dim() == 0:
        return grad_x, _dot(grad, y) - _dot(grad_x, x)
    return grad_x, (grad * y).addcmul_(grad_x, x, value=-1).sum_to_size(scale.shape)


def _fused(function: Callable[..., Any], device_type: str) -> Callable[..., Any]:
    """`function` as one compiled kernel; itself, after a warning, where torch.compile finds no compiler.

    It is given detached tensors: torch.compile makes a kernel of its own for each shape of a Parameter.
    """
    program = os.environ.get("CXX", "g++")  # as torch's inductor chooses it
    return _compiled(function, program if device_type == "cpu" else None)


@cache
def _compiled(function: Callable[..., Any], program: str | None) -> Callable[..., Any]:
    if program is not None and shutil.which(program) is None:
        warnings.warn(f"quant.compile: there is no C++ compiler {program!r} (CXX); stays eager", stacklevel=3)
        return function
    return torch.compile(function, dynamic=True)


def _wide(x: Tensor) -> Tensor:
    """At least float32: 8-bit codes times a step do not fit into 16-bit floats."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _aligned(step: Tensor, dims: int, axis: int | None) -> Tensor:
    """One step per index of `axis`, shaped to broadcast against a tensor of `dims` dimensions."""
    if axis is None:
        return step
    return step.view([-1 if dim == axis else 1 for dim in range(dims)])


def _dot(a: Tensor, b: Tensor) -> Tensor:
    if a.is_contiguous() and b.is_contiguous():  # one pass, nothing written
        return torch.dot(a.view(-1), b.view(-1))
    return (a * b).sum()
