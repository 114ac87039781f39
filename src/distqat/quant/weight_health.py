"""How well integer codes hold the weights of a layer: rounding, clipping, and how many codes are used.

A step that is too small for its weights clips them, and clipped weights get no gradient. One that is too
large leaves most codes unused: 8 bits whose largest code is 4 carry three.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from distqat.quant.quantized_layers import QuantizedLayer
from distqat.quant.weight_quantizer import WeightQuantizer

MOST_ERROR, MOST_CLIPPED, LEAST_RANGE = 0.015, 0.005, 0.5
"""With 8 bits; fewer have larger steps, so the error may be larger by as much."""
MOST_CUT_OFF = 0.25
"""Clipped with fewer bits: up to here least squared error and learned steps cut off on purpose."""
UNUSABLE_ERROR = 0.75
"""A relative error above this is too large with any number of bits: that of zeros is 1."""

CLIPPED, UNUSED, COARSE = "clipped", "unused codes", "coarse"
"""What can be wrong, in the order in which it is said: the first two explain the third."""


@dataclass(frozen=True)
class WeightHealth:
    """The weight of one layer beside its codes. Shares are 0 to 1."""

    name: str
    bits: int
    error: float
    """||q - w|| / ||w||, q the quantized weight; 0 where all weights are zero."""
    clipped: float
    """Share of the weights for which the largest code is too small by more than rounding."""
    largest_code: float
    """The largest |code| of each output channel (one step for the tensor: of the tensor), their median."""
    codes_used: float
    """How many different codes occur, of all that could."""

    @property
    def range_used(self) -> float:
        """`largest_code` as a share of the largest that there is."""
        return self.largest_code / _largest(self.bits)

    @property
    def limits(self) -> tuple[float, float]:
        """The largest error and clipped share that are healthy with so many bits."""
        wider = _largest(8) / _largest(self.bits)
        return min(MOST_ERROR * wider, UNUSABLE_ERROR), MOST_CLIPPED if self.bits == 8 else MOST_CUT_OFF

    @property
    def ailment(self) -> str | None:
        """CLIPPED, UNUSED or COARSE; None for a healthy one."""
        error, clipped = self.limits
        if self.clipped > clipped:
            return CLIPPED
        if self.error and self.range_used < LEAST_RANGE:
            return UNUSED
        return COARSE if self.error > error else None


@torch.no_grad()
def weight_health(module: nn.Module) -> list[WeightHealth]:
    """One entry per quantized weight, in order; none of those in float (also while they calibrate or wait).

    Reads each weight a few times and changes nothing.
    """
    return [_measure(name, *found) for name, found in _weights(module)]


def sentences(layers: Sequence[WeightHealth], where: str = "") -> dict[str, str]:
    """For people: by ailment, a sentence that names the worst layer; `where` names their stage."""
    by_ailment: dict[str, list[WeightHealth]] = {}
    for layer in layers:
        if layer.ailment is not None:
            by_ailment.setdefault(layer.ailment, []).append(layer)
    prefix = f"{where}: " if where else ""
    return {
        kind: f"{prefix}{_SAID[kind](max(found, key=_WORSE[kind]), len(found), len(layers))}"
        for kind in (CLIPPED, UNUSED, COARSE)
        if (found := by_ailment.get(kind))
    }


def summary(layers: Sequence[WeightHealth]) -> dict[str, Any]:
    """Figures of a stage for its metrics, `worst` the layer with the largest error; empty without layers."""
    if not layers:
        return {}
    errors, clipped = [each.error for each in layers], [each.clipped for each in layers]
    ranges, codes = [each.range_used for each in layers], [each.codes_used for each in layers]
    return {
        "layers": len(layers),
        "sick": sum(each.ailment is not None for each in layers),
        "error_median": median(errors),
        "error_max": max(errors),
        "clipped_median": median(clipped),
        "clipped_max": max(clipped),
        "range_used_median": median(ranges),
        "range_used_min": min(ranges),
        "codes_used_median": median(codes),
        "codes_used_min": min(codes),
        "worst": max(layers, key=lambda each: each.error).name,
    }


def _weights(module: nn.Module) -> Iterator[tuple[str, tuple[Tensor, WeightQuantizer]]]:
    for name, layer in module.named_modules():
        quantizer = layer.weight_quant if isinstance(layer, QuantizedLayer) else None
        if isinstance(quantizer, WeightQuantizer) and not quantizer.in_float:
            yield name or "the layer", (layer.weight.detach(), quantizer)


def _measure(name: str, weight: Tensor, quantizer: WeightQuantizer) -> WeightHealth:
    before = quantizer.log_step.detach().clone()
    quantized = quantizer(weight).float()  # steps that follow the weight are now where the next pass has them
    step = quantizer.step_of_each(weight)
    quantizer.log_step.copy_(before)
    weight, most, axis = weight.float(), quantizer.qmax, quantizer.axis
    scaled = weight / step
    channels = scaled.flatten()[None] if axis is None else scaled.movedim(axis, 0).flatten(1)
    low, high = channels.aminmax(dim=1)
    largest = torch.maximum(-low, high)  # of each channel, in steps
    beyond = float(largest.max()) > most + 0.5  # counting takes longer than all else
    clipped = float((scaled.abs() > most + 0.5).float().mean()) if beyond else 0.0
    codes = scaled.round_().clamp_(-most, most)
    used = int((torch.histc(codes, 2 * most + 1, -most - 0.5, most + 0.5) > 0).sum())
    norm = float(weight.norm())
    return WeightHealth(
        name,
        quantizer.bits,
        error=float((quantized - weight).norm()) / norm if norm else 0.0,
        clipped=clipped,
        largest_code=float(largest.round().clamp_(max=most).median()),
        codes_used=used / min(2 * most + 1, weight.numel()),
    )


def _largest(bits: int) -> int:
    return int(2 ** (bits - 1) - 1)


def _of(count: int, all_layers: int) -> str:
    return f"{count} of {all_layers} quantized layers"


_WORSE = {
    CLIPPED: lambda layer: layer.clipped,
    UNUSED: lambda layer: -layer.range_used,
    COARSE: lambda layer: layer.error,
}
_SAID = {
    CLIPPED: lambda worst, count, whole: (
        f"weights have outgrown their steps in {_of(count, whole)}, so they are clipped and learn no more: "
        f"{worst.clipped:.1%} of them in {worst.name} (healthy is at most {worst.limits[1]:.1%} with "
        f"{worst.bits} bits); quant.weight.method: minmax lets steps follow the weights"
    ),
    UNUSED: lambda worst, count, whole: (
        f"steps are too large for the weights of {_of(count, whole)}: {worst.name} uses codes up to "
        f"{worst.largest_code:.0f} of {_largest(worst.bits)}; quant.weight.method: minmax lets steps follow "
        "the weights"
    ),
    COARSE: lambda worst, count, whole: (
        f"codes are too coarse for the weights of {_of(count, whole)}: rounding moves those of {worst.name} "
        f"by {worst.error:.1%} (healthy is at most {worst.limits[0]:.1%} with {worst.bits} bits); steps per "
        "channel or per group (quant.weight.granularity) or more bits help"
    ),
}
