"""Weights are quantized once for all microbatches of a step.

Between two optimizer steps a weight and its steps stand still. So its quantized values are made once, as a
leaf that collects the gradients of the microbatches, and these pass through the quantizer together: it is
linear in them, so only the order of the sum that a log-step gets is another.
"""

from __future__ import annotations

from torch import nn

from distqat.quant.weight_quantizer import WeightQuantizer


def hold_weights(module: nn.Module) -> None:
    """From now on, until `drop_weights`, weights must not change, and gradients are whole after `settle`."""
    for quantizer in _of_weights(module):
        quantizer.hold()


def settle_weights(module: nn.Module) -> None:
    """Pass on to weights and steps what has been collected for them since; they are held on."""
    for quantizer in _of_weights(module):
        quantizer.settle()


def drop_weights(module: nn.Module) -> None:
    """Forget what is held, gradients that nobody settled with it; harmless where nothing is."""
    for quantizer in _of_weights(module):
        quantizer.drop()


def _of_weights(module: nn.Module) -> list[WeightQuantizer]:
    return [child for child in module.modules() if isinstance(child, WeightQuantizer)]
