from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from distqat.export.onnx.fixed_tables import LONGEST, fix_tables
from distqat.export.onnx.onnx_graph import Array, OnnxGraph
from distqat.export.onnx.ort_session import OrtSession
from distqat.export.onnx.tidy_graph import drop_nan_guards, tidy


def attention() -> OnnxGraph:
    """A causal mask on scores of 0, softmax and its guard against NaN, and a table of positions added."""
    nodes = [
        ("Shape", ["x"], "length", {"start": 1, "end": 2}),
        ("Squeeze", ["length"], "count", {}),
        ("Range", ["zero", "count", "one"], "positions", {}),
        ("Unsqueeze", ["positions", "upright"], "rows", {}),
        ("LessOrEqual", ["positions", "rows"], "open", {}),
        ("Where", ["open", "nothing", "closed"], "mask", {}),
        ("Shape", ["x"], "shape", {}),
        ("Concat", ["shape", "length"], "square", {"axis": 0}),
        ("Expand", ["nothing", "square"], "scores", {}),
        ("Cast", ["x"], "tokens", {"to": TensorProto.FLOAT}),
        ("Unsqueeze", ["tokens", "upright"], "tokens_B1S", {}),
        ("Mul", ["scores", "tokens_B1S"], "own", {}),
        ("Add", ["own", "mask"], "masked", {}),
        ("Softmax", ["masked"], "soft", {"axis": -1}),
        ("IsNaN", ["soft"], "bad", {}),
        ("Where", ["bad", "nothing", "soft"], "kept", {}),
        ("Gather", ["table", "positions"], "row", {"axis": 0}),
        ("Add", ["kept", "row"], "y", {}),
    ]
    constants = {
        "zero": np.array(0), "one": np.array(1), "upright": np.array([1]), "nothing": np.array(0, np.float32),
        "closed": np.array(-np.inf, np.float32), "table": np.arange(8, dtype=np.float32).reshape(8, 1),
    }  # fmt: skip
    given = helper.make_tensor_value_info("x", TensorProto.INT64, ["batch", "length"])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    made = [helper.make_node(op, given_, [out], **how) for op, given_, out, how in nodes]
    held = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(made, "attention", [given], [output], held)
    return OnnxGraph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8))


def ran(graph: OnnxGraph, batch: int, length: int) -> Array:
    x = np.arange(batch * length, dtype=np.int64).reshape(batch, length)
    return OrtSession(graph.model(short=True)).run({"x": x})["y"]


def test_tables_are_parts_of_those_of_the_longest_sequence() -> None:
    expected, graph = attention(), attention()
    tables = fix_tables(graph, 8)
    assert sorted(table.shape for table in tables.values()) == [(1, 8, 8), (8, 1), (8, 8)]
    drop_nan_guards(graph, tables)
    left = [node.op_type for node in graph.ordered()]
    assert not {"IsNaN", "LessOrEqual"} & set(left)
    assert left.count("Slice") == 3
    for batch, length in ((1, 1), (2, 5), (3, 8)):
        assert np.array_equal(ran(graph, batch, length), ran(expected, batch, length))


@pytest.mark.parametrize("longest", [None, LONGEST + 1])
def test_nothing_is_done_where_the_longest_sequence_is_not_known_or_long(longest: int | None) -> None:
    graph = attention()
    assert fix_tables(graph, longest) == {}
    assert "LessOrEqual" in [node.op_type for node in graph.ordered()]


def test_rows_that_a_mask_may_close_keep_their_guard() -> None:
    graph = attention()
    tables = fix_tables(graph, 8)
    drop_nan_guards(graph, {name: np.full_like(table, -np.inf) for name, table in tables.items()})
    assert "IsNaN" in [node.op_type for node in graph.ordered()]


def test_an_rms_norm_divides() -> None:
    constants = [numpy_helper.from_array(np.array(2.0, np.float32), "two")]
    nodes = [
        helper.make_node("Pow", ["x", "two"], ["square"]),
        helper.make_node("ReduceMean", ["square"], ["mean"], keepdims=1),
        helper.make_node("Sqrt", ["mean"], ["root"]),
        helper.make_node("Reciprocal", ["root"], ["inverse"]),
        helper.make_node("Mul", ["x", "inverse"], ["y"]),
    ]
    given, output = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 3]) for n in "xy")
    made = helper.make_graph(nodes, "norm", [given], [output], constants)
    graph = OnnxGraph(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=8))
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    before = OrtSession(graph.model()).run({"x": x})["y"]
    tidy(graph)
    assert [node.op_type for node in graph.ordered()][-2:] == ["Sqrt", "Div"]
    assert np.allclose(OrtSession(graph.model()).run({"x": x})["y"], before, rtol=1e-6)
