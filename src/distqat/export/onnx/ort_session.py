"""ONNX Runtime on the CPU, as a user gets it by default, and what its optimizer made of a model."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distqat.errors import ExportError
from distqat.export.onnx.onnx_graph import Array
from distqat.export.precision import sums_exactly
from distqat.extras import require

if TYPE_CHECKING:
    import onnx

INTEGER_OPS = (
    "QLinearConv", "ConvInteger", "QGemm", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
)  # fmt: skip
FLOAT_OPS = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "ConvTranspose")
WARNINGS_OFF = 3


@dataclass(frozen=True)
class ExecutedOperations:
    """Convolutions and matrix products of a model after ONNX Runtime's own optimization."""

    integer: dict[str, int]
    """Those on integers, by operator."""
    floating: dict[str, int]
    """Those in float one of whose factors is a weight."""
    attention: int
    """Those in float of two activations."""

    @property
    def integer_count(self) -> int:
        """How many executed operations are integer ones."""
        return sum(self.integer.values())


class OrtSession:
    """One loaded model; inputs and outputs by name."""

    def __init__(self, model: onnx.ModelProto | Path, *, threads: int = 0, optimized: Path | None = None):
        """`threads` 0 is ONNX Runtime's default; `optimized` is where to write the graph that will run."""
        ort: Any = require("onnxruntime", extra="export", why="running exported models")
        options = ort.SessionOptions()
        options.log_severity_level = WARNINGS_OFF
        options.intra_op_num_threads = threads
        if not sums_exactly():
            options.add_session_config_entry("session.x64quantprecision", "1")
        if optimized is not None:
            options.optimized_model_filepath = str(optimized)
        source = str(model) if isinstance(model, Path) else model.SerializeToString()
        try:
            self._session: Any = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no common base of their own
            raise ExportError(f"ONNX Runtime cannot load {_name(model)}: {error}") from error
        self.inputs: list[str] = [entry.name for entry in self._session.get_inputs()]
        self.outputs: list[str] = [entry.name for entry in self._session.get_outputs()]

    @property
    def metadata(self) -> dict[str, str]:
        """What the file says about itself."""
        return dict(self._session.get_modelmeta().custom_metadata_map)

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """All outputs, or those named. Raises ExportError for inputs that the model does not take."""
        names = list(outputs or self.outputs)
        given = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        try:
            return dict(zip(names, self._session.run(names, given), strict=True))
        except Exception as error:
            shapes = {name: (list(array.shape), str(array.dtype)) for name, array in inputs.items()}
            raise ExportError(f"the model does not run on {shapes}: {error}") from error


def executed(model: onnx.ModelProto | Path) -> ExecutedOperations:
    """Load a model as `OrtSession` does and count what will run."""
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        OrtSession(model, optimized=path)
        graph = onnx.load(str(path)).graph
    constant = {tensor.name for tensor in graph.initializer}
    for node in graph.node:  # a weight that is dequantized or turned while running is a weight
        if node.input and all(name in constant for name in node.input if name):
            constant.update(node.output)
    integer = Counter(node.op_type for node in graph.node if node.op_type in INTEGER_OPS)
    left = [node for node in graph.node if node.op_type in FLOAT_OPS]
    weighted = [node for node in left if any(name in constant for name in node.input[:2])]
    floating = Counter(node.op_type for node in weighted)
    return ExecutedOperations(dict(integer), dict(floating), len(left) - len(weighted))


def _name(model: onnx.ModelProto | Path) -> str:
    return str(model) if isinstance(model, Path) else "the exported model"
