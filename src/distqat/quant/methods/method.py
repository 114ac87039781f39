"""What a quantization method decides: the values of the backward pass, and what of a quantizer is learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class QuantizerGrid:
    """Where values may lie: step * {qmin..qmax}; `axis` has one step per index, None one for the tensor."""

    qmin: int
    qmax: int
    axis: int | None
    gradient_scale: float
    compiled: bool = False


class Method(Protocol):
    """One way to quantize. All round to the nearest code and clamp; they differ in what is learned."""

    quantizes: bool
    """False: the tensor stays in float, without a quantizer."""
    learns_step: bool
    has_offset: bool
    """Whether the range of codes is learned too: `offset` is the lowest value, zero stays a code."""
    follows_weight: bool
    """Whether the step of a weight is that of its largest value now, until it is frozen."""

    def fake_quantize(
        self, x: Tensor, log_step: Tensor, offset: Tensor | None, grid: QuantizerGrid
    ) -> Tensor:
        """`x` on the grid; gradients as the method has them."""
        ...
