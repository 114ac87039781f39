"""`--format gguf`: one file that llama.cpp runs, with the trained integers in its own blocks.

It holds weights alone: activations are quantized by llama.cpp as it runs, to 8 bits per block of 32. So the
answers of the file are held to the model with quantized weights and float activations; how many of them are
those of the fake-quantized model stands beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from distqat.errors import ExportError
from distqat.export import llama_cpp
from distqat.export.agreement_report import ExportReport, Sizes
from distqat.export.answers_report import answers_report
from distqat.export.export_request import ExportRequest
from distqat.export.file_description import KEY
from distqat.export.gguf_blocks import BLOCK
from distqat.export.gguf_check import (
    WEIGHTS_ONLY,
    code_error,
    compared,
    end_token,
    failures,
    in_llama_cpp,
    read_back,
)
from distqat.export.gguf_families import family_of
from distqat.export.gguf_tensors import GgufTensor, config_of, gguf_tensors
from distqat.export.gguf_tokenizer import write_tokenizer
from distqat.extras import require

MODEL = "model.gguf"


def export(request: ExportRequest) -> ExportReport:
    """Write the file and check it. Raises ExportError, and MissingExtra without gguf."""
    gguf: Any = require("gguf", extra="gguf", why="--format gguf")
    config = config_of(request.model)
    architecture = gguf.MODEL_ARCH[family_of(config).architecture]
    names = gguf.get_tensor_name_map(architecture, int(config.num_hidden_layers))
    folder = llama_cpp.installed()  # a wrong path is said before anything is written
    tensors = gguf_tensors(request.model.settled(), names)
    if not any(each.codes is not None for each in tensors):
        raise ExportError(
            f"no quantized matrix has rows of a multiple of {BLOCK} values, the blocks of GGUF; use --format "
            "safetensors, or a model of other widths"
        )
    path = request.folder / MODEL
    request.folder.mkdir(parents=True, exist_ok=True)
    left_out = _write(gguf, path, gguf.MODEL_ARCH_NAMES[architecture], request, tensors)
    return _checked(request, path, tensors, folder, left_out)


def _write(
    gguf: Any, path: Path, architecture: str, request: ExportRequest, tensors: Sequence[GgufTensor]
) -> str | None:
    """The whole file; what was left out of it, and why."""
    config = config_of(request.model)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(str(request.config["experiment_prefix"]))
    kinds = {each.kind for each in tensors if each.codes is not None}
    types = gguf.LlamaFileType
    writer.add_file_type(types.MOSTLY_Q4_0 if "Q4_0" in kinds else types.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    family_of(config).write(writer, config)
    description = request.description
    left_out = write_tokenizer(writer, description.tokenizer, end_token(request.config), config.vocab_size)
    writer.add_string(KEY, description.to_json())
    for each in tensors:
        writer.add_tensor(each.name, each.stored(), raw_dtype=gguf.GGMLQuantizationType[each.kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return left_out


def _checked(
    request: ExportRequest,
    path: Path,
    tensors: Sequence[GgufTensor],
    folder: Path | None,
    left_out: str | None,
) -> ExportReport:
    found = read_back(path, tensors)
    error, models = code_error(tensors, found), compared(request, tensors, found)
    scores, as_fake = models.scores(request.description.task(), request.samples)
    failed = list(failures(request, scores, error))
    remarks = list(_remarks(tensors, error, as_fake, left_out))
    if folder is None:
        remarks.append(f"llama.cpp was not asked: {llama_cpp.VARIABLE} does not say where it is")
    elif left_out is not None:
        remarks.append("llama.cpp was not asked: node-llama-cpp loads no file without a tokenizer")
    else:
        ran = in_llama_cpp(folder, path, request, models)
        failed += ran.failures(request.expected.agreement)
        remarks.append(ran.remark())
    sizes = _sizes(request, path, tensors)
    report = answers_report(request, scores, "gguf", path.name, sizes, "gguf")
    reference = f"the model with {WEIGHTS_ONLY}"
    return replace(report, reference=reference, failures=tuple(failed), remarks=tuple(remarks))


def _sizes(request: ExportRequest, path: Path, tensors: Sequence[GgufTensor]) -> Sizes:
    quantized = [each for each in tensors if each.codes is not None]
    return Sizes(
        float_file=4 * sum(p.numel() for p in request.model.parameters()),
        integer_file=path.stat().st_size,
        float_weights=4 * sum(each.value.numel() for each in quantized),
        integer_weights=sum(each.stored().nbytes for each in quantized),
    )


def _remarks(
    tensors: Sequence[GgufTensor], error: float, as_fake: float, left_out: str | None
) -> Iterator[str]:
    yield f"decoded weights differ by at most {error:.1e} of themselves: scales are float16"
    yield f"{as_fake:.3%} of the answers are those of the fake-quantized model, activations and all"
    if left_out is not None:
        yield left_out
    for each in tensors:
        if each.is_quantized and each.codes is None:
            yield f"{each.name} is float16: its rows do not divide into blocks of 32"
        if each.coarse_rows:
            yield f"{each.name}: {each.coarse_rows} rows have steps that float16 rounds coarsely"
