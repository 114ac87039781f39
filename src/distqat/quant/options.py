"""The `quant:` section: which method and how many bits, for which layers, and what happens when."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from distqat.options import Options
from distqat.quant.methods import activation_method, weight_method

Bits = Annotated[int, Field(ge=2, le=8)]
InitName = Literal["mse", "minmax"]

DEFAULT_SKIP = ("*.wte", "*.wpe", "*LayerNorm*", "*lm_head*")
"""Embeddings, norms and the tied output of language models; in other models they name nothing."""


class WeightOptions(Options):
    """Weights: symmetric codes in +-(2**(bits - 1) - 1)."""

    bits: Bits = 8
    granularity: Literal["per_channel", "per_tensor", "per_group"] = "per_channel"
    """One step per output channel, one for the whole tensor, or in linear layers one for every `group` inputs
    of an output channel (convolutions: per channel)."""
    group: Literal[32, 64, 128] = 32
    """Inputs that share a step, with `per_group`; where inputs are no multiple, all of a channel do."""
    method: Annotated[str, AfterValidator(weight_method)] = "lsq"
    """How steps come about: `lsq`, `minmax`, or `none` for weights in float."""
    init: InitName = "mse"
    """The first steps: of least squared error, or so that the largest value is the largest code."""


class ActivationOptions(Options):
    """Tensors between layers. `auto` is unsigned where calibration saw nothing below zero."""

    bits: Bits = 8
    signed: Literal["auto"] | bool = "auto"
    granularity: Literal["per_tensor", "per_token"] = "per_tensor"
    """`per_token`: in front of linear layers a step of its own for every token, made anew from its values."""
    method: Annotated[str, AfterValidator(activation_method)] = "lsq"
    """How steps come about: `lsq`, `lsq+`, `pact`, `minmax`, or `none` for tensors in float."""
    init: InitName = "mse"
    """The first steps: of least squared error, or so that the largest value is the largest code."""


class BiasOptions(Options):
    """Biases of layers, which integer runtimes hold as int32."""

    snap: bool = True
    """Round them to the grid of the accumulator (input step times weight step) once steps are frozen."""


class BitsOverride(Options):
    """The bits of one side of the layers that a pattern names."""

    bits: Bits


class OverrideOptions(Options):
    """Other bits for the layers that `match` names; a later override wins, and each over first_last_bits."""

    match: str
    weight: BitsOverride | None = None
    activation: BitsOverride | None = None


class WarmupOptions(Options):
    """What happens before the first quantized step, and near the end of the run."""

    float_steps: Annotated[int, Field(ge=0)] = 0
    """Optimizer steps in float before quantizers are calibrated; more than 0 in one process only."""
    calibrate_batches: Annotated[int, Field(ge=1)] = 8
    """Forward passes in training mode (microbatches count singly) that each activation quantizer observes;
    after twice as many, a quantizer that has seen no values waits for them. Also the steps, at most, in which
    BatchNorm is measured at the end."""
    freeze_bn_last: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.1
    """The last share of a run's steps: in the second half of it quantizers' steps are frozen, and biases
    snapped. Above 0, in a run of four rounds or more, the weights of a model with BatchNorm stand in the last
    round, in which the statistics that it keeps are measured (also in float); the round before takes the
    steps of both."""


class QuantOptions(Options):
    """Quantization-aware training. Patterns are those of fnmatch over module names, or `stage.name`."""

    enabled: bool = True
    weight: WeightOptions = WeightOptions()
    activation: ActivationOptions = ActivationOptions()
    bias: BiasOptions = BiasOptions()
    first_last_bits: Bits = 8
    """Bits of weights and inputs of the first and the last layer of the whole model."""
    skip: tuple[str, ...] = DEFAULT_SKIP
    """Layers that stay in float; a pattern that names a module names everything inside it."""
    overrides: tuple[OverrideOptions, ...] = ()
    warmup: WarmupOptions = WarmupOptions()
    compile: bool = False
    """Compile the arithmetic of quantizers by torch.compile: for GPUs, on a CPU it saves nothing."""
