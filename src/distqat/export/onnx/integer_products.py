"""Products of quantized weights and quantized activations in the forms that ONNX Runtime runs on integers.

| product | followed by a quantizer | form | what ONNX Runtime makes of it |
|---|---|---|---|
| Conv | yes | Q/DQ, int32 bias | QLinearConv |
| Conv | no | ConvInteger, scale and bias in float | ConvInteger |
| Gemm | either | Q/DQ, int32 bias | QGemm |
| MatMul | either | Q/DQ, the bias stays an addition in float | MatMulIntegerToFloat |
| Gemm, MatMul with a step per token | either | Q/DQ of step 1, then times the step | MatMulIntegerToFloat |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from distqat.export.onnx.activation_nodes import ActivationCodes
from distqat.export.onnx.integer_weights import WeightCodes, is_mark
from distqat.export.onnx.onnx_graph import Array, OnnxGraph, attribute
from distqat.export.onnx.quantizer_markers import TOKEN
from distqat.export.onnx.stored_codes import stored, zeros
from distqat.export.onnx.token_nodes import lower_token_product
from distqat.quant.int32_bias import bias_codes, stored_step

if TYPE_CHECKING:
    import onnx

FLOAT = 1
PRODUCTS = ("Conv", "Gemm", "MatMul")
ATTENTION = "activations times activations"


@dataclass(frozen=True)
class IntegerProduct:
    """One convolution or matrix product of the model: `form` is empty where it stays in float, and why."""

    layer: str
    op: str
    form: str
    weight_bits: int
    reason: str = ""
    weights: int = 0
    """Numbers in the weight."""
    biases: int = 0


def lower_products(
    graph: OnnxGraph,
    weights: dict[str, WeightCodes],
    activations: dict[str, ActivationCodes],
    exact: bool = False,
) -> list[IntegerProduct]:
    """Rewrite every product with a quantized weight; a list of all products, in order of the graph.

    `exact`: biases are added in float, behind ConvInteger and QGemm, instead of rounded to int32.
    """
    products = []
    for node in [n for n in graph.nodes if n.op_type in PRODUCTS]:
        codes, given = weights.get(node.input[1]), activations.get(node.input[0])
        before = graph.producer(node.input[0])
        if codes is None:
            products.append(_in_float(graph, node))
        elif before is not None and is_mark(before, TOKEN) and node.op_type != "Conv":
            bias = node.input[2] if len(node.input) > 2 else ""
            sizes = codes.integers.size, codes.scale.size if bias else 0
            lower_token_product(graph, node, before, codes, bias)
            products.append(IntegerProduct(codes.name, node.op_type, "Q/DQ", codes.bits, "", *sizes))
        elif given is None:
            _dequantize_weight(graph, node, codes)
            products.append(
                IntegerProduct(codes.name, node.op_type, "", codes.bits, "its input is not quantized")
            )
        else:
            biased = len(node.input) > 2
            form = _lower(graph, node, codes, given, exact)
            sizes = codes.integers.size, codes.scale.size if biased else 0
            products.append(IntegerProduct(codes.name, node.op_type, form, codes.bits, "", *sizes))
    for value, codes in weights.items():  # what uses a quantized weight without a product
        for node in graph.consumers(value):
            if node.op_type == "Gather" and codes.axis == int(attribute(node, "axis", 0)) == 0:
                _look_up(graph, node, codes)
            else:
                _dequantize_weight(graph, node, codes, value)
    return products


def _look_up(graph: OnnxGraph, node: onnx.NodeProto, codes: WeightCodes) -> None:
    """An embedding: the codes of a row, times its step."""
    value, indices = node.input
    out = node.output[0]
    scale_R1 = graph.add_constant(f"{value}.steps", codes.scale.reshape(-1, 1))
    graph.remove([node])
    row = graph.add("Gather", [stored(graph, value, codes), indices], f"{out}.codes")
    step = graph.add("Gather", [scale_R1, indices], f"{out}.step")
    graph.add("Mul", [graph.add("Cast", [row], f"{out}.float", to=FLOAT), step], out)


def _in_float(graph: OnnxGraph, node: onnx.NodeProto) -> IntegerProduct:
    attention = all(graph.constant(name) is None for name in node.input[:2])
    reason = ATTENTION if attention else "left in float by the configuration"
    return IntegerProduct(graph.scope(node) or node.output[0], node.op_type, "", 0, reason)


def _lower(
    graph: OnnxGraph, node: onnx.NodeProto, codes: WeightCodes, given: ActivationCodes, exact: bool
) -> str:
    if node.op_type == "Conv" and (exact or not _quantized_behind(graph, node)):
        _conv_integer(graph, node, codes, given)
        return "ConvInteger"
    if exact and node.op_type == "Gemm" and len(node.input) > 2:
        out, bias = node.output[0], node.input[2]
        del node.input[2:]
        node.output[0] = f"{out}.unbiased"
        graph.add("Add", [node.output[0], bias], out)
    if node.op_type in ("Conv", "Gemm"):
        _integer_bias(graph, node, codes, given)
    _dequantize_weight(graph, node, codes)
    return "Q/DQ"


def _quantized_behind(graph: OnnxGraph, node: onnx.NodeProto) -> bool:
    users = graph.consumers(node.output[0])
    return node.output[0] not in graph.outputs and [n.op_type for n in users] == ["QuantizeLinear"]


def _dequantize_weight(graph: OnnxGraph, node: onnx.NodeProto, codes: WeightCodes, value: str = "") -> None:
    value = value or node.input[1]
    if graph.producer(value) is None:
        scale, zero = _grid(graph, f"{value}.", codes.scale, np.int8)
        integers = stored(graph, value, codes)
        graph.add("DequantizeLinear", [integers, scale, zero], value, axis=codes.axis)


def _integer_bias(graph: OnnxGraph, node: onnx.NodeProto, codes: WeightCodes, given: ActivationCodes) -> None:
    """The bias as int32 of scale s_x * s_w, and the weight codes as that wants them stored."""
    if len(node.input) < 3 or not node.input[2]:
        return
    bias = graph.constant(node.input[2])
    if bias is None:
        return
    bias_C = torch.tensor(bias.reshape(-1)).expand(codes.scale.shape)
    input_step = torch.tensor(given.scale)
    stored_C = stored_step(torch.tensor(codes.scale), codes.bits, input_step, bias_C)
    shape = [-1 if dim == codes.axis else 1 for dim in range(codes.integers.ndim)]
    ratio_C = codes.scale.astype(np.float64) / stored_C.numpy()  # a whole number but where a step was widened
    codes.integers = np.rint(codes.integers * ratio_C.reshape(shape)).astype(np.int8)
    codes.scale = stored_C.numpy()
    integers_C, product_C = (each.numpy() for each in bias_codes(bias_C, input_step, stored_C))
    value = f"{node.output[0]}.bias"
    scale, zero = _grid(graph, f"{value}.", product_C, np.int32)
    stored = graph.add_constant(f"{value}.integers", integers_C.astype(np.int32))
    node.input[2] = graph.add("DequantizeLinear", [stored, scale, zero], value, axis=0)


def _conv_integer(graph: OnnxGraph, node: onnx.NodeProto, codes: WeightCodes, given: ActivationCodes) -> None:
    """Exact sums in int32, then scale and bias in float: nothing behind it rounds."""
    out, name = node.output[0], codes.name
    integers = stored(graph, node.input[1], codes)
    zeros = [f"{given.name}.zero", graph.add_constant("weight.zero", np.array(0, np.int8))]
    copied = {a.name: attribute(node, a.name) for a in node.attribute}
    sums = graph.add("ConvInteger", [given.codes, integers, *zeros], f"{out}.sums", **copied)
    value = graph.add("Cast", [sums], f"{out}.float", to=FLOAT)
    shape = (-1, *[1] * (codes.integers.ndim - 2))
    factor = (np.float32(given.scale) * codes.scale).reshape(shape)
    bias = graph.constant(node.input[2]) if len(node.input) > 2 else None
    scaled = f"{out}.scaled" if bias is not None else out
    graph.remove([node])
    graph.add("Mul", [value, graph.add_constant(f"{out}.factor", factor.astype(np.float32))], scaled)
    if bias is not None:
        graph.add("Add", [scaled, graph.add_constant(f"{name}.float_bias", bias.reshape(shape))], out)


def _grid(graph: OnnxGraph, prefix: str, scale: Array, dtype: type) -> tuple[str, str]:
    return (
        graph.add_constant(f"{prefix}scale", scale),
        zeros(graph, scale.size, dtype),
    )
