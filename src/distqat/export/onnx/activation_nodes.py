"""Activation marks as pairs of QuantizeLinear and DequantizeLinear around unsigned 8-bit codes.

Symmetric codes get the zero point 128, since the integer kernels of x86 take unsigned activations; a learned
range has its own. Codes of fewer bits, and -128, are cut off by a Clip on the integers, so that Q and the
product before it still fuse.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from distqat.errors import ExportError
from distqat.export.onnx.integer_weights import is_mark
from distqat.export.onnx.onnx_graph import OnnxGraph, attribute
from distqat.export.onnx.quantizer_markers import ACTIVATION

if TYPE_CHECKING:
    import onnx

ZERO = 128
VALUE_KEEPING = ("MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Identity")
"""Operators that give back codes if they get codes: their DequantizeLinear is moved behind them."""


@dataclass(frozen=True)
class ActivationCodes:
    """Where the integers of a dequantized value are: `(codes - zero) * scale`."""

    name: str
    codes: str
    scale: float
    zero: int
    lowest: int
    highest: int


def lower_activations(graph: OnnxGraph) -> dict[str, ActivationCodes]:
    """Replace all marks of activations; what is dequantized keeps its name and is the key of the answer."""
    found: dict[str, ActivationCodes] = {}
    for mark in [node for node in graph.nodes if is_mark(node, ACTIVATION)]:
        twin = _same_mark(graph, mark)
        if twin is None:
            twin = _on_the_grid(graph, mark)
        if twin is not None:
            graph.rewire(mark.output[0], twin.output[0])
            graph.remove([mark])
            continue
        source, cut = _without_relu(graph, mark)
        found[mark.output[0]] = _quantized(graph, mark, source, cut)
    for value, codes in list(found.items()):
        _push(graph, value, codes, found)
    for node in [node for node in graph.nodes if node.op_type == "Add"]:
        _quantize_again(graph, node, found)
    return found


def _same_mark(graph: OnnxGraph, mark: onnx.NodeProto) -> onnx.NodeProto | None:
    """An earlier mark of the same tensor with the same grid."""
    if mark.output[0] in graph.outputs:
        return None
    for other in graph.consumers(mark.input[0]):
        if other is mark:
            return None
        if is_mark(other, ACTIVATION) and _grid(graph, other) == _grid(graph, mark):
            return other
    return None


def _on_the_grid(graph: OnnxGraph, mark: onnx.NodeProto) -> onnx.NodeProto | None:
    """A mark in front of this one with the same grid: quantizing again changes nothing."""
    before = graph.producer(mark.input[0])
    if before is None or before.op_type != "DequantizeLinear" or mark.output[0] in graph.outputs:
        return None
    scale, qmin, qmax = _grid(graph, mark)
    same = graph.marked.get(before.output[0]) == (scale, qmin, qmax)
    return before if same else None


def _grid(graph: OnnxGraph, mark: onnx.NodeProto) -> tuple[float, int, int]:
    scale = graph.constant(mark.input[1])
    if scale is None or scale.size != 1:
        raise ExportError(f"{attribute(mark, 'name')}: the scale of an activation is one constant number")
    return float(scale.reshape(())), int(attribute(mark, "qmin")), int(attribute(mark, "qmax"))


def _without_relu(graph: OnnxGraph, mark: onnx.NodeProto) -> tuple[str, bool]:
    """Quantizing a ReLU's output is quantizing its input, cut at zero: saves the ReLU, and lets Q fuse."""
    relu = graph.producer(mark.input[0])
    if relu is None or relu.op_type != "Relu" or relu.output[0] in graph.outputs:
        return mark.input[0], False
    if len(graph.consumers(relu.output[0])) > 1:
        return mark.input[0], False
    graph.remove([relu])
    return relu.input[0], True


def _quantized(graph: OnnxGraph, mark: onnx.NodeProto, source: str, cut: bool) -> ActivationCodes:
    scale, qmin, qmax = _grid(graph, mark)
    zero = ZERO if qmin == -qmax else -qmin
    lowest, highest = (zero if cut else qmin + zero), qmax + zero
    name, value = str(attribute(mark, "name")), mark.output[0]
    graph.marked[value] = (scale, qmin, qmax)
    graph.remove([mark])
    grid = [
        graph.add_constant(f"{name}.scale", np.array(scale, np.float32)),
        graph.add_constant(f"{name}.zero", np.array(zero, np.uint8)),
    ]
    codes = graph.add("QuantizeLinear", [source, *grid], f"{value}.codes")
    if (lowest, highest) != (0, 255):
        bounds = [
            graph.add_constant(f"code.{bound}", np.array(bound, np.uint8)) for bound in (lowest, highest)
        ]
        codes = graph.add("Clip", [codes, *bounds], f"{value}.clipped")
    graph.add("DequantizeLinear", [codes, *grid], value)
    return ActivationCodes(name, codes, scale, zero, lowest, highest)


def _quantize_again(graph: OnnxGraph, add: onnx.NodeProto, found: dict[str, ActivationCodes]) -> None:
    """A second Q/DQ pair, which changes nothing, between a convolution's codes and a sum.

    OpenVINO fuses convolution, Q, sum and the next Q into one kernel that leaves out the first rounding. The
    second pair rounds. ONNX Runtime removes it.
    """
    if not all(name in found for name in add.input):
        return
    for position, value in enumerate(add.input):
        codes = found[value]
        made = graph.producer(codes.codes)
        if made is not None and made.op_type == "Clip":
            made = graph.producer(made.input[0])
        before = None if made is None else graph.producer(made.input[0])
        if before is None or before.op_type != "Conv":
            continue
        add.input[position] = again = f"{add.output[0]}.{position}.again"
        grid = f"{codes.name}.scale", f"{codes.name}.zero"
        held = graph.add("QuantizeLinear", [value, *grid], f"{again}.codes")
        graph.add("DequantizeLinear", [held, *grid], again)


def _push(graph: OnnxGraph, value: str, codes: ActivationCodes, found: dict[str, ActivationCodes]) -> None:
    """Operators that only move values work on the codes; what they return is dequantized behind them."""
    for node in graph.consumers(value):
        if node.op_type not in VALUE_KEEPING or node.input[0] != value or len(node.output) != 1:
            continue
        after = node.output[0]
        moved = f"{after}.moved"
        node.input[0], node.output[0] = codes.codes, moved
        graph.add("DequantizeLinear", [moved, f"{codes.name}.scale", f"{codes.name}.zero"], after)
        found[after] = ActivationCodes(
            codes.name, moved, codes.scale, codes.zero, codes.lowest, codes.highest
        )
        _push(graph, after, found[after], found)
