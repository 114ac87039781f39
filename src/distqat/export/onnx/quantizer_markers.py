"""Quantizers as marks in a traced graph: a node that says which grid its tensor is rounded to.

A marked model is a copy of the quantized one in which every quantizer is replaced by a module that computes
nothing. Traced to ONNX it becomes the node `distqat::Mark(x, scale)`; `onnx_graph.py` and its neighbours turn
the marks into integers, or drop them for the float model.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from distqat.errors import ExportError
from distqat.quant import ActivationQuantizer, SharedInput, WeightQuantizer, quantizers
from distqat.quant.folded_batchnorm import FoldedNorm, unfold_norm
from distqat.quant.quantized_embedding import QuantEmbedding, RowQuantizer, TiedRows, table_codes
from distqat.quant.quantized_layers import QuantizedLayer, channel_axis
from distqat.quant.token_quantizer import TokenQuantizer

DOMAIN, MARK = "distqat", "Mark"
WEIGHT, ACTIVATION, TOKEN = "weight", "activation", "token"


class QuantizerMark(nn.Module):
    """In place of a quantizer of this kind; `axis` is the output channel of a weight."""

    scale: Tensor

    def __init__(self, kind: str, name: str, scale: Tensor, codes: tuple[int, int], axis: int = -1) -> None:
        super().__init__()
        self.register_buffer("scale", scale.detach().clone().float())
        self.attributes: dict[str, Any] = {
            "kind": kind, "name": name, "qmin": codes[0], "qmax": codes[1], "axis": axis
        }  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """A node of its own in a traced graph; outside of tracing its values mean nothing."""
        marked: Tensor = torch.onnx.ops.symbolic(
            f"{DOMAIN}::{MARK}", (x, self.scale), self.attributes, dtype=x.dtype, shape=x.shape, version=1
        )
        return marked


@torch.no_grad()
def marked_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode with marks for quantizers. Raises ExportError while a quantizer calibrates."""
    copied = copy.deepcopy(model).eval()
    for name, quantizer in quantizers(copied):
        if quantizer.state == "calibrating":
            raise ExportError(
                f"{name} is still calibrating, so there are no integers to export; train on, or take a later "
                "round"
            )
    marks: dict[int, QuantizerMark] = {}
    for child in copied.modules():
        if isinstance(child, FoldedNorm):
            unfold_norm(child)
    for name, layer in list(copied.named_modules()):
        if isinstance(layer, QuantizedLayer):
            _settle_bias(layer)
            weight_quant = layer.weight_quant
            if isinstance(weight_quant, WeightQuantizer):
                where = f"{name}.weight_quant"
                marks[id(weight_quant)] = _weight_mark(where, layer, weight_quant)
                copied.set_submodule(where, marks[id(weight_quant)])
    for name, quantizer in list(quantizers(copied)):
        if not isinstance(quantizer, ActivationQuantizer):
            raise ExportError(f"{name} is a {type(quantizer).__name__}, which no export knows")
        marks[id(quantizer)] = QuantizerMark(ACTIVATION, name, quantizer.step, quantizer.code_range)
        copied.set_submodule(name, marks[id(quantizer)])
    for name, child in list(copied.named_modules()):
        if isinstance(child, SharedInput):
            copied.set_submodule(name, marks[id(child.quantizer)])
        elif isinstance(child, TokenQuantizer):
            codes = (-child.qmax, child.qmax)
            copied.set_submodule(name, QuantizerMark(TOKEN, name, torch.ones(()), codes))
        elif isinstance(child, QuantEmbedding):
            child.row_quant = _table_mark(f"{name}.row_quant", child, marks)
    return copied


def _settle_bias(layer: QuantizedLayer) -> None:
    """The bias as the forward pass has it, rounded where the layer rounds it."""
    bias = layer.used_bias()
    layer.snaps_bias = False
    if layer.bias is not None and bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)


def _table_mark(name: str, table: QuantEmbedding, marks: Mapping[int, QuantizerMark]) -> QuantizerMark:
    """A step per row; that of the layer with the same matrix, where there is one."""
    quantizer = table.row_quant
    if isinstance(quantizer, TiedRows):
        return marks[id(quantizer.quantizer)]
    _, steps = table_codes(table)
    assert isinstance(quantizer, RowQuantizer)
    return QuantizerMark(WEIGHT, name, steps, (-quantizer.qmax, quantizer.qmax), 0)


def _weight_mark(name: str, layer: QuantizedLayer, quantizer: WeightQuantizer) -> QuantizerMark:
    """One step per output channel, also where the quantizer has one for the whole weight."""
    if quantizer.group is not None:
        raise ExportError(
            f"{name} has a step per group of {quantizer.group} inputs, and integer products of ONNX Runtime "
            "have one per output channel; use --format safetensors, gguf or compressed-tensors"
        )
    quantizer(layer.weight)  # a method may set the step by the weight
    axis = channel_axis(cast(nn.Module, layer))
    scale = quantizer.step.expand(layer.weight.shape[axis])
    return QuantizerMark(WEIGHT, name, scale, (-quantizer.qmax, quantizer.qmax), axis)
