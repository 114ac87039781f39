"""Quantization-aware training: LSQ with log-steps on Linear, Conv2d, Conv1d and Hugging Face's Conv1D.

A stage's way: `quantize_module`, forward passes over real batches in training mode until `calibrated`,
`activate`, then train `log_step` with everything else (no weight decay on `step_parameter_names`), and in the
end `set_state(stage, "frozen")`. Who joins loads a state dict instead and never calibrates.
"""

from __future__ import annotations

from distqat.quant.coverage import Coverage, coverage
from distqat.quant.options import QuantOptions
from distqat.quant.quantizer import ActivationQuantizer, Quantizer, QuantState, WeightQuantizer
from distqat.quant.rules import check_patterns, module_names
from distqat.quant.wrap import (
    LayerReport,
    QuantReport,
    activate,
    calibrated,
    quantize_module,
    quantizer_buffer_names,
    quantizers,
    set_state,
    step_parameter_names,
)

__all__ = [
    "ActivationQuantizer",
    "Coverage",
    "LayerReport",
    "QuantOptions",
    "QuantReport",
    "QuantState",
    "Quantizer",
    "WeightQuantizer",
    "activate",
    "calibrated",
    "check_patterns",
    "coverage",
    "module_names",
    "quantize_module",
    "quantizer_buffer_names",
    "quantizers",
    "set_state",
    "step_parameter_names",
]
