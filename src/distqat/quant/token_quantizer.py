"""Dynamic quantization per token: every vector of the last dimension has the step of its largest value.

Nothing is learned or calibrated. The step is rounded to 16 bits of mantissa: a code of 8 bits times such a
step is exact in float32, so quantizing the result again gives the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distqat.quant.weight_quantizer import WeightQuantizer

_DROPPED = 8  # of the 24 bits of a float32 mantissa


class TokenQuantizer(nn.Module):
    """Symmetric codes in +-(2**(bits - 1) - 1); in front of a linear layer."""

    def __init__(self, bits: int, weight_quant: WeightQuantizer | None = None) -> None:
        """`weight_quant` is that of the same layer: while that is in float, tokens are as well."""
        super().__init__()
        self.bits = bits
        self._weight_quant = [weight_quant]  # in a list: it is the layer's submodule, not ours
        self.qmax = 2 ** (bits - 1) - 1

    def forward(self, x: Tensor) -> Tensor:
        """[..., features] on the grid of each token; the gradient passes straight through."""
        weight_quant = self._weight_quant[0]
        if weight_quant is not None and weight_quant.in_float:
            return x
        with torch.no_grad():
            step = token_steps(x, self.qmax)
            y = (x.float() / step).round_().clamp_(-self.qmax, self.qmax).mul_(step).to(x.dtype)
        return y + (x - x.detach())

    def extra_repr(self) -> str:
        """Shown in the printed module."""
        return f"bits={self.bits}, per token"


def token_steps(x: Tensor, qmax: int) -> Tensor:
    """float32 [..., 1]: largest magnitude / qmax, to 16 bits of mantissa; 1 for a token of zeros."""
    largest = x.detach().float().abs().amax(-1, keepdim=True) / qmax
    step = torch.where(largest > 0, largest, torch.ones_like(largest))
    bits = step.view(torch.int32) + (1 << (_DROPPED - 1))  # round half up; a carry goes into the exponent
    return (bits & -(1 << _DROPPED)).view(torch.float32)
