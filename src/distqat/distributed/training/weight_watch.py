"""Whether the codes of a stage still hold its weights: metrics every round, a notice if they do not."""

from __future__ import annotations

from typing import Any

from torch import nn

from distqat.process import notice
from distqat.quant.weight_health import sentences, summary, weight_health


class WeightWatch:
    """Of one stage. `look` runs where the stage computes, between two steps."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._told = set[str]()

    def look(self, module: nn.Module, *, tells: bool = True) -> dict[str, Any]:
        """Figures for the metrics; empty while no weight is quantized.

        `tells`: the person at the terminal hears of each ailment once, with the worst of its layers.
        """
        layers = weight_health(module)
        for ailment, sentence in sentences(layers, f"stage {self._stage}").items() if tells else ():
            if ailment not in self._told:
                self._told.add(ailment)
                notice(sentence)
        return summary(layers)
