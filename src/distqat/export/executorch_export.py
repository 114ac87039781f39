"""`--format executorch`: a .pte file whose linear layers XNNPACK runs on integers, as on phones.

The program is the graph that torch's PT2E quantization makes, with the trained codes and steps in it: in
front of each layer activations are quantized per token as the program runs (8da), behind it are int8 (8w) or
int4 (4w) weights. ExecuTorch's XNNPACK backend takes both together as one integer product. It finds its own
step for a token, of 256 codes between the least and the largest value and zero.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distqat.data.reading_errors import batch_of
from distqat.errors import ExportError
from distqat.export.agreement_report import ExportReport, Operations, Sizes
from distqat.export.answers_report import answers_report
from distqat.export.checker import FakeQuantized, batches
from distqat.export.codes_file import weight_codes
from distqat.export.export_request import ExportRequest
from distqat.export.joined_stages import JoinedStages
from distqat.export.output_agreement import RunsModel, compare
from distqat.extras import require
from distqat.quant import WeightQuantizer
from distqat.quant.output_quantizer import Unquantized
from distqat.quant.quantized_embedding import quantized_tables
from distqat.quant.quantized_layers import QuantizedLayer, channel_axis
from distqat.quant.token_quantizer import TokenQuantizer

FORMAT, MODEL = "executorch", "model.pte"
OPERATOR = "xnnpack"
ACTIVATION_BITS, INT4 = 8, 4
REFERENCE, EXPORTED = "fake-quantized", "exported"
_QUANTIZED = "quantized_decomposed"


def export(request: ExportRequest) -> ExportReport:
    """Write the program, run it, and compare. Raises ExportError, MissingExtra."""
    task, samples = request.description.task(), request.samples
    if not samples:
        raise ExportError("the task has no held-out samples to trace and check the model with")
    model = request.model.settled()
    made = integer_copy(model)
    require("executorch", extra=FORMAT, why=f"--format {FORMAT}")
    layers = sum(isinstance(each, TokenLinear) for each in made.modules())
    inputs = batch_of(task, samples[:1]).inputs
    buffer, left = _program(made, tuple(inputs.values()))
    path = request.folder / MODEL
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer)
    return _check(request, path, layers, left)


class TokenLinear(nn.Module):
    """A linear layer over codes, as PT2E writes it: [..., in] -> [..., out]."""

    codes: Tensor
    scale: Tensor
    zero: Tensor
    offset: Tensor | None
    limit: int
    group: int | None

    def forward(self, x: Tensor) -> Tensor:
        """Quantize tokens, then multiply; both are patterns that backends know."""
        ops = getattr(torch.ops, _QUANTIZED)
        step, zero = ops.choose_qparams_per_token_asymmetric(x, torch.int8)
        codes = ops.quantize_per_token(x, step, zero, -128, 127, torch.int8)
        x = ops.dequantize_per_token(codes, step, zero, -128, 127, torch.int8, torch.float32)
        limits = (-self.limit - 1, self.limit)
        if self.group is None:
            w = ops.dequantize_per_channel(self.codes, self.scale, self.zero, 0, *limits, torch.int8)
        else:
            w = ops.dequantize_per_channel_group(
                self.codes, self.scale, self.zero, *limits, torch.int8, self.group, torch.float32
            )
        return F.linear(x, w, self.offset)


@torch.no_grad()
def integer_copy(model: JoinedStages) -> JoinedStages:
    """A copy whose quantized layers are `TokenLinear`. Raises ExportError for a model that has others."""
    copied = copy.deepcopy(model).eval()
    layers = [(name, each) for name, each in copied.named_modules() if isinstance(each, QuantizedLayer)]
    if not layers:
        raise ExportError("the model has no quantized layer; train it with quant.enabled")
    for name, layer in layers:
        _check_layer(name, layer)
    for name, table in quantized_tables(copied).items():  # first: a tied one has the codes of a layer
        _float_table(copied.get_submodule(name), table)
    for _, layer in layers:
        _turn(layer)
    return copied


def _float_table(module: nn.Module, table: Tensor) -> None:
    """An embedding of constants, in place of codes that would be computed at every look-up."""
    del module.row_quant
    module.__class__ = nn.Embedding
    module.weight = nn.Parameter(table, requires_grad=False)


def _check_layer(name: str, layer: QuantizedLayer) -> None:
    if isinstance(layer, nn.modules.conv._ConvNd):
        raise ExportError(
            f"{name} is a convolution, and --format {FORMAT} has linear layers only; use --format onnx-int8"
        )
    token, quantizer = layer.input_quant, layer.weight_quant
    if isinstance(token, Unquantized):
        raise ExportError(
            f"{name} takes floats (quant.activation.method: none), and {FORMAT} multiplies integers; use "
            "--format safetensors, gguf or compressed-tensors"
        )
    if not isinstance(token, TokenQuantizer) or token.bits != ACTIVATION_BITS:
        raise ExportError(
            f"{name}: --format {FORMAT} quantizes activations per token with {ACTIVATION_BITS} bits; train "
            "with quant.activation.granularity: per_token, or use --format onnx-int8"
        )
    if not isinstance(quantizer, WeightQuantizer) or quantizer.in_float:
        raise ExportError(f"{name} has no quantized weight (yet); use --format onnx-int8 for mixed models")
    if quantizer.group is not None and quantizer.bits > INT4:
        raise ExportError(
            f"{name} has {quantizer.bits} bits in groups, and XNNPACK has groups of {INT4} bits only: train "
            f"with per_channel steps, or quant.overrides: [{{match: '*', weight: {{bits: {INT4}}}}}]"
        )


def _turn(layer: QuantizedLayer) -> None:
    """Into a `TokenLinear`, in place: a model may hold the layer under several names."""
    quantizer, made = layer.weight_quant, cast(Any, layer)
    assert isinstance(quantizer, WeightQuantizer)
    axis = channel_axis(made)
    codes, step = weight_codes(layer, quantizer), quantizer.step_of_each(layer.weight)
    codes_OI, step_OI = (each if axis == 0 else each.t() for each in (codes, step.expand(codes.shape)))
    bias, group, bits = layer.used_bias(), quantizer.group, quantizer.bits
    for name in [*made._parameters, *made._modules]:
        delattr(made, name)
    made.__class__ = TokenLinear
    made.group, made.limit = group, 7 if bits <= INT4 else 127
    scale = step_OI[:, 0] if group is None else step_OI[:, ::group]
    made.register_buffer("codes", codes_OI.contiguous())
    made.register_buffer("scale", scale.contiguous())
    made.register_buffer("zero", torch.zeros(scale.shape, dtype=torch.int64))
    made.register_buffer("offset", None if bias is None else bias.detach().clone())


def _program(model: JoinedStages, inputs: tuple[Tensor, ...]) -> tuple[bytes, int]:
    """The file, and how many quantized products XNNPACK did not take. Raises ExportError."""
    exir: Any = require("executorch.exir", extra=FORMAT)
    partition: Any = require("executorch.backends.xnnpack.partition.xnnpack_partitioner", extra=FORMAT)
    require("torch.ao.quantization.fx._decomposed", extra=FORMAT)  # defines the operators
    try:
        with torch.no_grad(), _quiet():
            traced = torch.export.export(model, inputs)
            edge = exir.to_edge_transform_and_lower(traced, partitioner=[partition.XnnpackPartitioner()])
            graph = edge.exported_program().graph
            left = sum("dequantize_per_channel" in str(node.target) for node in graph.nodes)
            return bytes(edge.to_executorch().buffer), left
    except (RuntimeError, ValueError, NotImplementedError) as error:
        said = " ".join(str(error).split())[:400] or type(error).__name__
        raise ExportError(f"the model cannot be lowered to ExecuTorch: {said}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Both libraries tell of their own deprecations."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


class _Ran:
    """The program in ExecuTorch's runtime, sample by sample: its shapes are fixed."""

    def __init__(self, path: Path, output: str) -> None:
        runtime: Any = require("executorch.runtime", extra=FORMAT)
        self._program = runtime.Runtime.get().load_program(path)
        self._method: Any = self._program.load_method("forward")
        self._output = output

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        given = list(inputs.values())
        rows = [
            self._method.execute([tensor[i : i + 1].contiguous() for tensor in given])[0].clone()
            for i in range(len(given[0]))
        ]
        return {self._output: torch.cat(rows)}


def _check(request: ExportRequest, path: Path, layers: int, left: int) -> ExportReport:
    model, samples, description = request.model, request.samples, request.description
    task, wanted = description.task(), request.expected.agreement
    output = next(iter(FakeQuantized(model)(next(batches(task, samples)).inputs)))
    models: dict[str, RunsModel] = {REFERENCE: FakeQuantized(model), EXPORTED: _Ran(path, output)}
    scores = compare(task, samples, batches(task, samples), models, reference=REFERENCE, exported=EXPORTED)
    agreement, failures = scores.agreement, []
    if agreement.share < wanted:
        failures.append(f"{agreement.share:.3%} of the answers agree, {wanted:.2%} were wanted")
    if left:
        failures.append(f"{left} of {layers} quantized products run in float: XNNPACK did not take them")
    quantized = [each for each in model.modules() if isinstance(each, QuantizedLayer)]
    bits = sum(each.weight.numel() * (INT4 if each.weight_quant.bits <= INT4 else 8) for each in quantized)
    sizes = Sizes(
        float_file=4 * sum(p.numel() for p in model.parameters()),
        integer_file=path.stat().st_size,
        float_weights=4 * sum(each.weight.numel() for each in quantized),
        integer_weights=bits // 8,
    )
    ran = Operations(layers, layers - left, {OPERATOR: layers - left}, {}, 0)
    report = answers_report(request, scores, FORMAT, path.name, sizes, "executorch")
    return replace(report, operations=ran, failures=tuple(failures))
