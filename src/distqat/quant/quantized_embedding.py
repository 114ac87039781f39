"""Embeddings as tables of integer codes with a step for each row.

A row's step is that of its largest value, made anew at every look-up: nothing is learned or calibrated, so a
state dict has no more entries than in float. Where the matrix is also that of a quantized layer (the tied
output of a language model), a row of the table is an output channel of the layer, and both use its codes.
"""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distqat.quant.layer_rules import matches
from distqat.quant.options import QuantOptions
from distqat.quant.quantized_layers import QuantizedLayer
from distqat.quant.token_quantizer import token_steps
from distqat.quant.weight_quantizer import WeightQuantizer


class RowQuantizer(nn.Module):
    """Symmetric codes in +-(2**(bits - 1) - 1) for every row; `beside` is a quantizer of the same stage."""

    def __init__(self, bits: int, beside: WeightQuantizer | None = None) -> None:
        super().__init__()
        self.bits = bits
        self.qmax = 2 ** (bits - 1) - 1
        self._beside = [beside]  # in a list: it is a layer's submodule, not ours

    def forward(self, rows: Tensor) -> Tensor:
        """[..., features] as the integers will have it, or itself while `beside` is in float."""
        beside = self._beside[0]
        if beside is not None and beside.in_float:
            return rows
        with torch.no_grad():
            steps = token_steps(rows, self.qmax)
            y = (row_codes(rows, steps, self.qmax) * steps).to(rows.dtype)
        return y + (rows - rows.detach())

    def extra_repr(self) -> str:
        """Shown in the printed module."""
        return f"bits={self.bits}, per row"


class TiedRows(nn.Module):
    """The codes of the layer whose weight the table is."""

    def __init__(self, quantizer: WeightQuantizer) -> None:
        super().__init__()
        self.bits = quantizer.bits
        self._quantizer = [quantizer]  # in a list: its parameters belong to the layer alone

    @property
    def quantizer(self) -> WeightQuantizer:
        """The layer's."""
        return self._quantizer[0]

    def forward(self, weight: Tensor) -> Tensor:
        """[rows, features] as the layer has it."""
        quantized: Tensor = self.quantizer(weight)
        return quantized

    def extra_repr(self) -> str:
        """Shown in the printed module."""
        return f"bits={self.bits}, codes of {self.quantizer.name!r}"


class QuantEmbedding(nn.Embedding):
    """Embedding; weight [rows, features]. `row_quant` quantizes the rows looked up, or the whole table."""

    row_quant: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        """[...] indices -> [..., features]."""
        if isinstance(self.row_quant, RowQuantizer):
            rows: Tensor = self.row_quant(super().forward(input))
            return rows
        return F.embedding(input, self.row_quant(self.weight), self.padding_idx)


def quantizes_rows(module: nn.Module) -> TypeGuard[nn.Embedding]:
    """Whether `module` is an embedding that can be quantized: plain, and no look-up changes its weight."""
    return type(module) is nn.Embedding and module.max_norm is None and not module.sparse


def quantize_embeddings(
    module: nn.Module, options: QuantOptions, stage: str
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Turn the embeddings of a stage into their twins, after its layers; (bits by name, what is left, why).

    They have `first_last_bits`: tokens come in through them.
    """
    chosen: dict[str, int] = {}
    left_out: list[tuple[str, str]] = []
    layers = [child for child in module.modules() if isinstance(child, QuantizedLayer)]
    beside = next((x.weight_quant for x in layers if isinstance(x.weight_quant, WeightQuantizer)), None)
    for name, child in list(module.named_modules()):
        if not quantizes_rows(child):
            continue
        row_quant: RowQuantizer | TiedRows = RowQuantizer(options.first_last_bits, beside)
        skip = next((pattern for pattern in options.skip if matches(pattern, stage, name)), None)
        tied = [other for other in _owners(module, child.weight) if not isinstance(other, nn.Embedding)]
        owner = tied[0].weight_quant if tied and isinstance(tied[0], QuantizedLayer) else None
        if skip is not None or options.weight.method == "none":
            left_out.append((name or stage, f"skip {skip!r}" if skip is not None else "methods 'none'"))
        elif tied and not isinstance(owner, WeightQuantizer):
            left_out.append((name or stage, "its matrix is that of a layer in float"))
        else:
            row_quant = TiedRows(owner) if isinstance(owner, WeightQuantizer) else row_quant
            child.__class__ = QuantEmbedding
            child.add_module("row_quant", row_quant)
            chosen[name] = row_quant.bits
    return chosen, left_out


def _owners(module: nn.Module, weight: Tensor) -> list[nn.Module]:
    return [each for each in module.modules() if any(p is weight for p in each.parameters(recurse=False))]


def row_codes(rows: Tensor, steps: Tensor, qmax: int) -> Tensor:
    """float32 integers of `rows`; times the reciprocal, as weights are rounded."""
    return (rows.detach().float() * steps.reciprocal()).round_().clamp_(-qmax, qmax)


@torch.no_grad()
def quantized_tables(module: nn.Module) -> dict[str, Tensor]:
    """The quantized embeddings in `module` by name, as the floats that their codes stand for."""
    tables = [(name, each) for name, each in module.named_modules() if isinstance(each, QuantEmbedding)]
    return {name: each.row_quant(each.weight).detach() for name, each in tables}


@torch.no_grad()
def table_codes(embedding: QuantEmbedding) -> tuple[Tensor, Tensor]:
    """(int8 codes [rows, features], float32 steps [rows]) of a table that has codes of its own."""
    quantizer = embedding.row_quant
    assert isinstance(quantizer, RowQuantizer)
    steps = token_steps(embedding.weight, quantizer.qmax)
    return row_codes(embedding.weight, steps, quantizer.qmax).to(torch.int8), steps[:, 0]
