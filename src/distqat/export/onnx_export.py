"""`--format onnx-int8`: the integer model, its float twin for comparison, and the report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from distqat.data.reading_errors import batch_of
from distqat.errors import ExportError
from distqat.export.agreement_report import ExportReport
from distqat.export.checker import ExportFiles, check_onnx
from distqat.export.export_request import ExportRequest
from distqat.export.file_description import describe
from distqat.export.joined_stages import JoinedStages
from distqat.export.onnx.onnx_model import onnx_models
from distqat.quant.output_quantizer import Unquantized
from distqat.quant.quantized_layers import QuantizedLayer

if TYPE_CHECKING:
    import onnx

MODEL, FLOAT_MODEL = "model.onnx", "model.float.onnx"
LARGEST = 2**31 - 1  # a protobuf holds no more
TRACED_SAMPLES = 4


def export(request: ExportRequest) -> ExportReport:
    """Write both models into the folder, and compare. Raises ExportError."""
    samples, description, folder, expected = (
        request.samples,
        request.description,
        request.folder,
        request.expected,
    )
    task = description.task()
    if not samples:
        raise ExportError("the task has no held-out samples to trace and check the model with")
    _check_inputs(request.model)
    batch = batch_of(task, samples[:TRACED_SAMPLES])
    models = onnx_models(request.model.settled(), batch.inputs, exact=expected.exact, opset=expected.opset)
    files = ExportFiles(folder / MODEL, folder / FLOAT_MODEL)
    for made, path in ((models.integer, files.integer), (models.float, files.float)):
        describe(made, description)
        _write(made, path)
    return check_onnx(
        request.model, models, files, task, samples, source=description.source, expected=expected
    )


def _check_inputs(model: JoinedStages) -> None:
    """ExportError for a model that multiplies floats by design: no product could run on integers."""
    layers = [each for each in model.modules() if isinstance(each, QuantizedLayer)]
    if layers and all(isinstance(each.input_quant, Unquantized) for each in layers):
        raise ExportError(
            "activations are floats (quant.activation.method: none), so no product runs on integers; use "
            "--format gguf, compressed-tensors or safetensors, or train with quantized activations"
        )


def _write(model: onnx.ModelProto, path: Path) -> None:
    if model.ByteSize() > LARGEST:
        raise ExportError(f"{path.name} would take {model.ByteSize():,} bytes; an ONNX file holds 2 GB")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(model.SerializeToString())
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error.strerror or error}") from error
