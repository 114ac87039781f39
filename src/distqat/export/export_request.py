"""What an export is asked for, and the formats that there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distqat.errors import UnknownName

if TYPE_CHECKING:
    from distqat.export.agreement_report import ExportReport
    from distqat.export.checker import Expectations
    from distqat.export.file_description import FileDescription
    from distqat.export.joined_stages import JoinedStages
    from distqat.tasks import Sample


@dataclass(frozen=True)
class ExportRequest:
    """A trained model, and the folder that its files and the report go to."""

    model: JoinedStages
    """The fake-quantized model. An export settles it (`JoinedStages.settled`), in place."""
    build: Callable[[], JoinedStages]
    """The same model anew, for what is loaded back from a file."""
    samples: Sequence[Sample]
    """Held out, to check with."""
    description: FileDescription
    folder: Path
    config: Mapping[str, Any]
    """The configuration of the run, as JSON has it."""
    expected: Expectations


@dataclass(frozen=True)
class ExportFormat:
    """Where a format is written: `export(request) -> ExportReport` of `module`, which `export_as` writes."""

    module: str
    what: str
    """For people, one line."""
    agreement: float = 0.999
    """Share of the answers that must agree, unless the user says otherwise."""


FORMATS: dict[str, ExportFormat] = {
    "onnx-int8": ExportFormat("distqat.export.onnx_export", "integers for ONNX Runtime"),
    "gguf": ExportFormat("distqat.export.gguf_export", "language models for llama.cpp", agreement=0.99),
    "safetensors": ExportFormat("distqat.export.codes_file", "integer codes and steps, for programs"),
    "torchao": ExportFormat("distqat.export.torchao_export", "the same, run by torch's own int8 kernels"),
    "executorch": ExportFormat(
        "distqat.export.executorch_export", "a program for ExecuTorch and XNNPACK", agreement=0.99
    ),
    "compressed-tensors": ExportFormat(
        "distqat.export.compressed_tensors_export",
        "a language model as transformers and vLLM load it",
        agreement=0.998,
    ),
}
"""Every format; one line each."""


def export_as(name: str, request: ExportRequest) -> ExportReport:
    """Write the model in the format `name`, check it, and write the report.

    Raises UnknownName, and ExportError where the format cannot hold the model.
    """
    from distqat.export.float_answers import float_answers
    from distqat.quant.weight_health import weight_health

    if name not in FORMATS:
        raise UnknownName("export format", name, list(FORMATS))
    report: ExportReport = import_module(FORMATS[name].module).export(request)
    report = replace(
        report,
        weights=tuple(weight_health(request.model)),
        against_float=float_answers(request.model, request.description.task(), request.samples),
    )
    report.write(request.folder)
    return report
