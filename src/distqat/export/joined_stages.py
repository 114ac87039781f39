"""All stages of a model as one module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

from distqat.models import named_tensors, run_stages
from distqat.quant import follow_weights, quantizers
from distqat.quant.output_quantizer import link
from distqat.quant.parametrized import settle_computed_weights
from distqat.quant.tie_free_steps import remove_ties

if TYPE_CHECKING:
    from typing_extensions import Self


class JoinedStages(nn.Module):
    """The stages in order; each hands what it returns to the next, by position."""

    def __init__(self, stages: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.unseen: tuple[str, ...] = ()
        """Quantizers to which no values came in training: they were frozen with a step for a range of 1."""
        for name, stage in stages.items():
            self.add_module(name, stage)
        link(list(stages.values()))

    def settled(self) -> Self:
        """In eval mode, with steps that move no more and weights that are constants, in place.

        Steps and folded norms are moved by some 1e-4 of themselves, so that nothing lies between two codes.
        Quantizers that calibrate are left as they are, and then nothing is moved.
        """
        settle_computed_weights(self)
        follow_weights(self)
        for _, quantizer in quantizers(self):
            if quantizer.state == "waiting":
                self.unseen += (quantizer.name,)
            if quantizer.state != "calibrating":
                quantizer.freeze()
        if all(quantizer.state == "frozen" for _, quantizer in quantizers(self)):
            remove_ties(list(self.children()))
        return self.eval()

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """What the last stage returns, by position."""
        return tuple(self.outputs(*inputs).values())

    def outputs(self, *inputs: Tensor) -> dict[str, Tensor]:
        """What the last stage returns, by name."""
        return run_stages(self.children(), named_tensors(inputs))
