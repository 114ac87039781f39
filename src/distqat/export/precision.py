"""Whether this processor adds up products of codes exactly, as ONNX Runtime runs them by default.

x86 processors without VNNI add pairs of products in 16 bits, which saturate; ONNX Runtime's option
`session.x64quantprecision` takes exact kernels there. With VNNI it takes them too, a third as fast.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from distqat.extras import require

FACTORS, COLUMNS = 64, 16
LARGEST = (255, 127)  # of unsigned and of signed 8-bit codes; two of their products exceed 16 bits


@cache
def sums_exactly() -> bool:
    """One small product of the largest codes, compared with what it is."""
    onnx: Any = require("onnx", extra="export", why="running exported models")
    ort: Any = require("onnxruntime", extra="export", why="running exported models")
    helper, kinds = onnx.helper, onnx.TensorProto
    weight = np.full((FACTORS, COLUMNS), LARGEST[1], np.int8)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "probe",
        [helper.make_tensor_value_info("x", kinds.UINT8, [1, FACTORS])],
        [helper.make_tensor_value_info("y", kinds.INT32, [1, COLUMNS])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {"x": np.full((1, FACTORS), LARGEST[0], np.uint8)})[0]
    return bool((found == FACTORS * LARGEST[0] * LARGEST[1]).all())
