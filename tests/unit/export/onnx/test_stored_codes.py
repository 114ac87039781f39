from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from distqat.export.onnx.integer_weights import TurnedFrom, WeightCodes
from distqat.export.onnx.onnx_graph import Array, OnnxGraph
from distqat.export.onnx.ort_session import OrtSession
from distqat.export.onnx.stored_codes import stored


def empty(shape: tuple[int, ...]) -> OnnxGraph:
    given = helper.make_tensor_value_info("x", TensorProto.INT8, [1])
    output = helper.make_tensor_value_info("y", TensorProto.INT8, list(shape))
    graph = helper.make_graph([], "codes", [given], [output])
    return OnnxGraph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8))


def written(integers: Array, bits: int) -> tuple[onnx.ModelProto, Array]:
    """The model that gives the codes, and what it gives."""
    graph = empty(integers.shape)
    codes = WeightCodes("layer", integers, np.ones(len(integers), np.float32), 0, bits)
    graph.add("Identity", [stored(graph, "w", codes)], "y")
    model = graph.model()
    onnx.checker.check_model(model, full_check=True)
    return model, OrtSession(model).run({"x": np.zeros(1, np.int8)})["y"]


def some(bits: int, shape: tuple[int, ...], multiple: int = 1) -> Array:
    highest = 2 ** (bits - 1) - 1
    codes = np.random.default_rng(bits).integers(-highest, highest + 1, shape) * multiple
    return codes.astype(np.int8)


@pytest.mark.parametrize(
    ("bits", "multiple", "at_once"),
    [(2, 1, 5), (2, 127, 5), (3, 42, 2), (4, 1, 2), (4, 18, 2), (5, 1, 1), (8, 1, 1)],
)
@pytest.mark.parametrize("shape", [(16, 4, 5, 5), (37, 53)])
def test_packed_codes_come_back(bits: int, multiple: int, at_once: int, shape: tuple[int, ...]) -> None:
    integers = some(bits, shape, multiple)
    model, found = written(integers, bits)
    assert np.array_equal(found, integers)
    assert found.dtype == np.int8
    data = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    assert data <= integers.size / at_once + 1400


def test_codes_off_the_multiples_are_stored_as_they_are() -> None:
    integers = some(4, (64, 64))
    integers[3] = 90  # a channel whose step was widened, see quant.int32_bias
    model, found = written(integers, 4)
    assert np.array_equal(found, integers)
    assert [node.op_type for node in model.graph.node] == ["Identity"]


def test_small_weights_are_not_worth_the_nodes() -> None:
    model, _ = written(some(4, (8, 8)), 4)
    assert len(model.graph.node) == 1


def test_codes_that_two_layouts_need_are_stored_once() -> None:
    integers = some(8, (50, 20))
    table = WeightCodes("head", integers, np.ones(50, np.float32), 0, 8)
    source = TurnedFrom("w", table, [1, 0])
    turned: dict[str, Any] = {"scale": table.scale, "axis": 1, "bits": 8, "turned_from": source}
    graph = empty((20, 50))
    graph.add("Identity", [stored(graph, "t", WeightCodes("head", integers.T.copy(), **turned))], "y")
    assert stored(graph, "w", table) == "w.integers"
    assert graph.added_bytes() == integers.size
    assert np.array_equal(OrtSession(graph.model()).run({"x": np.zeros(1, np.int8)})["y"], integers.T)
    graph = empty((20, 50))
    changed = WeightCodes("head", -integers.T, **turned)  # stored otherwise than the table
    graph.add("Identity", [stored(graph, "t", changed)], "y")
    assert np.array_equal(OrtSession(graph.model()).run({"x": np.zeros(1, np.int8)})["y"], -integers.T)
