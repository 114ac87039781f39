"""Products whose left factor is quantized token by token: Q/DQ with the step 1, and a step of each token.

    step = max |x| / qmax, per token;  codes = round(x / step)
    y = (codes @ weight codes * scale) * step + bias

A QuantizeLinear whose scale is 1 makes the codes, so that engines which look for Q/DQ (ONNX Runtime's
MatMulIntegerToFloat, OpenVINO's low precision) find them. No code is beyond qmax, by the choice of the step.
Codes are uint8 around 128: x86 has fast kernels for unsigned times signed bytes, none for two signed ones.
The step is rounded to 16 bits of mantissa, as `quant.token` does, by Veltkamp's splitting: with c = 257 step,
c - (c - step) keeps the upper 16 of 24 bits (Handbook of Floating-Point Arithmetic, section 4.4.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from distqat.export.onnx.integer_weights import WeightCodes
from distqat.export.onnx.onnx_graph import OnnxGraph, attribute
from distqat.export.onnx.stored_codes import stored, zeros

if TYPE_CHECKING:
    import onnx

ZERO = 128
SPLIT = np.float32(2**8 + 1)
LEAST = 2.0**-100
"""The least step: a token of zeros has codes of 0 with any."""


def lower_token_product(
    graph: OnnxGraph, node: onnx.NodeProto, mark: onnx.NodeProto, codes: WeightCodes, bias: str
) -> None:
    """Replace a MatMul or Gemm behind a token mark; `bias` is empty for none."""
    out = node.output[0]
    tokens, step = _quantized(graph, mark)
    value = f"{node.input[1]}.by_column"
    held = stored(graph, node.input[1], codes)
    if node.op_type == "Gemm" and attribute(node, "transB", 0):
        held = graph.add("Transpose", [held], f"{out}.turned", perm=[1, 0])
    scale = graph.add_constant(f"{value}.scale", codes.scale)
    zero = zeros(graph, codes.scale.size)
    graph.remove([node])
    if graph.producer(value) is None:
        graph.add("DequantizeLinear", [held, scale, zero], value)
    product = graph.add("MatMul", [tokens, value], f"{out}.product")
    last = f"{out}.scaled" if bias else out
    graph.add("Mul", [product, step], last)
    if bias:
        graph.add("Add", [last, bias], out)


def _quantized(graph: OnnxGraph, mark: onnx.NodeProto) -> tuple[str, str]:
    """Names of the codes, as numbers, and of the step of each token; made once for all that take this."""
    x = mark.input[0]
    made = f"{x}.of_{attribute(mark, 'qmax')}"
    names = f"{made}.whole", f"{made}.step"
    if graph.producer(names[0]) is not None:
        return names
    qmax = float(attribute(mark, "qmax"))

    def number(value: float) -> str:
        return graph.add_constant(f"token.{value:g}", np.array(value, np.float32))

    size = graph.add("Abs", [x], f"{made}.abs")
    axes = graph.add_constant("token.axes", np.array([-1], dtype=np.int64))
    size = graph.add("ReduceMax", [size, axes], f"{made}.largest")
    size = graph.add("Div", [size, number(qmax)], f"{made}.exact")
    size = graph.add("Max", [size, number(LEAST)], f"{made}.positive")
    wide = graph.add("Mul", [size, number(float(SPLIT))], f"{made}.wide")
    rest = graph.add("Sub", [wide, size], f"{made}.rest")
    graph.add("Sub", [wide, rest], names[1])
    ratio = graph.add("Div", [x, names[1]], f"{made}.ratio")
    grid = number(1), graph.add_constant("token.zero", np.array(ZERO, np.uint8))
    codes = graph.add("QuantizeLinear", [ratio, *grid], f"{made}.codes")
    graph.add("DequantizeLinear", [codes, *grid], names[0])
    return names
