"""The same training with the quantizers of another library, Brevitas (`pip install distqat[oracle]`).

Its layers take the place of ours, with the bits and signs that ours have, and learn scales of activations;
those of weights follow the largest weight of a channel, as is its default. It has no quantizers of sums and
pooled tensors here, so less is quantized than with ours. Hugging Face's Conv1D, which it does not know,
becomes a Linear of the transposed weight.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.quantization_work import Work
from distqat.diloco.inner_optimizer import build_inner_optimizer, learning_rate, set_learning_rate
from distqat.distributed.assembly.stage_factory import build_module
from distqat.models import named_tensors
from distqat.quant import ActivationQuantizer, WeightQuantizer
from distqat.quant.output_quantizer import quantizer_of
from distqat.quant.quantized_layers import QuantizedLayer

COLLECTING = 16  # batches whose statistics give the first scales: as many as calibrate ours


def trained_with_brevitas(work: Work, ours: nn.Module, quant: Mapping[str, Any]) -> nn.Module:
    """The model of `work` in Brevitas' layers; `ours` is the same one, calibrated, and says which bits."""
    config = work.config(quant)
    module = build_module(work.config(None), config.stages[0]).train()
    replaced(module, ours)
    options, total = config.diloco, work.effort.steps
    no_decay = {name for name, parameter in module.named_parameters() if parameter.ndim <= 1}
    no_decay |= {name for name, _ in module.named_parameters() if "scaling" in name}
    optimizer = build_inner_optimizer(module, options.inner_optim, no_decay)
    for step, (batch,) in enumerate(work.batches(work.seed, total)):
        optimizer.zero_grad()
        outputs = named_tensors(module(*batch.inputs.values()))
        work.task.loss(outputs, batch.labels).backward()
        if options.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(module.parameters(), options.max_grad_norm)
        set_learning_rate(optimizer, learning_rate(step, total, options.inner_optim.lr, options))
        optimizer.step()
    return module


def replaced(module: nn.Module, ours: nn.Module) -> None:
    """Put Brevitas' layer in the place of each layer that is quantized in `ours`."""
    for name, layer in list(ours.named_modules()):
        if not isinstance(layer, QuantizedLayer) or not isinstance(layer.weight_quant, WeightQuantizer):
            continue
        parent, _, child = name.rpartition(".")
        holder = module.get_submodule(parent)
        taken = quantizer_of(layer.input_quant)
        assert taken is not None, f"{name} takes what another stage has quantized"
        twin = twin_of(getattr(holder, child), layer.weight_quant.bits, taken)
        setattr(holder, child, twin)


def twin_of(layer: nn.Module, weight_bits: int, taken: ActivationQuantizer) -> nn.Module:
    """Brevitas' layer with the weight and bias of `layer`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its imports use what torch has deprecated
        from brevitas import nn as theirs
        from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerChannelFloat, Uint8ActPerTensorFloat

    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    arguments: dict[str, Any] = {
        "bias": bias is not None,
        "weight_quant": Int8WeightPerChannelFloat,
        "weight_bit_width": weight_bits,
        "input_quant": Int8ActPerTensorFloat if bool(taken.signed) else Uint8ActPerTensorFloat,
        "input_bit_width": taken.bits,
        "input_collect_stats_steps": COLLECTING,
    }
    if isinstance(layer, nn.Conv2d):
        form = {"stride": layer.stride, "padding": layer.padding, "groups": layer.groups}
        twin = theirs.QuantConv2d(
            layer.in_channels, layer.out_channels, layer.kernel_size, **form, **arguments
        )
    else:
        weight = weight if isinstance(layer, nn.Linear) else weight.T
        twin = theirs.QuantLinear(weight.shape[1], weight.shape[0], **arguments)
    with torch.no_grad():
        twin.weight.copy_(weight)
        if isinstance(bias, Tensor):
            twin.bias.copy_(bias)
    made: nn.Module = twin
    return made
