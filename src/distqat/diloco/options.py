"""The `diloco` section: inner and outer optimizer, and the rhythm of the rounds."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from distqat.options import Options

OptimName = Literal["adam", "adamw", "sgd"]
CodecName = Literal["fp32", "fp16", "int8", "int4"]
ScheduleName = Literal["constant", "cosine", "linear", "cooldown"]


class OptimOptions(Options):
    """Keys of an optimizer as in `torch.optim`; `type: adamw` reads the `adam_*` keys.

    `adam` with a weight decay adds it to the gradient (L2), `adamw` shrinks the weights (arXiv:1711.05101).
    """

    type: OptimName = "adamw"
    adam_lr: float = Field(default=4e-4, ge=0, allow_inf_nan=False)
    adam_weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    adam_eps: float = Field(default=1e-8, gt=0, allow_inf_nan=False)
    sgd_lr: float = Field(default=0.1, ge=0, allow_inf_nan=False)
    sgd_momentum: float = Field(default=0.9, ge=0, lt=1)
    sgd_nesterov: bool = False
    sgd_weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> Self:
        if self.type == "sgd" and self.sgd_nesterov and self.sgd_momentum == 0:
            raise ValueError(
                "sgd_nesterov: true needs sgd_momentum above 0; set sgd_nesterov: false for plain SGD"
            )
        return self

    @property
    def lr(self) -> float:
        """The base learning rate of the chosen type."""
        return self.sgd_lr if self.type == "sgd" else self.adam_lr

    @property
    def weight_decay(self) -> float:
        """The weight decay of the chosen type."""
        return self.sgd_weight_decay if self.type == "sgd" else self.adam_weight_decay


class InnerOptimOptions(OptimOptions):
    """The optimizer of every inner step; defaults of DiLoCo (arXiv:2311.08105, section 3)."""

    adam_weight_decay: float = Field(default=0.1, ge=0, allow_inf_nan=False)


class OuterOptimOptions(OptimOptions):
    """The optimizer of the rounds; it takes the mean pseudo-gradient.

    SGD with Nesterov 0.7 and momentum 0.5 did best from scratch; from a warm start momentum 0.9 does.
    """

    type: OptimName = "sgd"
    sgd_lr: float = Field(default=0.7, ge=0, allow_inf_nan=False)
    sgd_momentum: float = Field(default=0.5, ge=0, lt=1)
    sgd_nesterov: bool = True


class DilocoOptions(Options):
    """Rounds of DiLoCo: `inner_steps` steps of each replica, then one outer step, `outer_steps` times."""

    inner_optim: InnerOptimOptions = InnerOptimOptions()
    outer_optim: OuterOptimOptions = OuterOptimOptions()
    inner_steps: int = Field(default=30, ge=1, description="inner steps per outer round")
    outer_steps: int = Field(default=40, ge=1, description="outer rounds of the run")
    batch_size_per_step: int = Field(default=32, ge=1, description="samples per inner step and pipeline")
    gradient_accumulation_steps: int = Field(
        default=1, ge=1, description="batches whose gradients one step adds"
    )
    max_grad_norm: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="clip the global gradient norm; null: never"
    )
    lr_schedule: ScheduleName = Field(
        default="constant",
        description="inner learning rate after the warm-up: stays, or decays to lr_final; cooldown stays "
        "while the run trains in float (quant.warmup.float_share), then decays along a line "
        "(arXiv:2509.22935); it is linear where quantizers are there from the first step, or never",
    )
    lr_final: float = Field(
        default=0.1,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="share of the base rate at which a decaying schedule ends (a tenth: arXiv:2203.15556)",
    )
    warmup_steps: int = Field(default=0, ge=0, description="inner steps of linear warm-up")
    codec: CodecName = Field(default="int4", description="how pseudo-gradients travel")
    overlap: bool = Field(default=False, description="go on with inner steps while contributions travel")
    averaging_timeout: float = Field(
        default=60.0, gt=0, allow_inf_nan=False, description="seconds for the exchange of one round"
    )
    grace_spread: float = Field(
        default=4.0,
        ge=0,
        allow_inf_nan=False,
        description="a round waits for the median arrival plus this many spreads of earlier arrivals",
    )
    max_delta_norm_ratio: float = Field(
        default=30.0,
        gt=1,
        allow_inf_nan=False,
        description="a contribution whose norm is above this multiple of the group's median is left out",
    )

    @property
    def total_steps(self) -> int:
        """Inner steps of the whole run per pipeline."""
        return self.inner_steps * self.outer_steps
