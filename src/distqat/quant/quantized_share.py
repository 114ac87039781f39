"""How much of a stage is quantized: shares of weights and of multiply-accumulates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from distqat.quant.parametrized import inner_modules
from distqat.quant.quantized_embedding import QuantEmbedding
from distqat.quant.quantized_layers import QuantizedLayer, channel_axis, layer_kind

MAX_BITS = 8  # a side with more is in float
_OTHER_PRODUCTS = (nn.Linear, nn.modules.conv._ConvNd)


@dataclass
class QuantizedShare:
    """Counts by bits ("W8A8", or "float"); `macs` is empty where no sample input was given."""

    weights: dict[str, int] = field(default_factory=dict)
    macs: dict[str, int] = field(default_factory=dict)

    @property
    def weight_share(self) -> float:
        """Quantized share of all entries of weight matrices, kernels and embeddings; 1 if there are none."""
        return _share(self.weights)

    @property
    def mac_share(self) -> float | None:
        """Quantized share of the multiply-accumulates of layers (not of attention's own products)."""
        return _share(self.macs) if self.macs else None

    def lines(self) -> list[str]:
        """For the log."""
        lines = [f"weights quantized: {self.weight_share:.1%} ({_by_bits(self.weights)})"]
        if self.mac_share is not None:
            lines.append(f"multiply-accumulates quantized: {self.mac_share:.1%} ({_by_bits(self.macs)})")
        return lines


def coverage(module: nn.Module, sample: Sequence[Tensor] | None = None) -> QuantizedShare:
    """Count what is quantized; with `sample`, the positional inputs, in a forward pass as well.

    It runs over zeros, integers as given, in eval mode without gradients; nothing is observed or changed.
    """
    result = QuantizedShare()
    counted: set[int] = set()
    inner = inner_modules(module)
    for child in module.modules():
        own = [] if id(child) in inner else list(child.parameters(recurse=False))
        if hasattr(child, "parametrizations"):
            own += [getattr(child, name) for name in child.parametrizations]  # type: ignore[union-attr]
        for parameter in own:
            if parameter.dim() >= 2 and id(parameter) not in counted:
                counted.add(id(parameter))
                _add(result.weights, _bits(child, of_product=False), parameter.numel())
    if sample is not None:
        _count_macs(module, sample, result.macs)
    return result


def _count_macs(module: nn.Module, sample: Sequence[Tensor], macs: dict[str, int]) -> None:
    def count(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        weight: Tensor = layer.weight  # type: ignore[assignment]
        transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
        per_value = weight.numel() // weight.shape[channel_axis(layer)]
        _add(macs, _bits(layer), (args[0] if transposed else output).numel() * per_value)

    training = [(child, child.training) for child in module.modules()]
    products = [
        child
        for child in module.modules()
        if isinstance(child, (*_OTHER_PRODUCTS, QuantizedLayer)) or layer_kind(child) is not None
    ]
    handles = [layer.register_forward_hook(count) for layer in products]
    try:
        module.eval()
        with torch.no_grad():
            module(*(torch.zeros_like(t) if t.is_floating_point() else t.clone() for t in sample))
    finally:
        for handle in handles:
            handle.remove()
        for child, was_training in training:
            child.training = was_training


def _bits(layer: nn.Module, *, of_product: bool = True) -> str:
    """`of_product`: a product of integers needs both sides quantized, a weight only itself."""
    if isinstance(layer, QuantEmbedding):
        return f"W{layer.row_quant.bits}Afloat"
    if not isinstance(layer, QuantizedLayer):
        return "float"
    weight, taken = layer.weight_quant.bits, layer.input_quant.bits
    if weight > MAX_BITS or (of_product and taken > MAX_BITS):
        return "float"
    return f"W{weight}A{taken if taken <= MAX_BITS else 'float'}"


def _add(counts: dict[str, int], bits: str, number: int) -> None:
    counts[bits] = counts.get(bits, 0) + number


def _share(counts: dict[str, int]) -> float:
    total = sum(counts.values())
    return 1 - counts.get("float", 0) / total if total else 1.0


def _by_bits(counts: dict[str, int]) -> str:
    total = sum(counts.values()) or 1
    return ", ".join(f"{bits} {number / total:.1%}" for bits, number in sorted(counts.items()))
