"""Quantization-aware training: LSQ with log-steps on Linear, Conv2d, Conv1d and Hugging Face's Conv1D.

A stage's way: `quantize_module`, forward passes over real batches in training mode until `calibrated`,
`activate`, then train `log_step` with everything else (no weight decay on `step_parameter_names`), and in the
end `set_state(stage, "frozen")`. Who joins loads a state dict instead and never calibrates.

Where quantizers are: every quantized layer has `weight_quant` and `input_quant`; the latter is a quantizer
of its own, a `SharedInput` (another layer's) or a `CarriedInput` (the tensor lies on a grid already). Any
module may have a child `output_quant`, which quantizes what the module returns; `joints` lists them.

The names are looked up when they are used: the configuration needs the options alone, and no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from distqat.quant.options import QuantOptions

if TYPE_CHECKING:
    from distqat.quant.batchnorm_statistics import BatchNormStatistics, begin_measuring, tracked_norms
    from distqat.quant.late_calibration import look_again, reasons
    from distqat.quant.layer_rules import check_patterns, module_names
    from distqat.quant.output_quantizer import CarriedInput, SharedInput, joints, leaving
    from distqat.quant.quant_report import LayerReport, QuantReport
    from distqat.quant.quantize_stage import edges, quantize_module, report_of
    from distqat.quant.quantized_share import QuantizedShare, coverage
    from distqat.quant.quantizer import ActivationQuantizer, Quantizer, QuantState
    from distqat.quant.quantizer_placement import StageBoundary
    from distqat.quant.quantizer_states import (
        activate,
        calibrated,
        check_observed,
        follow_weights,
        freeze_in,
        moving_buffers,
        observe_data,
        quantizer_buffer_names,
        quantizers,
        set_state,
        step_parameter_names,
        weight_step_names,
    )
    from distqat.quant.tensor_producers import TensorFlow, record
    from distqat.quant.weight_cache import drop_weights, hold_weights, settle_weights
    from distqat.quant.weight_quantizer import WeightQuantizer

_WHERE = {
    "tensor_producers": ("TensorFlow", "record"),
    "weight_cache": ("drop_weights", "hold_weights", "settle_weights"),
    "output_quantizer": ("CarriedInput", "SharedInput", "joints", "leaving"),
    "quantizer_placement": ("StageBoundary",),
    "quantizer": ("ActivationQuantizer", "QuantState", "Quantizer"),
    "weight_quantizer": ("WeightQuantizer",),
    "layer_rules": ("check_patterns", "module_names"),
    "quantized_share": ("QuantizedShare", "coverage"),
    "quant_report": ("LayerReport", "QuantReport"),
    "quantizer_states": (
        "activate",
        "calibrated",
        "check_observed",
        "follow_weights",
        "freeze_in",
        "moving_buffers",
        "observe_data",
        "quantizer_buffer_names",
        "quantizers",
        "set_state",
        "step_parameter_names",
        "weight_step_names",
    ),
    "batchnorm_statistics": ("BatchNormStatistics", "begin_measuring", "tracked_norms"),
    "late_calibration": ("look_again", "reasons"),
    "quantize_stage": ("edges", "quantize_module", "report_of"),
}
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}

__all__ = [
    "ActivationQuantizer",
    "BatchNormStatistics",
    "CarriedInput",
    "LayerReport",
    "QuantOptions",
    "QuantReport",
    "QuantState",
    "QuantizedShare",
    "Quantizer",
    "SharedInput",
    "StageBoundary",
    "TensorFlow",
    "WeightQuantizer",
    "activate",
    "begin_measuring",
    "calibrated",
    "check_observed",
    "check_patterns",
    "coverage",
    "drop_weights",
    "edges",
    "follow_weights",
    "freeze_in",
    "hold_weights",
    "joints",
    "leaving",
    "look_again",
    "module_names",
    "moving_buffers",
    "observe_data",
    "quantize_module",
    "quantizer_buffer_names",
    "quantizers",
    "reasons",
    "record",
    "report_of",
    "set_state",
    "settle_weights",
    "step_parameter_names",
    "tracked_norms",
    "weight_step_names",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
