"""Which layer gets how many bits: name patterns, and the check that each pattern names something.

A pattern (fnmatch, case counts) names a module by its name in the model (`layer4.*`) or with its stage in
front (`back.layer4.*`), and with the module everything inside it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from torch import nn

from distqat.errors import QuantError
from distqat.quant.options import FORMER_SKIP, QuantOptions
from distqat.quant.quantized_layers import layer_kind


@dataclass(frozen=True)
class LayerBits:
    """What one layer gets."""

    weight: int
    activation: int
    signed: Literal["auto"] | bool


def layer_bits(options: QuantOptions, stage: str, name: str, *, is_edge: bool) -> LayerBits | str:
    """The bits of a layer, or the skip pattern that keeps it in float; `is_edge`: first or last of all."""
    for pattern in options.skip:
        if matches(pattern, stage, name):
            return pattern
    weight, activation = options.weight.bits, options.activation.bits
    if is_edge:
        weight = activation = options.first_last_bits
    for override in options.overrides:
        if matches(override.match, stage, name):
            weight = override.weight.bits if override.weight else weight
            activation = override.activation.bits if override.activation else activation
    return LayerBits(weight, activation, options.activation.signed)


def matches(pattern: str, stage: str, name: str) -> bool:
    """Whether the pattern names this module or one that it lies in."""
    parts = name.split(".") if name else []
    inside = [".".join(parts[: end + 1]) for end in range(len(parts))]
    return any(
        fnmatchcase(candidate, pattern)
        for candidate in (*inside, stage, *(f"{stage}.{prefix}" for prefix in inside))
    )


def module_names(module: nn.Module) -> dict[str, bool]:
    """Names of all modules of a stage before quantization, and whether each is a quantizable layer."""
    return {name: layer_kind(child) is not None for name, child in module.named_modules()}


def check_patterns(options: QuantOptions, stages: Mapping[str, Mapping[str, bool]]) -> None:
    """Raise QuantError for a skip or override pattern that names nothing in the whole model.

    `stages` maps each stage of the model to its `module_names`. A server holds its own stage only: whoever
    starts the run (or a server that builds the others under `torch.device("meta")`) calls this once.
    A skip pattern must name a module, unless it is a former default, made for language models;
    an override must name a layer that can be quantized.
    """
    everything = [(stage, name, layer) for stage, names in stages.items() for name, layer in names.items()]
    for pattern in (each for each in options.skip if each not in FORMER_SKIP):
        _require_match("quant.skip", pattern, [(stage, name) for stage, name, _ in everything], everything)
    for override in options.overrides:
        layers = [(stage, name) for stage, name, layer in everything if layer]
        _require_match("quant.overrides", override.match, layers, everything)


def _require_match(
    section: str,
    pattern: str,
    allowed: Iterable[tuple[str, str]],
    everything: Iterable[tuple[str, str, bool]],
) -> None:
    allowed = list(allowed)
    if any(matches(pattern, stage, name) for stage, name in allowed):
        return
    unfit = [name for stage, name, _ in everything if matches(pattern, stage, name)]
    if unfit:
        raise QuantError(
            f"{section}: {pattern!r} names {unfit[0]!r}, which holds no Linear, Conv1d, Conv2d or Conv1D"
        )
    names = sorted({candidate for stage, name in allowed if name for candidate in (name, f"{stage}.{name}")})
    close = difflib.get_close_matches(pattern.strip("*."), names, n=1, cutoff=0.0)
    hint = f"; the nearest name is {close[0]!r}" if close else ""
    raise QuantError(f"{section}: {pattern!r} matches nothing in the model{hint}")
