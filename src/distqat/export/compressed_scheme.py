"""How layers of a quantized model are said and stored in the format of compressed-tensors.

    activations        format           weight                                   scales
    in float           pack-quantized   weight_packed, int32 of 4 or 8 bits each weight_scale
    8 bits, per token  int-quantized    weight, int8                             weight_scale
    8 bits, per tensor int-quantized    weight, int8                             weight_scale, input_scale

A scale of weights is [out, 1], or [out, in / group]. Unsigned and shifted activations have an
`input_zero_point`. Source: the compressed-tensors package, `quantization/quant_args.py` and `compressors/`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distqat.errors import ExportError
from distqat.export.codes_file import weight_codes
from distqat.quant import WeightQuantizer
from distqat.quant.output_quantizer import Unquantized, quantizer_of
from distqat.quant.quantized_layers import QuantizedLayer
from distqat.quant.quantizer import ActivationQuantizer
from distqat.quant.token_quantizer import TokenQuantizer

PACKED, INTEGERS = "pack-quantized", "int-quantized"
LINEAR = "Linear"
ACTIVATION_BITS = 8
WORD_BITS = 32


@dataclass(frozen=True)
class LayerScheme:
    """What the configuration says of a layer; layers with equal ones make a group."""

    bits: int
    """Of the codes as they are stored: 4 or 8, which engines have kernels for, whatever was trained."""
    group: int | None
    activations: str | None
    """`token`, or `tensor`, or None for activations in float."""
    symmetric: bool = True

    @classmethod
    def of(cls, name: str, layer: QuantizedLayer) -> LayerScheme:
        """Raises ExportError for a layer that the format, or transformers' reading of it, does not hold."""
        if not isinstance(layer, nn.Linear):
            raise ExportError(
                f"{name} is no torch.nn.Linear, and compressed-tensors quantizes nothing else: GPT-2 and its "
                "kin store Conv1D layers; use --format onnx-int8 for them"
            )
        quantizer, taken = layer.weight_quant, layer.input_quant
        if not isinstance(quantizer, WeightQuantizer) or quantizer.in_float:
            raise ExportError(f"{name} has no quantized weight (yet), which compressed-tensors needs")
        bits = 4 if quantizer.bits <= 4 else 8
        if isinstance(taken, Unquantized):
            return cls(bits, quantizer.group, None)
        if taken.bits != ACTIVATION_BITS:
            raise ExportError(
                f"{name} takes activations of {taken.bits} bits; engines that read compressed-tensors have "
                f"{ACTIVATION_BITS}, or float ones (quant.activation.method: none)"
            )
        if isinstance(taken, TokenQuantizer):
            return cls(bits, quantizer.group, "token")
        return cls(bits, quantizer.group, "tensor", _offset(_step_of(name, layer)) == 0)

    @property
    def format(self) -> str:
        """How the weights lie in the file."""
        return PACKED if self.activations is None else INTEGERS

    def config(self, targets: list[str]) -> dict[str, Any]:
        """An entry of `config_groups`."""
        strategy = "channel" if self.group is None else "group"
        weights = _arguments(self.bits, strategy, group_size=self.group)
        inputs = None
        if self.activations is not None:
            inputs = _arguments(
                ACTIVATION_BITS,
                self.activations,
                dynamic=self.activations == "token",
                symmetric=self.symmetric,
            )
        return {
            "targets": targets,
            "weights": weights,
            "input_activations": inputs,
            "output_activations": None,
            "format": self.format,
        }


def quantization_config(schemes: Mapping[str, LayerScheme], linear: Iterable[str]) -> dict[str, Any]:
    """The key `quantization_config` of a model's config.json.

    `linear` names all linear layers of the model; those without a scheme are to be ignored. The most common
    scheme is that of every `Linear`; layers with another one are named, and names come first.
    """
    groups = [scheme for scheme, _ in Counter(schemes.values()).most_common()]
    usual, *others = groups
    named = {scheme: sorted(n for n, own in schemes.items() if own == scheme) for scheme in others}
    config_groups = {f"group_{i}": each.config(named[each]) for i, each in enumerate(others)}
    config_groups[f"group_{len(others)}"] = usual.config([LINEAR])
    return {
        "quant_method": "compressed-tensors",
        "format": usual.format,
        "quantization_status": "compressed",
        "config_groups": config_groups,
        "ignore": sorted(name for name in linear if name not in schemes),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


@torch.no_grad()
def stored_tensors(name: str, layer: QuantizedLayer, scheme: LayerScheme) -> dict[str, Tensor]:
    """The tensors of a layer by their full names, without the bias."""
    quantizer = layer.weight_quant
    assert isinstance(quantizer, WeightQuantizer)
    codes_OI, step_OI = weight_codes(layer, quantizer), quantizer.step_of_each(layer.weight)
    every = codes_OI.shape[1] if scheme.group is None else scheme.group
    scale_OG = step_OI.expand(codes_OI.shape)[:, ::every].contiguous()
    found = {f"{name}.weight_scale": scale_OG}
    if scheme.format == PACKED:
        found[f"{name}.weight_packed"] = packed(codes_OI, scheme.bits)
        found[f"{name}.weight_shape"] = torch.tensor(codes_OI.shape)
    else:
        found[f"{name}.weight"] = codes_OI
    if scheme.activations == "tensor":
        taken = _step_of(name, layer)
        found[f"{name}.input_scale"] = taken.step.reshape(1)
        if not scheme.symmetric:
            found[f"{name}.input_zero_point"] = torch.tensor([_offset(taken)], dtype=torch.int8)
    return found


def packed(codes_OI: Tensor, bits: int) -> Tensor:
    """int8 codes of 4 or 8 bits as int32 words [out, ceil(in * bits / 32)], the first in the lowest bits.

    What is stored of a code is its distance from the lowest one.
    """
    each = WORD_BITS // bits
    padding = -codes_OI.shape[1] % each
    codes = nn.functional.pad(codes_OI.long() + (1 << (bits - 1)), (0, padding))
    words: Tensor = codes.view(len(codes), -1, each) << torch.arange(0, WORD_BITS, bits)
    return words.sum(-1).to(torch.int32)


def _arguments(
    bits: int, strategy: str, *, group_size: int | None = None, dynamic: bool = False, symmetric: bool = True
) -> dict[str, Any]:
    return {
        "num_bits": bits,
        "type": "int",
        "symmetric": symmetric,
        "strategy": strategy,
        "group_size": group_size,
        "dynamic": dynamic,
    }


def _step_of(name: str, layer: QuantizedLayer) -> ActivationQuantizer:
    found = quantizer_of(layer.input_quant)
    if found is None or found.in_float:
        raise ExportError(f"{name} has no step for its activations (yet), which compressed-tensors needs")
    return found


def _offset(quantizer: ActivationQuantizer) -> int:
    """The int8 code of zero: 0 for symmetric codes, -128 for unsigned ones."""
    lowest, highest = quantizer.code_range
    return 0 if -lowest == highest else -128 - lowest
