"""`none`: this side stays in float."""

from __future__ import annotations

from torch import Tensor

from distqat.quant.methods.method import QuantizerGrid


class NoQuantization:
    """Never asked: layers get no quantizer on this side."""

    quantizes, learns_step, has_offset, follows_weight = False, False, False, False

    def fake_quantize(
        self, x: Tensor, log_step: Tensor, offset: Tensor | None, grid: QuantizerGrid
    ) -> Tensor:
        """The same."""
        return x


METHOD = NoQuantization()
