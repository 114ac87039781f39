"""Quantizers of weights: symmetric codes, and steps that stay within what the weights need.

There is one step for the tensor, one per output channel [C], or one per group of inputs of a channel [C, G].

A learned step cannot follow a weight that grows: Adam moves each weight by about the rate, so small weights
outgrow their codes, are cut off, and get no gradient any more (in language models a third of them were). So
a step is held between what the weights give: above, the largest weight is the largest code; below, that code
is `least_range` of the largest weight. With 8 bits both are one, and the step follows the largest weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from distqat.quant import mse_step
from distqat.quant.methods.method import QuantizerGrid
from distqat.quant.quantizer import Quantizer, QuantizerSettings


def least_range(bits: int) -> float:
    """How much of the largest weight the largest code stands for at least.

    Cutting off is worth it where codes are few: for normal weights the least squared error is at 0.53 of a
    largest weight of 3.2 standard deviations with 2 bits, at 0.80 with 4 (Banner et al., arXiv:1810.05723,
    section 2). Learned steps end below that; three quarters of it were best with 4 bits (docs/log.md).
    """
    return 0.2 + 0.1 * bits


class WeightQuantizer(Quantizer):
    """Codes in +-(2**(bits - 1) - 1); a step per index of `axis` (the output channel), or one.

    `group`: of a matrix, a step for every so many inputs of an output channel.
    """

    def __init__(
        self,
        name: str,
        weight: Tensor,
        *,
        bits: int,
        axis: int | None,
        group: int | None = None,
        how: QuantizerSettings | None = None,
    ) -> None:
        steps: tuple[int, ...] = () if axis is None else (weight.shape[axis],)
        if group is not None:
            assert axis is not None
            steps = (weight.shape[axis], weight.shape[1 - axis] // group)
        super().__init__(name, bits, steps, weight.device, how or QuantizerSettings())
        self.follows = self.method.follows_weight or (self.method.learns_step and least_range(bits) >= 1)
        """Whether the step is that of the largest weight at any time, so that nothing of it is learned."""
        self.log_step.requires_grad_(self.method.learns_step and not self.follows)
        self.axis, self.group = axis, group
        self.qmax = 2 ** (bits - 1) - 1
        per_step = weight.numel() / self.log_step.numel()
        along = axis if group is None else 0  # groups lie in rows of their own
        self._grid = QuantizerGrid(
            -self.qmax, self.qmax, along, (per_step * self.qmax) ** -0.5, self.how.compiled
        )
        self._holds = False
        self._made: tuple[Tensor, Tensor] | None = None  # quantized, and the leaf that stands for it

    def initial_step(self, weight: Tensor) -> Tensor:
        """The first steps, in the shape of `log_step`."""
        rows = self._rows(weight.detach())
        extremes = self.follows or self.how.init == "minmax"
        search = mse_step.largest_steps if extremes else mse_step.channel_steps
        return search(rows, self.qmax).view(self.log_step.shape)

    def step_of_each(self, weight: Tensor) -> Tensor:
        """The steps, shaped to broadcast against `weight`."""
        if self.axis is None:
            return self.step
        if self.group is None:
            return self.step.view([-1 if dim == self.axis else 1 for dim in range(weight.dim())])
        step_OI = self.step.repeat_interleave(self.group, dim=1)
        return step_OI if self.axis == 0 else step_OI.t()

    def forward(self, weight: Tensor) -> Tensor:
        """The weight as the integers will have it; itself while calibrating or waiting."""
        if self._made is not None:
            return self._made[1]
        state = self.state
        if state in ("calibrating", "waiting"):
            return weight
        if state == "active" or (self.follows and self.training):  # as long as weights are trained
            self.follow(weight)
        quantized = self._quantized(weight, self._learned_log_step(state))
        if not self._holds or not torch.is_grad_enabled():
            return quantized
        leaf = quantized.detach().requires_grad_(quantized.requires_grad)
        self._made = quantized, leaf
        return leaf

    @torch.no_grad()
    def follow(self, weight: Tensor) -> None:
        """Move the steps to where the weight needs them now.

        Between two uses of one weight in a graph nothing moves, so autograd need not know of the copy.
        """
        self.log_step.data.copy_(self.held(self.log_step, weight))

    @torch.no_grad()
    def held(self, log_step: Tensor, weight: Tensor, log: Callable[[Tensor], Tensor] = torch.log) -> Tensor:
        """`log_step` between the bounds that `weight` gives, by this logarithm."""
        largest = mse_step.largest_steps(self._rows(weight.detach()), self.qmax).view(self.log_step.shape)
        highest = log(largest)
        if self.follows:
            return highest
        return log_step.clamp(highest + math.log(least_range(self.bits)), highest)

    def hold(self) -> None:
        """Quantize once, at the next call, until `drop`; see `distqat.quant.weight_cache`."""
        self._holds, self._made = True, None

    def settle(self) -> None:
        """Pass the gradient that the held weight has collected through the quantizer."""
        made, self._made = self._made, None
        if made is not None and made[1].grad is not None:
            torch.autograd.backward([made[0]], [made[1].grad])

    def drop(self) -> None:
        """Quantize at every call again."""
        self._holds, self._made = False, None

    def extra_repr(self) -> str:
        """Shown in the printed module."""
        groups = "" if self.group is None else f", groups of {self.group}"
        return f"bits={self.bits}, axis={self.axis}{groups}, {self.state}"

    def _rows(self, weight: Tensor) -> Tensor:
        """[steps, values]: what each step is for."""
        if self.axis is None:
            return weight.flatten()[None]
        rows = weight.movedim(self.axis, 0)
        return rows.flatten(1) if self.group is None else rows.reshape(-1, self.group)

    def _quantized(self, weight: Tensor, log_step: Tensor) -> Tensor:
        if self.group is None:
            return self.method.fake_quantize(weight, log_step, None, self._grid)
        turned = weight if self.axis == 0 else weight.t()
        made = self.method.fake_quantize(self._rows(weight), log_step.flatten(), None, self._grid)
        made = made.view(turned.shape)
        return made if self.axis == 0 else made.t()
