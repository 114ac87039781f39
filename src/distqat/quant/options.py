"""The `quant:` section: which method and how many bits, for which layers, and what happens when."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator
from typing_extensions import Self

from distqat.options import Options
from distqat.quant.methods import activation_method, weight_method

Bits = Annotated[int, Field(ge=2, le=8)]
InitName = Literal["mse", "minmax"]

FORMER_SKIP = ("*.wte", "*.wpe", "*LayerNorm*", "*lm_head*")
"""What `skip` was by default while embeddings stayed in float: in configurations it may name nothing."""


FLOAT_SHARE = 0.3
"""Of a run that does not say; docs/log.md."""


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

    float_share: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] | None = None
    """The share of a run's rounds, to the nearest round, that trains in float; then quantizers appear in all
    replicas at once, with steps of what these have seen in the last of them. So few that steps learn for one
    round at least before they are frozen. 0: quantizers are calibrated before the first step. null: 0.3,
    or 0 where tokens are quantized in front of weights in float."""
    calibrate_batches: Annotated[int, Field(ge=1)] = 8
    """Forward passes in training mode (microbatches count singly) that each activation quantizer observes
    before the first step; after twice as many, a quantizer that has seen no values waits for them. (After
    training in float it has seen a whole round instead.) Also the steps, at most, in which BatchNorm is
    measured at the end."""
    freeze_bn_last: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.1
    """The last share of a run's steps: in the second half of it quantizers' steps are frozen, and biases
    snapped. Above 0, in a run of four rounds or more, the weights of a model with BatchNorm stand in the last
    round, in which the statistics that it keeps are measured (also in float); the round before takes the
    steps of both."""

    @model_validator(mode="before")
    @classmethod
    def _float_share_was_float_steps(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or "float_steps" not in given:
            return given
        if given["float_steps"] != 0:  # 0 stands in the configurations that models of earlier releases hold
            raise ValueError(
                "float_steps is gone; give float_share, the share of the run's steps that is trained in "
                "float (float_steps: 700 of 1000 is float_share: 0.7), which servers take as well"
            )
        return {key: value for key, value in given.items() if key != "float_steps"}


class DistillationOptions(Options):
    """How a float teacher counts in the loss; read where there is one."""

    share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Of the loss at the last stage: (1 - share) * task's loss + share * temperature**2 * KL(teacher, model).
    0: no teacher there."""
    temperature: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] = 2.0
    """By what the logits of both are divided in it."""
    hidden: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Weight of the mean squared error between what each stage but the last gives and what its teacher gives,
    in the loss."""


class QuantOptions(Options):
    """Quantization-aware training. Patterns are those of fnmatch over module names, or `stage.name`."""

    enabled: bool = True
    weight: WeightOptions = WeightOptions()
    activation: ActivationOptions = ActivationOptions()
    bias: BiasOptions = BiasOptions()
    first_last_bits: Bits = 8
    """Bits of weights and inputs of the first and the last layer of the whole model, and of embeddings."""
    skip: tuple[str, ...] = ()
    """Layers and embeddings that stay in float; a pattern that names a module names everything inside it."""
    overrides: tuple[OverrideOptions, ...] = ()
    warmup: WarmupOptions = WarmupOptions()
    teacher: str | None = None
    """A float model that the quantized one learns from as well: `self`, its own weights at the moment when
    its quantizers begin; or a checkpoint folder or model file of the same model trained in float, which the
    host of the client and those of servers that found stages must have."""
    distillation: DistillationOptions = DistillationOptions()
    compile: bool = False
    """Compile the arithmetic of quantizers by torch.compile: for GPUs, on a CPU it saves nothing."""

    @property
    def schedule(self) -> WarmupOptions:
        """`warmup`, with a share in float where none is given."""
        if self.warmup.float_share is not None:
            return self.warmup
        return self.warmup.model_copy(update={"float_share": 0.0 if self._only_tokens else FLOAT_SHARE})

    @property
    def _only_tokens(self) -> bool:
        tokens = self.activation.granularity == "per_token" and self.activation.method != "none"
        return tokens and self.weight.method == "none"

    @model_validator(mode="after")
    def _tokens_wait_for_weights(self) -> Self:
        if self.warmup.float_share and self._only_tokens:
            raise ValueError(
                "warmup.float_share: tokens are quantized together with the weights of their layer, which "
                "weight.method: none leaves in float; set float_share: 0"
            )
        return self
