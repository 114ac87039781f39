"""The optimizer that a stage steps at every commit, and its learning rate over the run."""

from __future__ import annotations

import math
from collections.abc import Set
from typing import Any

import torch
from torch import nn

from distqat.diloco.options import DilocoOptions, InnerOptimOptions

_RATIO = "rate_ratio"
WEIGHT_STEP_RATIO = 10.0
"""Rate of the log-steps of weights over that of weights, under Adam.

Adam moves each weight by about the rate, and a logarithm of a step too. Weights are small numbers, so they
outgrow their range by more than its logarithm can follow, are cut off and get no gradient (dx is 0 there).
Jain et al. (arXiv:1903.08066, table 4) give log-thresholds a far higher rate than weights as well. Measured:
docs/log.md.
"""


def build_inner_optimizer(
    module: nn.Module,
    options: InnerOptimOptions,
    no_decay: Set[str] = frozenset(),
    weight_steps: Set[str] = frozenset(),
) -> torch.optim.Optimizer:
    """`torch.optim.Adam`, `AdamW` or `SGD` over the trainable parameters of `module`, in three groups.

    Args:
        no_decay: names (as in `named_parameters`) that get no weight decay: norms, biases, quantizer steps.
        weight_steps: names of the log-steps of weights; no decay, and WEIGHT_STEP_RATIO times the rate of
            Adam. SGD follows gradients, which LSQ scales to fit.
    Raises:
        ValueError when a name is that of no parameter.

    The first group decays, the others do not; each may be empty, so the state has one layout. On a CPU and
    on CUDA torch's fused kernels take the step: a loop over parameters calls a dozen operators for each, and
    a quantizer's step is a parameter of one number.
    """
    trainable = {name: param for name, param in module.named_parameters() if param.requires_grad}
    unknown = sorted((no_decay | weight_steps) - {name for name, _ in module.named_parameters()})
    if unknown:
        raise ValueError(f"{unknown[:3]} are no parameters of {type(module).__name__}")
    plain = no_decay - weight_steps
    ratio = 1.0 if options.type == "sgd" else WEIGHT_STEP_RATIO
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in trainable.items() if name not in no_decay | weight_steps], _RATIO: 1.0},
        {"params": [p for name, p in trainable.items() if name in plain], "weight_decay": 0.0, _RATIO: 1.0},
        {
            "params": [p for name, p in trainable.items() if name in weight_steps],
            "weight_decay": 0.0,
            _RATIO: ratio,
        },
    ]
    fused = all(p.device.type in ("cpu", "cuda") for p in trainable.values()) and bool(trainable)
    if options.type == "sgd":
        return torch.optim.SGD(
            groups,
            lr=options.sgd_lr,
            momentum=options.sgd_momentum,
            nesterov=options.sgd_nesterov,
            weight_decay=options.sgd_weight_decay,
            fused=fused,
        )
    adam = torch.optim.AdamW if options.type == "adamw" else torch.optim.Adam
    return adam(
        groups,
        lr=options.adam_lr,
        betas=(options.adam_beta1, options.adam_beta2),
        eps=options.adam_eps,
        weight_decay=options.adam_weight_decay,
        fused=fused,
    )


def learning_rate(
    step: int, total_steps: int, base_lr: float, options: DilocoOptions, *, in_float: int = 0
) -> float:
    """The inner learning rate of inner step `step` (from 0) of `total_steps`, `in_float` of them in float.

    Rises linearly over `warmup_steps`, then stays, or falls to `lr_final` of the base rate along a cosine
    or a line. With `cooldown` the line begins where quantizers appear, so that no steps at small rates are
    spent on weights in float, which quantization moves again (arXiv:2509.22935). A member that runs ahead of
    the last round keeps the last rate.
    """
    if step < options.warmup_steps:
        return base_lr * (step + 1) / options.warmup_steps
    start = max(options.warmup_steps, in_float if options.lr_schedule == "cooldown" else 0)
    if options.lr_schedule == "constant" or step < start:
        return base_lr
    progress = min((step - start) / max(total_steps - start - 1, 1), 1.0)
    left = 0.5 * (1.0 + math.cos(math.pi * progress)) if options.lr_schedule == "cosine" else 1.0 - progress
    return base_lr * (options.lr_final + (1.0 - options.lr_final) * left)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the rate of every group: `lr`, times the ratio of the group."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group[_RATIO]
