"""Weights as integer codes, with BatchNorm folded into their scales.

BatchNorm after a convolution multiplies each output channel by k = gamma / sqrt(variance + eps). Codes are
symmetric and steps are per channel, so only the step changes, to |step * k|, and the codes of a channel with
k < 0 change their sign (Jacob et al., arXiv:1712.05877, section 3.2, fold before rounding and need not).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from distqat.errors import ExportError
from distqat.export.onnx.onnx_graph import Array, OnnxGraph, attribute
from distqat.export.onnx.quantizer_markers import MARK, WEIGHT
from distqat.quant.int32_bias import folded_step

if TYPE_CHECKING:
    import onnx


@dataclass
class WeightCodes:
    """`integers * scale` along `axis` is the weight; `name` is the layer's, or the embedding's."""

    name: str
    integers: Array
    scale: Array
    axis: int
    bits: int
    folded: bool = field(default=False)
    turned_from: TurnedFrom | None = None
    """The same codes in another layout, which others use as well: a tied embedding."""


@dataclass(frozen=True)
class TurnedFrom:
    """Codes before their transpose by `order`, and the value that they are in the graph."""

    value: str
    codes: WeightCodes
    order: list[int]


def is_mark(node: onnx.NodeProto, kind: str) -> bool:
    """Whether the node is the mark of a quantizer of this kind."""
    return bool(node.op_type == MARK and attribute(node, "kind") == kind)


def quantized_codes(weight: Array, scale: Array, axis: int, qmin: int, qmax: int) -> Array:
    """int8 codes, rounded as fake quantization rounds: times the reciprocal, half to even."""
    shape = [-1 if dim == axis else 1 for dim in range(weight.ndim)]
    inverse = (np.float32(1) / scale.astype(np.float32)).reshape(shape)
    codes: Array = np.clip(np.rint(weight.astype(np.float32) * inverse), qmin, qmax).astype(np.int8)
    return codes


def take_weight_codes(graph: OnnxGraph) -> dict[str, WeightCodes]:
    """Turn marks of weights into codes, by the value that products use; transposes are done here."""
    found: dict[str, WeightCodes] = {}
    seen: dict[str, str] = {}
    for node in [n for n in graph.nodes if is_mark(n, WEIGHT)]:
        name = str(attribute(node, "name"))
        weight, scale = graph.constant(node.input[0]), graph.constant(node.input[1])
        if weight is None or scale is None:
            raise ExportError(
                f"{name}: the weight is computed while the model runs; it has no fixed integers"
            )
        if name in seen:  # a tied embedding's mark is that of the layer
            graph.rewire(node.output[0], seen[name])
            graph.remove([node])
            continue
        seen[name] = node.output[0]
        axis, qmin, qmax = (int(attribute(node, key)) for key in ("axis", "qmin", "qmax"))
        codes = WeightCodes(
            name.rpartition(".")[0],
            quantized_codes(weight, scale, axis, qmin, qmax),
            scale.astype(np.float32),
            axis,
            int(qmax).bit_length() + 1,
        )
        graph.remove([node])
        found[node.output[0]] = codes
    for value, codes in list(found.items()):
        _follow(graph, value, codes, found)
    return found


def fold_batch_norms(graph: OnnxGraph, weights: dict[str, WeightCodes]) -> int:
    """Fold every BatchNorm that alone uses the output of a quantized convolution; returns how many."""
    folded = 0
    for norm in [node for node in graph.nodes if node.op_type == "BatchNormalization"]:
        conv = graph.producer(norm.input[0])
        if conv is None or conv.op_type != "Conv" or conv.input[1] not in weights:
            continue
        if len(graph.consumers(norm.input[0])) > 1 or norm.input[0] in graph.outputs:
            continue
        _fold(graph, conv, norm, weights[conv.input[1]])
        folded += 1
    return folded


def _follow(graph: OnnxGraph, value: str, codes: WeightCodes, found: dict[str, WeightCodes]) -> None:
    found[value] = codes
    shared = len(graph.consumers(value)) > 1
    for node in graph.consumers(value):
        if node.op_type == "Transpose":
            order = list(attribute(node, "perm") or range(codes.integers.ndim)[::-1])
            turned = WeightCodes(
                codes.name,
                np.ascontiguousarray(codes.integers.transpose(order)),
                codes.scale,
                order.index(codes.axis),
                codes.bits,
                turned_from=TurnedFrom(value, codes, order) if shared else None,
            )
            graph.remove([node])
            _follow(graph, node.output[0], turned, found)


def _fold(graph: OnnxGraph, conv: onnx.NodeProto, norm: onnx.NodeProto, codes: WeightCodes) -> None:
    if codes.folded:
        raise ExportError(f"{codes.name}: two layers share the weight, and each has a BatchNorm of its own")
    numbers = [graph.constant(name) for name in norm.input[1:5]]
    if any(array is None for array in numbers):
        raise ExportError(f"{codes.name}: the BatchNorm behind it is not constant; export in eval mode")
    gamma_C, beta_C, mean_C, variance_C = (np.asarray(array, dtype=np.float64) for array in numbers)
    factor_C = gamma_C / np.sqrt(variance_C + float(attribute(norm, "epsilon", 1e-5)))
    bias = graph.constant(conv.input[2]) if len(conv.input) > 2 else None
    bias_C = (np.zeros_like(mean_C) if bias is None else bias.astype(np.float64)) - mean_C
    kept_C = np.abs(codes.scale * factor_C).astype(np.float32) > 0  # else gamma is 0: its bias alone
    sign_C = (np.sign(factor_C) * kept_C).astype(np.int8)
    codes.integers = codes.integers * sign_C.reshape(-1, *[1] * (codes.integers.ndim - 1))
    codes.scale = folded_step(torch.tensor(codes.scale), torch.tensor(factor_C)).numpy()
    codes.folded = True
    name = graph.add_constant(f"{codes.name}.folded_bias", (bias_C * factor_C + beta_C).astype(np.float32))
    del conv.input[2:]
    conv.input.append(name)
    graph.remove([norm])
    conv.output[0] = norm.output[0]
