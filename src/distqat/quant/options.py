"""The `quant:` section: how many bits, for which layers, and how long to calibrate."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from distqat.options import Options

Bits = Annotated[int, Field(ge=2, le=8)]


class WeightOptions(Options):
    """Weights: symmetric, one step per output channel, codes in +-(2**(bits - 1) - 1)."""

    bits: Bits = 8


class ActivationOptions(Options):
    """Inputs of layers: one step per tensor. `auto` is unsigned where calibration saw nothing below zero."""

    bits: Bits = 8
    signed: Literal["auto"] | bool = "auto"


class BitsOverride(Options):
    """The bits of one side of the layers that a pattern names."""

    bits: Bits


class OverrideOptions(Options):
    """Other bits for the layers that `match` names; a later override wins, and each over first_last_bits."""

    match: str
    weight: BitsOverride | None = None
    activation: BitsOverride | None = None


class WarmupOptions(Options):
    """What happens before the first quantized step."""

    calibrate_batches: Annotated[int, Field(ge=1)] = 8
    """Forward passes in training mode (microbatches count singly) that each activation quantizer observes."""


class QuantOptions(Options):
    """Quantization-aware training. Patterns are those of fnmatch over module names, or `stage.name`."""

    enabled: bool = True
    weight: WeightOptions = WeightOptions()
    activation: ActivationOptions = ActivationOptions()
    first_last_bits: Bits = 8
    """Bits of weights and inputs of the first and the last layer of the whole model."""
    skip: tuple[str, ...] = ()
    """Layers that stay in float; a pattern that names a module names everything inside it."""
    overrides: tuple[OverrideOptions, ...] = ()
    warmup: WarmupOptions = WarmupOptions()
