"""Quantized twins of Linear, Conv2d, Conv1d and Hugging Face's Conv1D: same parameters, same names.

A twin is the same object with another class and two quantizers more, so hooks, tied weights and modules that
occur twice stay what they were, and a float checkpoint loads (the quantizers' own entries apart).
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from distqat.quant.int32_bias import snapped
from distqat.quant.output_quantizer import InputQuantizer, Unquantized, quantizer_of
from distqat.quant.parametrized import plain_type, twin_type
from distqat.quant.weight_quantizer import WeightQuantizer


class QuantizedLayer:
    """Mixin of all twins: what the layer computes, on the quantized input and the quantized weight."""

    weight: nn.Parameter  # or computed from others: see `distqat.quant.parametrized`
    bias: nn.Parameter | None
    weight_quant: WeightQuantizer | Unquantized
    input_quant: InputQuantizer
    snaps_bias: bool

    def used_bias(self) -> Tensor | None:
        """The bias; once steps are frozen as the int32 of `quant.bias` stand for, if `snaps_bias`.

        Where a channel has several steps its sums have as many grids, and the bias stays in float.
        """
        taken, weight = quantizer_of(self.input_quant), self.weight_quant
        if self.bias is None or not self.snaps_bias or taken is None or isinstance(weight, Unquantized):
            return self.bias
        if weight.group is not None or taken.state != "frozen" or weight.state != "frozen":
            return self.bias
        return snapped(self.bias, taken.step, weight.step, weight.bits)


class QuantLinear(QuantizedLayer, nn.Linear):  # type: ignore[misc]
    """Linear; weight [out, in]."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return F.linear(self.input_quant(input), self.weight_quant(self.weight), self.used_bias())


class QuantConv2d(QuantizedLayer, nn.Conv2d):  # type: ignore[misc]
    """Conv2d; weight [out, in / groups, height, width]."""

    def forward(self, input: Tensor) -> Tensor:
        """[batch, in, height, width] -> [batch, out, height, width]."""
        output: Tensor = self._conv_forward(
            self.input_quant(input), self.weight_quant(self.weight), self.used_bias()
        )
        return output


class QuantConv1d(QuantizedLayer, nn.Conv1d):  # type: ignore[misc]
    """Conv1d; weight [out, in / groups, length]."""

    def forward(self, input: Tensor) -> Tensor:
        """[batch, in, length] -> [batch, out, length]."""
        output: Tensor = self._conv_forward(
            self.input_quant(input), self.weight_quant(self.weight), self.used_bias()
        )
        return output


def layer_kind(module: nn.Module) -> str | None:
    """The name of the layer type that can be quantized, or None.

    Exactly these types, their weight computed (weight norm) or not: a subclass (attention's output
    projection) may use its weight elsewhere.
    """
    plain = plain_type(module)
    twin = None if plain is None else _twins().get(plain)
    return twin.__name__.removeprefix("Quant") if twin else None


def channel_axis(module: nn.Module) -> Literal[0, 1]:
    """Which dimension of the weight is the output channel, for a layer before or after quantization."""
    conv1d = _huggingface_conv1d()
    return 1 if conv1d is not None and isinstance(module, conv1d) else 0


def to_quantized(
    module: nn.Module,
    weight_quant: WeightQuantizer | Unquantized,
    input_quant: InputQuantizer,
    *,
    snaps_bias: bool = False,
) -> None:
    """Turn a layer of a known kind into its twin, in place."""
    plain = plain_type(module)
    assert plain is not None
    module.__class__ = twin_type(module, _twins()[plain])
    module.__dict__["snaps_bias"] = snaps_bias
    module.add_module("weight_quant", weight_quant)
    module.add_module("input_quant", input_quant)


def _twins() -> dict[type[nn.Module], type[nn.Module]]:
    twins: dict[type[nn.Module], type[nn.Module]] = {
        nn.Linear: QuantLinear,
        nn.Conv2d: QuantConv2d,
        nn.Conv1d: QuantConv1d,
    }
    conv1d = _huggingface_conv1d()
    if conv1d is not None:
        twins[conv1d] = _conv1d_twin(conv1d)
    return twins


def _huggingface_conv1d() -> Any:
    """transformers' Conv1D, if anybody imported it: else no module can be one, and the import is slow."""
    return getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", None)


@cache
def _conv1d_twin(conv1d: Any) -> type[nn.Module]:
    class QuantConv1D(QuantizedLayer, conv1d):  # type: ignore[misc]
        """Hugging Face's Conv1D: a Linear whose weight is [in, out]."""

        def forward(self, x: Tensor) -> Tensor:
            """[..., in] -> [..., out]."""
            return F.linear(self.input_quant(x), self.weight_quant(self.weight).t(), self.used_bias())

    return QuantConv1D
