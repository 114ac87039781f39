"""ONNX Runtime gives the exact sums of codes, whatever the processor does with the largest ones."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from distqat.export.onnx import ort_session as sessions
from distqat.export.onnx.ort_session import OrtSession
from distqat.export.precision import sums_exactly

RNG = np.random.default_rng(7)
SHAPE = (40, 64)


def product(weight: np.ndarray[tuple[int, int], np.dtype[np.int8]]) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ["rows", SHAPE[0]])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, ["rows", SHAPE[1]])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize("told", [True, False], ids=["as found", "as without VNNI"])
def test_sums_of_the_largest_codes_are_exact(told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not told:
        monkeypatch.setattr(sessions, "sums_exactly", lambda: False)
    x = RNG.choice(np.array([254, 255], np.uint8), size=(9, SHAPE[0]))
    weight = RNG.choice(np.array([-127, 126, 127], np.int8), size=SHAPE)
    found = OrtSession(product(weight), threads=1).run({"x": x})["y"]
    assert np.array_equal(found, x.astype(np.int64) @ weight.astype(np.int64))


def test_the_processor_is_asked_once() -> None:
    assert sums_exactly() is sums_exactly()
    assert sums_exactly.cache_info().misses == 1
