"""All stages of a model as one module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from distqat.models import named_tensors


class Whole(nn.Module):
    """The stages in order; each hands what it returns to the next, by position."""

    def __init__(self, stages: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, stage in stages.items():
            self.add_module(name, stage)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """What the last stage returns, by position."""
        return tuple(self.outputs(*inputs).values())

    def outputs(self, *inputs: Tensor) -> dict[str, Tensor]:
        """What the last stage returns, by name."""
        tensors: Sequence[Tensor] = inputs
        named: dict[str, Tensor] = {}
        for stage in self.children():
            named = named_tensors(stage(*tensors))
            tensors = list(named.values())
        return named
