"""Quantizers of weights: symmetric codes, and steps that stay within what the weights need.

steps: one for the tensor, one per output channel [C], or one per group of inputs of a channel [C, G]
"""

from __future__ import annotations

import torch
from torch import Tensor

from distqat.quant import mse_step
from distqat.quant.methods.method import QuantizerGrid
from distqat.quant.quantizer import Quantizer, QuantizerSettings


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
        search = mse_step.largest_steps if self._extremes else mse_step.channel_steps
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
        if state == "active":
            self.follow(weight)
        quantized = self._quantized(weight, self._learned_log_step(state))
        if not self._holds or not torch.is_grad_enabled():
            return quantized
        leaf = quantized.detach().requires_grad_(quantized.requires_grad)
        self._made = quantized, leaf
        return leaf

    @torch.no_grad()
    def follow(self, weight: Tensor) -> None:
        """Move the steps to where the weight needs them now, for methods that do."""
        if self.method.follows_weight:
            self.log_step.copy_(self.initial_step(weight).log())

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

    @property
    def _extremes(self) -> bool:
        return self.how.init == "minmax" or self.method.follows_weight
