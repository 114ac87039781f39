"""`--format torchao`: the same codes, run by torch's own int8 kernels; for models of linear layers only.

torchao quantizes activations per token as the model runs, with 8 bits. So this takes models trained with
`quant.activation.granularity: per_token` and 8-bit activations; weights may have fewer bits. The file is that
of `--format safetensors`; `torchao_copy` of a model loaded from it is what the check ran.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from distqat.errors import ExportError
from distqat.export import codes_file
from distqat.export.agreement_report import ExportReport, Operations
from distqat.export.checker import FakeQuantized, batches
from distqat.export.codes_file import weight_codes
from distqat.export.export_request import ExportRequest
from distqat.export.joined_stages import JoinedStages
from distqat.export.output_agreement import compare
from distqat.extras import require
from distqat.quant import WeightQuantizer
from distqat.quant.output_quantizer import Unquantized
from distqat.quant.quantized_layers import QuantizedLayer, channel_axis
from distqat.quant.token_quantizer import TokenQuantizer

ACTIVATION_BITS = 8
OPERATOR = "int_scaled_matmul"


def export(request: ExportRequest) -> ExportReport:
    """Write the codes and compare torchao's model with the fake-quantized one. Raises ExportError."""
    model, samples, expected = request.model, request.samples, request.expected
    made = torchao_copy(model.settled())
    report = codes_file.export(request)
    task, layers = (
        request.description.task(),
        sum(isinstance(child, QuantizedLayer) for child in model.modules()),
    )
    models = {"fake-quantized": FakeQuantized(model), "exported": FakeQuantized(made)}
    scores = compare(
        task, samples, batches(task, samples), models, reference="fake-quantized", exported="exported"
    )
    share, failures = scores.agreement.share, list(report.failures)
    if share < expected.agreement:
        failures.append(f"{share:.3%} of the answers agree, {expected.agreement:.2%} were wanted")
    return replace(
        report,
        format="torchao",
        agreement=share,
        largest_error=scores.agreement.largest_error,
        mean_error=scores.agreement.mean_error,
        metrics=scores.metrics,
        operations=Operations(layers, layers, {OPERATOR: layers}, {}, 0),
        failures=tuple(failures),
    )


@torch.no_grad()
def torchao_copy(model: JoinedStages) -> JoinedStages:
    """A copy whose quantized layers are Linear over torchao's Int8Tensor.

    Raises ExportError for a model with other quantized layers, MissingExtra without torchao.
    """
    copied = copy.deepcopy(model).eval()
    layers = [(name, child) for name, child in copied.named_modules() if isinstance(child, QuantizedLayer)]
    if not layers:
        raise ExportError("the model has no quantized layer; train it with quant.enabled")
    for name, layer in layers:
        _check(name, layer)
    for name, layer in layers:
        copied.set_submodule(name, _linear(layer))
    return copied


def _check(name: str, layer: QuantizedLayer) -> None:
    if isinstance(layer, nn.modules.conv._ConvNd):
        raise ExportError(f"{name} is a convolution, torchao has linear layers only; use --format onnx-int8")
    token = layer.input_quant
    if isinstance(token, Unquantized):
        raise ExportError(
            f"{name} takes floats (quant.activation.method: none), and torchao multiplies integers; use "
            "--format safetensors, gguf or compressed-tensors"
        )
    if not isinstance(token, TokenQuantizer) or token.bits != ACTIVATION_BITS:
        raise ExportError(
            f"{name}: torchao quantizes activations per token with {ACTIVATION_BITS} bits; train with "
            "quant.activation.granularity: per_token, or use --format onnx-int8"
        )
    if not isinstance(layer.weight_quant, WeightQuantizer) or layer.weight_quant.state == "calibrating":
        raise ExportError(f"{name} has no quantized weight (yet); use --format onnx-int8 for mixed models")
    if layer.weight_quant.group is not None:
        raise ExportError(f"{name} has steps per group, torchao's int8 products one per channel")


def _linear(layer: QuantizedLayer) -> nn.Linear:
    quantization: Any = require("torchao.quantization", extra="torchao", why="--format torchao")
    module: Any = require(
        "torchao.quantization.quantize_.workflows.int8.int8_tensor", extra="torchao", why="--format torchao"
    )
    weight_quant = layer.weight_quant
    assert isinstance(weight_quant, WeightQuantizer)
    axis = channel_axis(layer)  # type: ignore[arg-type]
    codes = weight_codes(layer, weight_quant)
    codes_OI = (codes if axis == 0 else codes.t()).contiguous()
    scale_O1 = weight_quant.step.expand(codes_OI.shape[0]).reshape(-1, 1).contiguous()
    made = nn.Linear(codes_OI.shape[1], codes_OI.shape[0], bias=layer.bias is not None)
    weight = module.Int8Tensor(
        codes_OI,
        scale_O1,
        block_size=[1, codes_OI.shape[1]],
        dtype=torch.float32,
        act_quant_kwargs=module.QuantizeTensorToInt8Kwargs(granularity=quantization.PerRow()),
    )
    made.weight = nn.Parameter(weight, requires_grad=False)
    bias = layer.used_bias()
    if bias is not None:
        made.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return made
