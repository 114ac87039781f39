"""Quantizers that calibration saw no values of: their steps are found while the rest of the stage trains.

A branch that starts at zero (a zero-initialised convolution, a gate, LoRA's B) or is dead gives zeros; a
layer may be unused, or used now and then. Any step would do for zeros, and none is known for what comes
later, so such a quantizer *waits*: values pass in float and are counted. After every round (in one process:
after as many steps) its step is estimated from what all replicas have counted in it, which is the same on
each to the bit. What began at zero grows for a while, by more than a learned step can follow, so the
quantizer becomes active when two estimates in a row are about the same.

Weights that are all zero wait as well; their estimate comes from the weights that the round gives.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from distqat.quant import mse_step
from distqat.quant.quantized_layers import QuantizedLayer
from distqat.quant.quantizer import ActivationQuantizer, Quantizer
from distqat.quant.weight_quantizer import WeightQuantizer

GROWTH = 1.25
"""Estimates that differ by less than this factor are the same."""


def must_wait(quantizer: Quantizer, weight: Tensor | None = None) -> bool:
    """Whether calibration has shown nothing to a quantizer; `weight` is that of a WeightQuantizer."""
    if isinstance(quantizer, ActivationQuantizer):
        return not any(mse_step.seen_values(quantizer.counts))
    return isinstance(weight, nn.Parameter) and not quantizer.method.follows_weight and not bool(weight.any())


def reasons(waiting: Sequence[Quantizer]) -> list[str]:
    """A sentence for every reason for which these wait, with the layers that it is true of."""
    by_reason: dict[str, list[str]] = {}
    for quantizer in waiting:
        layer, _, kind = quantizer.name.rpartition(".")
        what = f"the output of {layer}" if kind == "output_quant" else layer
        if isinstance(quantizer, WeightQuantizer):
            by_reason.setdefault("zero weights", []).append(what)
        elif isinstance(quantizer, ActivationQuantizer):
            why = next((kind for kind in ("tiny", "zeros") if quantizer.looked[kind]), "unused")
            by_reason.setdefault(why, []).append(what)
    return [f"{', '.join(names[:4])}{_more(names)}: {_SAID[why]}" for why, names in by_reason.items()]


_SAID = {
    "zero weights": "all weights are zero at the start, so they have no step yet; they stay in float until "
    "training has moved them",
    "zeros": "only zeros came here in calibration (a layer in front starts at zero or is dead), so there is "
    "no step yet; values pass in float until some come and their size has settled",
    "tiny": "calibration saw only values smaller than 2**-24 (6e-8) here, for which no step is found; they "
    "pass in float until larger ones come and their size has settled: scale the input, or look at the layer "
    "in front",
    "unused": "calibration never came here (a layer that forward does not use, or not in training); it stays "
    "in float until it is used; if it never is, remove it, or name it under quant.skip",
}


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - 4} more" if len(names) > 4 else ""


def estimates(module: nn.Module) -> Iterator[tuple[Quantizer, tuple[Tensor, bool, Tensor]]]:
    """Quantizers of `module` that wait and of which something is known by now: (step, signed, offset)."""
    for child in module.modules():
        if isinstance(child, ActivationQuantizer):
            if child.state == "waiting" and child.can_begin(child.counts):
                yield child, child.initial_step()
        elif isinstance(child, QuantizedLayer) and isinstance(child.weight_quant, WeightQuantizer):
            quantizer = child.weight_quant
            if quantizer.state == "waiting" and bool(child.weight.any()):
                yield quantizer, (quantizer.initial_step(child.weight), True, torch.tensor(0.0))


@torch.no_grad()
def look_again(module: nn.Module, *, last: bool = False) -> list[str]:
    """Where a stage has no rounds, between two steps: estimate anew; names of quantizers active from now on.

    `last`: steps are about to be frozen, so what is known by now has to do.
    """
    settled = []
    for quantizer, (step, signed, offset) in list(estimates(module)):
        log_step = exact_log(step)
        if not last and not alike(quantizer.log_step, log_step):
            quantizer.log_step.copy_(log_step)
            if isinstance(quantizer, ActivationQuantizer):
                quantizer.counts.zero_()
                quantizer.batches.zero_()
            continue
        if isinstance(quantizer, ActivationQuantizer):
            quantizer.begin_calibrated(step, signed, offset)
        else:
            quantizer.begin(step)
        settled.append(quantizer.name)
    return settled


def exact_log(step: Tensor) -> Tensor:
    """float32 logarithms that are the same on unlike processors, in the shape of `step`."""
    logs = [math.log(value) for value in step.detach().double().flatten().tolist()]
    return torch.tensor(logs, dtype=torch.float32, device=step.device).reshape(step.shape)


def alike(before: Tensor, found: Tensor) -> bool:
    """Whether two estimates of log(step) in a row are about the same, in the mean over channels."""
    apart = (found.double().cpu() - before.detach().double().cpu().reshape(found.shape)).abs()
    return math.fsum(apart.flatten().tolist()) / max(apart.numel(), 1) < math.log(GROWTH)
