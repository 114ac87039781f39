"""From a module to an ONNX graph, by torch's own exporter (which needs onnxscript)."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from distqat.errors import ExportError
from distqat.extras import require

if TYPE_CHECKING:
    import onnx

OPSET = 21
MESSAGE = 400  # characters of what torch says; the rest is its own call stack
BATCH, LENGTH, NODES = "batch", "length", "nodes"


def traced(
    model: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str], opset: int = OPSET
) -> onnx.ModelProto:
    """The graph of `model` for inputs of these shapes: dim 0 is dynamic, dim 1 of sequences too.

    Raises ExportError for a model that torch cannot trace, MissingExtra without the packages of `export`.
    """
    for package in ("onnx", "onnxscript"):
        require(package, extra="export", why="writing ONNX files")
    shapes = tuple(_dynamic(tensor) for tensor in inputs.values())
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                model.eval(),
                tuple(inputs.values()),
                dynamo=True,
                opset_version=opset,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes=(shapes,),
                optimize=True,
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        cause = error.__cause__ or error
        said = " ".join(str(cause).split())[:MESSAGE] or type(cause).__name__
        raise ExportError(f"the model cannot be traced to ONNX: {said}") from error
    assert program is not None
    proto: onnx.ModelProto = program.model_proto
    _name_dimensions(proto.graph)
    return proto


def _dynamic(tensor: Tensor) -> dict[int, object]:
    """Any number of samples; sequences (tokens, waveforms) of any length and graphs of any size, where the
    model itself allows it."""
    dims: dict[int, object] = {0: torch.export.Dim.DYNAMIC}
    if tensor.dim() in (2, 3):
        dims.update((dim, torch.export.Dim.AUTO) for dim in range(1, tensor.dim()))
    return dims


def _name_dimensions(graph: onnx.GraphProto) -> None:
    """The exporter's own symbols (`s21`) become the names that users read."""
    names: dict[str, str] = {}
    for value in graph.input:
        shape = value.type.tensor_type.shape.dim
        for dim, name in zip(shape, (BATCH, NODES if len(shape) == 3 else LENGTH), strict=False):
            if dim.dim_param and name not in names.values():
                names[dim.dim_param] = name
    for value in (*graph.input, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(r"\w+", lambda m: names.get(m[0], m[0]), dim.dim_param)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter reports progress, packages that it misses, and deprecations of its own."""
    noisy = logging.getLogger("torch.onnx")
    level = noisy.level
    noisy.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        noisy.setLevel(level)
