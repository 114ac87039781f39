"""The integer model and its float twin from one trace of a quantized model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from distqat.export.joined_stages import JoinedStages
from distqat.export.onnx.activation_nodes import ActivationCodes, lower_activations
from distqat.export.onnx.fixed_tables import fix_tables
from distqat.export.onnx.integer_products import IntegerProduct, lower_products
from distqat.export.onnx.integer_weights import fold_batch_norms, take_weight_codes
from distqat.export.onnx.onnx_graph import OnnxGraph
from distqat.export.onnx.quantizer_markers import MARK, marked_copy
from distqat.export.onnx.tidy_graph import drop_nan_guards, tidy
from distqat.export.onnx.trace import OPSET, traced
from distqat.export.onnx.trim_kernels import trim_kernels

if TYPE_CHECKING:
    import onnx

OUTPUT = "logits"


@dataclass(frozen=True)
class OnnxModels:
    """The model in integers, the same in float, and what became of its layers."""

    integer: onnx.ModelProto
    float: onnx.ModelProto
    probed: onnx.ModelProto
    """The integer model whose further outputs are the codes of `activations`."""
    activations: tuple[ActivationCodes, ...]
    """In the order of the graph."""
    products: tuple[IntegerProduct, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    integer_bytes: int
    """Codes, scales, zero points and biases of what is quantized."""


def output_names(names: Mapping[str, object], inputs: Mapping[str, object]) -> list[str]:
    """Names of the model's outputs, none of which is that of an input; a single one is `logits`."""
    if list(names) == ["x"]:
        return [OUTPUT]
    return [f"{name}_out" if name in inputs else name for name in names]


def onnx_models(
    model: JoinedStages, inputs: Mapping[str, Tensor], *, exact: bool = False, opset: int = OPSET
) -> OnnxModels:
    """Trace a quantized model for inputs of these shapes and write it twice; `exact`: see lower_products.

    Raises ExportError.
    """
    outputs = output_names(model.eval().outputs(*inputs.values()), inputs)
    marked = traced(marked_copy(model), inputs, outputs, opset)
    floating = _float_model(marked)
    graph = OnnxGraph(marked)
    tidy(graph)
    weights = take_weight_codes(graph)
    fold_batch_norms(graph, weights)
    trim_kernels(graph, weights)
    activations = lower_activations(graph)
    products = lower_products(graph, weights, activations, exact)
    drop_nan_guards(graph, fix_tables(graph, _longest(model)))
    probes = _in_order(graph, activations)
    return OnnxModels(
        integer=graph.model(short=True),
        float=floating,
        probed=graph.model([probe.codes for probe in probes]),
        activations=tuple(probes),
        products=tuple(products),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        integer_bytes=graph.added_bytes(),
    )


def _longest(model: JoinedStages) -> int | None:
    """How many tokens the model takes at most; None if it does not say so."""
    configs = [getattr(stage, "config", None) for stage in model.children()]
    return getattr(configs[0], "max_position_embeddings", None)


def _float_model(marked: onnx.ModelProto) -> onnx.ModelProto:
    """The marks dropped: the same weights without quantization."""
    import onnx

    copied = onnx.ModelProto()
    copied.CopyFrom(marked)
    graph = OnnxGraph(copied)
    for node in [node for node in graph.nodes if node.op_type == MARK]:
        if node.output[0] in graph.outputs:
            graph.remove([node])
            graph.add("Identity", [node.input[0]], node.output[0])
        else:
            graph.rewire(node.output[0], node.input[0])
            graph.remove([node])
    return graph.model()


def _in_order(graph: OnnxGraph, activations: Mapping[str, ActivationCodes]) -> list[ActivationCodes]:
    """One per quantizer, in the order in which the graph computes them."""
    produced = {node.output[0]: position for position, node in enumerate(graph.ordered())}
    first = {codes.name: codes for codes in reversed(list(activations.values()))}
    kept = [codes for codes in first.values() if codes.codes in produced]
    return sorted(kept, key=lambda codes: produced[codes.codes])
