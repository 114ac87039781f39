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
    from distqat.quant import schedule
    from distqat.quant.flow import Flow, record
    from distqat.quant.held import drop_weights, hold_weights, settle_weights
    from distqat.quant.joint import CarriedInput, SharedInput, joints, leaving
    from distqat.quant.placement import Boundary
    from distqat.quant.quantizer import ActivationQuantizer, Quantizer, QuantState, WeightQuantizer
    from distqat.quant.report import LayerReport, QuantReport
    from distqat.quant.rules import check_patterns, module_names
    from distqat.quant.shares import Coverage, coverage
    from distqat.quant.states import (
        activate,
        calibrated,
        check_observed,
        freeze_in,
        observe_data,
        quantizer_buffer_names,
        quantizers,
        set_state,
        step_parameter_names,
        weight_step_names,
    )
    from distqat.quant.statistics import Statistics, begin_measuring, tracked_norms
    from distqat.quant.waiting import look_again, reasons
    from distqat.quant.wrap import edges, quantize_module, report_of

_WHERE = {
    "flow": ("Flow", "record"),
    "held": ("drop_weights", "hold_weights", "settle_weights"),
    "joint": ("CarriedInput", "SharedInput", "joints", "leaving"),
    "placement": ("Boundary",),
    "quantizer": ("ActivationQuantizer", "QuantState", "Quantizer", "WeightQuantizer"),
    "rules": ("check_patterns", "module_names"),
    "shares": ("Coverage", "coverage"),
    "report": ("LayerReport", "QuantReport"),
    "states": (
        "activate",
        "calibrated",
        "check_observed",
        "freeze_in",
        "observe_data",
        "quantizer_buffer_names",
        "quantizers",
        "set_state",
        "step_parameter_names",
        "weight_step_names",
    ),
    "statistics": ("Statistics", "begin_measuring", "tracked_norms"),
    "waiting": ("look_again", "reasons"),
    "wrap": ("edges", "quantize_module", "report_of"),
}
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}

__all__ = [
    "ActivationQuantizer",
    "Boundary",
    "CarriedInput",
    "Coverage",
    "Flow",
    "LayerReport",
    "QuantOptions",
    "QuantReport",
    "QuantState",
    "Quantizer",
    "SharedInput",
    "Statistics",
    "WeightQuantizer",
    "activate",
    "begin_measuring",
    "calibrated",
    "check_observed",
    "check_patterns",
    "coverage",
    "drop_weights",
    "edges",
    "freeze_in",
    "hold_weights",
    "joints",
    "leaving",
    "look_again",
    "module_names",
    "observe_data",
    "quantize_module",
    "quantizer_buffer_names",
    "quantizers",
    "reasons",
    "record",
    "report_of",
    "schedule",
    "set_state",
    "settle_weights",
    "step_parameter_names",
    "tracked_norms",
    "weight_step_names",
]


def __getattr__(name: str) -> Any:
    if name == "schedule":
        return import_module(f"{__name__}.schedule")
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
