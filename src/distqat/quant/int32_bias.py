"""The int32 grid of a bias: what the fake-quantized layer rounds to is what an exported model stores.

An integer runtime adds the bias to the accumulator, whose grid is input step times weight step. Under W4
that grid is coarse: codes of few bits are stored as multiples (7 -> 126) of a step as many times smaller,
which is the same weight and a finer grid. Where a channel's step is too small for its bias (gamma of the
folded norm near 0), it is made larger.
"""

from __future__ import annotations

import torch
from torch import Tensor

LIMIT = 2.0**30
"""An int32 bias stays below this, and the accumulator below 2**31."""


def multiples(bits: int) -> int:
    """How many times as large weight codes of `bits` bits are stored in int8."""
    return 127 // ((1 << (bits - 1)) - 1)


def stored_step(weight_step: Tensor, bits: int, input_step: Tensor, bias_C: Tensor) -> Tensor:
    """float32 [C]: the step of the weight codes as they are stored, for codes of `bits` bits."""
    finer = weight_step.detach().float() / multiples(bits)
    needed_C = bias_C.detach().double().abs() / (input_step.detach().double() * LIMIT)
    return torch.maximum(finer.double(), needed_C).float()


def folded_step(weight_step: Tensor, factor_C: Tensor) -> Tensor:
    """float32 [C]: the step behind a folded norm, |step * k|; where gamma is 0 the step, under codes of 0."""
    step_C = (weight_step.detach().double() * factor_C.detach()).abs().float()
    return torch.where(step_C > 0, step_C, weight_step.detach().float())


def bias_codes(bias_C: Tensor, input_step: Tensor, stored_C: Tensor) -> tuple[Tensor, Tensor]:
    """(float64 integers, float32 step), both [C], of a bias beside weights of `stored_step`."""
    step_C = input_step.detach().float() * stored_C
    return (bias_C.detach().double() / step_C.double()).round(), step_C


def snapped(bias_C: Tensor, input_step: Tensor, weight_step: Tensor, bits: int) -> Tensor:
    """The nearest value that the integers hold, in the type of `bias_C`; the gradient passes."""
    stored_C = stored_step(weight_step, bits, input_step, bias_C)
    codes_C, step_C = bias_codes(bias_C, input_step, stored_C)
    return (codes_C * step_C.double()).to(bias_C.dtype) + (bias_C - bias_C.detach())
