"""Steps of the baseline whose loss or gradients are not finite: they change nothing, and many end the run."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from distqat.distributed.training.step_failures import SKIPS_END, SKIPS_SAID
from distqat.errors import RunFailed
from distqat.failures import REPEATS
from distqat.process import notice

_HELP = (
    "lower the learning rate, set diloco.max_grad_norm, or look for values in the data that are not finite"
)


class FiniteSteps:
    """Counts them, as a trainer of the swarm does. Its methods raise RunFailed."""

    def __init__(self) -> None:
        self.skips = 0  # in a row
        self._steps = 0
        self._told = self._at = ""

    def took(self, loss: float, gradients: bool, step: int, lr: float) -> bool:
        """Whether a step may be applied: its loss is finite, and (`gradients`) so are its gradients."""
        good = gradients and math.isfinite(loss)
        self._steps += 1
        self.skips = 0 if good else self.skips + 1
        what = f"a gradient is not finite (loss {loss:g})" if math.isfinite(loss) else f"the loss is {loss:g}"
        self._at = f"step {step}, learning rate {lr:g}"
        self._told = f"{what} at {self._at}"
        if self.skips == SKIPS_SAID:
            notice(f"the last {self.skips} steps changed nothing: {self._told}")
        if self.skips >= SKIPS_END:
            raise RunFailed(self._sentence(f"the last {self.skips} steps changed nothing"))
        return good

    def ended(self, parameters: Iterable[Tensor]) -> None:
        """All steps are taken: is there a model?"""
        if self._steps and self.skips >= min(REPEATS, (self._steps + 1) // 2):
            raise RunFailed(self._sentence(f"the last {self.skips} of {self._steps} steps changed nothing"))
        if not all(bool(torch.isfinite(parameter).all()) for parameter in parameters):
            raise RunFailed(f"weights are not finite after {self._at}, so there is no model; {_HELP}")

    def _sentence(self, what: str) -> str:
        return f"{what}: {self._told}; {_HELP}"


def all_finite(gradients: list[Tensor]) -> bool:
    """Whether every number is finite, by one norm per tensor."""
    if not gradients:
        return True
    return bool(torch.isfinite(torch.stack([norm.float() for norm in torch._foreach_norm(gradients)])).all())
