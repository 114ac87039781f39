"""The tensors of a language model as a GGUF file has them, and back: names, rows, codes in blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distqat.errors import ExportError
from distqat.export.codes_file import weight_codes
from distqat.export.gguf_blocks import BLOCK, SMALLEST_SCALE, Array, block_type, packed
from distqat.export.gguf_families import family_of
from distqat.export.joined_stages import JoinedStages
from distqat.models.causal_lm_stage import BlockStage
from distqat.quant import Quantizer, WeightQuantizer, quantizers
from distqat.quant.quantized_embedding import RowQuantizer, TiedRows, table_codes
from distqat.quant.quantized_layers import QuantizedLayer, channel_axis

_IN_FLOAT32 = "position_embd.weight"
"""As llama.cpp's own converter stores it, with vectors; other matrices without codes are float16."""


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of the file, and the parameter that it is of."""

    name: str
    """In the file: `blk.0.attn_q.weight`."""
    places: tuple[str, ...]
    """In `JoinedStages`, several where weights are tied: `head.model.layers.0.self_attn.q_proj.weight`."""
    value: Tensor
    """What the fake-quantized model computes with, in its own layout."""
    turned: bool
    """Whether the model's layout is [in, out]; files have [out, in]."""
    rows: Tensor | None
    """The row of the model that stands in each place, where the file has another order."""
    kind: str
    """Q8_0, Q4_0, F16 or F32."""
    is_quantized: bool
    """Whether the model quantizes it; without `codes` its rows do not divide into blocks."""
    codes: Tensor | None = None
    """int8, and `steps` that broadcast against them, in the model's layout."""
    steps: Tensor | None = None

    def stored(self) -> Array:
        """The bytes of blocks as uint8, or floats. [rows, ...]"""
        if self.codes is None or self.steps is None:
            dtype = np.float16 if self.kind == "F16" else np.float32
            return np.ascontiguousarray(self._arranged(self.value).numpy(), dtype)
        codes = self._arranged(self.codes).numpy()
        steps = self._arranged(self.steps.expand(self.codes.shape))[:, ::BLOCK].numpy()
        return packed(codes, steps, "Q4_0" if self.kind == "Q4_0" else "Q8_0")

    @property
    def coarse_rows(self) -> int:
        """Rows with a step below what float16 holds with all its bits."""
        if self.steps is None or self.codes is None:
            return 0
        steps = self._arranged(self.steps.expand(self.codes.shape))
        return int((steps < SMALLEST_SCALE).any(dim=1).sum())

    def restored(self, found: Tensor) -> Tensor:
        """A tensor of the file in the model's layout."""
        if self.rows is not None:
            found = found[self.rows.argsort()]
        return found.t() if self.turned else found

    def _arranged(self, tensor: Tensor) -> Tensor:
        turned = tensor.t() if self.turned else tensor
        return turned if self.rows is None else turned[self.rows]


def gguf_tensors(model: JoinedStages, names: Any) -> list[GgufTensor]:
    """Those of a settled model; `names` is the mapping of the `gguf` package for its family.

    Raises ExportError for a parameter that llama.cpp has no tensor for, and while quantizers calibrate.
    """
    for name, quantizer in quantizers(model):
        if quantizer.state == "calibrating":
            raise ExportError(f"{name} is still calibrating, so there are no integers to export; train on")
    config = config_of(model)
    family, groups = family_of(config), dict[object, list[_Parameter]]()
    for each in _parameters(model):
        key = (id(each.tensor), id(each.quantizer)) if family.shares_embedding else each.place
        groups.setdefault(key, []).append(each)
    made = []
    for tied in groups.values():
        first = tied[0]
        name = names.get_name(first.name, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise ExportError(f"llama.cpp has no tensor for {first.name} of a {config.model_type} model")
        rows = first.tensor.shape[1 if first.is_turned else 0]
        order = family.row_order(first.name, config, rows)
        made.append(_tensor(name, first, tuple(each.place for each in tied), order))
    return made


def config_of(model: JoinedStages) -> Any:
    """The configuration of transformers behind the stages. Raises ExportError where there is none."""
    stages = list(model.children())
    if not stages or not all(isinstance(stage, BlockStage) for stage in stages):
        raise ExportError(
            "--format gguf takes causal language models (hf, distilgpt2), which llama.cpp can run; "
            "use --format onnx-int8 for others"
        )
    first: Any = stages[0]
    return first.model_config


@dataclass(frozen=True)
class _Parameter:
    place: str
    layer: nn.Module
    tensor: Tensor

    @property
    def name(self) -> str:
        """In the whole model of transformers: the stage's name is left out."""
        return self.place.partition(".")[2]

    @property
    def own(self) -> str:
        return self.place.rpartition(".")[2]

    @property
    def quantizer(self) -> WeightQuantizer | RowQuantizer | None:
        """That of a layer's weight, or of an embedding's rows, which may be that of its tied layer."""
        found: Any = None
        if self.own == "weight":
            found = getattr(self.layer, "weight_quant", getattr(self.layer, "row_quant", None))
        found = found.quantizer if isinstance(found, TiedRows) else found
        return found if isinstance(found, WeightQuantizer | RowQuantizer) else None

    @property
    def is_turned(self) -> bool:
        return self.own == "weight" and channel_axis(self.layer) == 1

    def used(self) -> Tensor:
        """What the layer computes with."""
        layer, value, quantizer = self.layer, self.tensor, self.quantizer
        if quantizer is not None:
            value = quantizer(value)
        elif self.own == "bias" and isinstance(layer, QuantizedLayer):
            bias = layer.used_bias()
            value = value if bias is None else bias
        return value.detach().float()


def _parameters(model: JoinedStages) -> Iterator[_Parameter]:
    for place, layer in model.named_modules():
        if not isinstance(layer, Quantizer):
            for own, tensor in layer.named_parameters(recurse=False):
                yield _Parameter(f"{place}.{own}", layer, tensor)


@torch.no_grad()
def _tensor(name: str, of: _Parameter, places: tuple[str, ...], order: Tensor | None) -> GgufTensor:
    value = of.used()
    columns = value.shape[0 if of.is_turned else -1]
    kind = "F32" if value.dim() < 2 or name == _IN_FLOAT32 else "F16"
    layer: Any = of.layer
    quantizer, codes, steps = of.quantizer, None, None
    if quantizer is not None and columns % BLOCK == 0:
        kind = block_type(quantizer.bits)
        if isinstance(quantizer, RowQuantizer):
            codes, steps_R = table_codes(layer)
            steps = steps_R[:, None]
        else:
            codes, steps = weight_codes(layer, quantizer), quantizer.step_of_each(of.tensor).detach().float()
    return GgufTensor(name, places, value, of.is_turned, order, kind, quantizer is not None, codes, steps)


@torch.no_grad()
def put_back(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Give the parameters at these places values of their own, also where weights were tied."""
    for place, value in values.items():
        owner, _, own = place.rpartition(".")
        setattr(model.get_submodule(owner), own, nn.Parameter(value.clone(), requires_grad=False))
