"""OpenVINO on the CPU, the second engine that an exported file is checked in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from distqat.errors import ExportError
from distqat.export.onnx.onnx_graph import Array
from distqat.extras import require

PRODUCTS = ("Convolution", "GroupConvolution", "FullyConnected", "MatMul")
EIGHT_BITS = ("u8", "i8")
CONFIG = {"INFERENCE_PRECISION_HINT": "f32"}
"""Processors with AMX compute what is not 8 bits in bfloat16 otherwise."""


class OpenvinoSession:
    """One compiled model; inputs by name. Raises ExportError for one that OpenVINO cannot load."""

    def __init__(self, path: Path) -> None:
        openvino: Any = require("openvino", extra="openvino", why="checking exported models in OpenVINO")
        try:
            self._model: Any = openvino.Core().compile_model(str(path), "CPU", CONFIG)
        except RuntimeError as error:
            raise ExportError(f"OpenVINO cannot load {path.name}: {_first_lines(error)}") from error
        self.inputs: list[str] = [entry.get_any_name() for entry in self._model.inputs]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs by name. Raises ExportError for inputs that the model does not take."""
        try:
            found = self._model(dict(inputs))
        except RuntimeError as error:
            raise ExportError(f"the model does not run in OpenVINO: {_first_lines(error)}") from error
        return {entry.get_any_name(): np.array(found[entry]) for entry in self._model.outputs}

    @property
    def products(self) -> tuple[int, int]:
        """(convolutions and matrix products that run on 8-bit integers, all of them), as OpenVINO says."""
        precisions = [
            _said(node, "runtimePrecision")
            for node in self._model.get_runtime_model().get_ops()
            if _said(node, "layerType") in PRODUCTS
        ]
        return sum(precision in EIGHT_BITS for precision in precisions), len(precisions)


def _said(node: Any, key: str) -> str:
    info = node.get_rt_info()
    return str(info[key].astype(str)) if key in info else ""


def _first_lines(error: RuntimeError) -> str:
    return " ".join(str(error).split())[:400]
