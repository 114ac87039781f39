"""Codes of weights, and BatchNorm folded into them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from distqat.errors import ExportError
from distqat.export.onnx import quantizer_markers
from distqat.export.onnx.integer_weights import fold_batch_norms, quantized_codes, take_weight_codes
from distqat.export.onnx.onnx_graph import OnnxGraph
from distqat.quant.fake_quantize import fake_quantize

RNG = np.random.default_rng(3)
WEIGHT = RNG.normal(size=(4, 2, 3, 3)).astype(np.float32)
SCALE = np.array([0.02, 0.05, 0.03, 0.01], dtype=np.float32)


def conv_graph(norm: dict[str, Any], *, shared: bool = False) -> OnnxGraph:
    """input -> Conv with a marked weight -> BatchNormalization, twice where the weight is shared."""
    constants = {"w": WEIGHT, "s": SCALE, **norm}
    nodes = [
        helper.make_node(
            quantizer_markers.MARK,
            ["w", "s"],
            ["wq"],
            domain=quantizer_markers.DOMAIN,
            name="m",
            qmin=-127,
            qmax=127,
            axis=0,
        )
    ]
    nodes[0].attribute.append(helper.make_attribute("name", "layer.weight_quant"))
    nodes[0].attribute.append(helper.make_attribute("kind", quantizer_markers.WEIGHT))
    outputs = ["y", "z"] if shared else ["y"]
    for out in outputs:
        nodes.append(helper.make_node("Conv", ["x", "wq"], [f"{out}.conv"]))
        nodes.append(helper.make_node("BatchNormalization", [f"{out}.conv", *norm], [out], epsilon=1e-3))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 2, 5, 5])],
        [helper.make_tensor_value_info(out, TensorProto.FLOAT, None) for out in outputs],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(quantizer_markers.DOMAIN, 1)]
    return OnnxGraph(helper.make_model(graph, opset_imports=opsets))


def norm_of(gamma: list[float]) -> dict[str, Any]:
    numbers = {"gamma": np.array(gamma), "beta": RNG.normal(size=4), "mean": RNG.normal(size=4)}
    return {n: a.astype(np.float32) for n, a in {**numbers, "variance": RNG.uniform(0.5, 2, 4)}.items()}


@pytest.mark.parametrize(("bits", "axis"), [(8, 0), (4, 0), (2, 1)])
def test_codes_are_those_of_fake_quantization(bits: int, axis: int) -> None:
    weight, qmax = torch.randn(5, 7), 2 ** (bits - 1) - 1
    step = torch.rand(weight.shape[axis]) * 0.2 + 0.01
    faked = fake_quantize(weight, step.log(), -qmax, qmax, axis=axis, gradient_scale=1.0)
    codes = quantized_codes(weight.numpy(), step.log().exp().numpy(), axis, -qmax, qmax)
    shape = [-1 if dim == axis else 1 for dim in range(2)]
    assert np.array_equal(codes * step.log().exp().reshape(shape).numpy(), faked.numpy())


def test_folding_keeps_integer_codes() -> None:
    norm = norm_of([0.7, -1.3, 0.0, 2.0])
    graph = conv_graph(norm)
    before = quantized_codes(WEIGHT, SCALE, 0, -127, 127)
    codes = take_weight_codes(graph)["wq"]
    assert np.array_equal(codes.integers, before)
    assert fold_batch_norms(graph, {"wq": codes}) == 1
    signs = np.array([1, -1, 0, 1], dtype=np.int8).reshape(-1, 1, 1, 1)
    assert np.array_equal(codes.integers, before * signs)
    assert (codes.scale > 0).all()
    assert [node.op_type for node in graph.nodes] == ["Conv"]
    x = torch.randn(2, 2, 5, 5)
    reference = nn.BatchNorm2d(4, eps=1e-3).eval()
    for name, key in (
        ("weight", "gamma"),
        ("bias", "beta"),
        ("running_mean", "mean"),
        ("running_var", "variance"),
    ):
        getattr(reference, name).data = torch.from_numpy(norm[key])
    scaled = before.astype(np.float32) * SCALE.reshape(-1, 1, 1, 1)
    expected = reference(nn.functional.conv2d(x, torch.from_numpy(scaled)))
    bias = torch.from_numpy(np.array(graph.constant(graph.nodes[0].input[2])))
    folded = codes.integers.astype(np.float32) * codes.scale.reshape(-1, 1, 1, 1)
    found = nn.functional.conv2d(x, torch.from_numpy(folded), bias)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_shared_weight_with_two_norms_is_refused() -> None:
    graph = conv_graph(norm_of([1, 1, 1, 1]), shared=True)
    weights = take_weight_codes(graph)
    with pytest.raises(ExportError, match="layer: two layers share the weight"):
        fold_batch_norms(graph, weights)


def test_a_graph_holds_only_what_its_outputs_need() -> None:
    graph = conv_graph(norm_of([1, 1, 1, 1]))
    graph.add("Relu", ["x"], "nobody")
    graph.add_constant("unused", np.zeros(3))
    made = graph.model()
    assert [node.op_type for node in made.graph.node] == [
        quantizer_markers.MARK,
        "Conv",
        "BatchNormalization",
    ]
    assert "unused" not in {tensor.name for tensor in made.graph.initializer}
