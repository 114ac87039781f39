"""The outer optimizer as pure functions: SGD with momentum or Nesterov, Adam, AdamW.

Equal to `torch.optim` within float tolerance, and equal to the bit between unlike processors: every operation
is a single IEEE float32 multiplication, addition, division or square root on the CPU (no addcmul, no lerp,
whose fusing differs), and scalars are computed by multiplication only, never by `pow`. Nothing is changed in
place: a discarded round leaves parameters and state as they were.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from distqat.diloco.options import OuterOptimOptions
from distqat.errors import BadContribution, CheckpointError

Tensors = dict[str, Tensor]
_SLOTS = ("momentum", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class OuterState:
    """Steps taken, and per slot one float32 tensor for each parameter; slots appear with the first update."""

    step: int = 0
    slots: Mapping[str, Tensors] = field(default_factory=dict)

    def tensors(self) -> Tensors:
        """The state as flat named tensors: `step`, and `{slot}/{parameter}`."""
        flat = {"step": torch.tensor(self.step, dtype=torch.int64)}
        for slot, values in self.slots.items():
            flat.update({f"{slot}/{name}": value for name, value in values.items()})
        return flat

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> OuterState:
        """The state that `tensors()` wrote; CheckpointError when it is none."""
        step = tensors.get("step")
        if step is None or step.dtype != torch.int64 or step.numel() != 1 or int(step) < 0:
            raise CheckpointError("outer state: 'step' must be one int64 that is not negative")
        slots: dict[str, Tensors] = {}
        for key in sorted(set(tensors) - {"step"}):
            slot, _, name = key.partition("/")
            if slot not in _SLOTS or not name or tensors[key].dtype != torch.float32:
                raise CheckpointError(f"outer state: {key!r} is not a float32 tensor named slot/parameter")
            slots.setdefault(slot, {})[name] = tensors[key]
        return cls(int(step), slots)


def init(params: Mapping[str, Tensor]) -> OuterState:
    """The state before the first round; BadContribution when a parameter is not float32 on the CPU."""
    for name, param in params.items():
        _check_float32(name, param)
    return OuterState()


def update(
    params: Mapping[str, Tensor],
    pseudo_gradient: Mapping[str, Tensor],
    state: OuterState,
    options: OuterOptimOptions,
) -> tuple[Tensors, OuterState]:
    """One outer step.

    Args:
        params: the anchor, float32 on the CPU.
        pseudo_gradient: the mean of anchor - local, same names and shapes.
        state: what the last committed round left.
    Returns:
        New parameters and new state; the arguments are untouched.
    References:
        torch.optim.SGD, Adam, AdamW; DiLoCo, arXiv:2311.08105.
    """
    if params.keys() != pseudo_gradient.keys():
        odd = sorted(params.keys() ^ pseudo_gradient.keys())
        raise BadContribution(f"the pseudo-gradient differs from the parameters in {odd[:3]}")
    for name, param in params.items():
        _check_float32(name, param)
        _check_float32(name, pseudo_gradient[name])
        if param.shape != pseudo_gradient[name].shape:
            raise BadContribution(f"pseudo-gradient {name!r} has shape {tuple(pseudo_gradient[name].shape)}")
    step_one = _sgd if options.type == "sgd" else _adam
    new_params: Tensors = {}
    new_slots: dict[str, Tensors] = {}
    for name, param in params.items():
        slots = {slot: _slot(state, slot, name, param) for slot in _slot_names(options)}
        gradient = pseudo_gradient[name].detach()
        new_params[name], slots = step_one(param.detach(), gradient, slots, state.step + 1, options)
        for slot, value in slots.items():
            new_slots.setdefault(slot, {})[name] = value
    return new_params, OuterState(state.step + 1, new_slots)


def _sgd(
    param: Tensor, gradient: Tensor, slots: Tensors, step: int, options: OuterOptimOptions
) -> tuple[Tensor, Tensors]:
    if options.sgd_weight_decay:
        gradient = gradient + param * options.sgd_weight_decay
    if not slots:
        return param - gradient * options.sgd_lr, slots
    # torch starts its buffer as the first gradient, which is zero times momentum plus it.
    momentum = slots["momentum"] * options.sgd_momentum + gradient
    direction = gradient + momentum * options.sgd_momentum if options.sgd_nesterov else momentum
    return param - direction * options.sgd_lr, {"momentum": momentum}


def _adam(
    param: Tensor, gradient: Tensor, slots: Tensors, step: int, options: OuterOptimOptions
) -> tuple[Tensor, Tensors]:
    beta1, beta2, lr = options.adam_beta1, options.adam_beta2, options.adam_lr
    if options.type == "adamw":
        param = param * (1.0 - lr * options.adam_weight_decay)
    elif options.adam_weight_decay:
        gradient = gradient + param * options.adam_weight_decay
    mean = slots["exp_avg"] * beta1 + gradient * (1.0 - beta1)
    square = slots["exp_avg_sq"] * beta2 + (gradient * gradient) * (1.0 - beta2)
    root = _sqrt(square) / math.sqrt(1.0 - _power(beta2, step)) + options.adam_eps
    return param - (mean / root) * (lr / (1.0 - _power(beta1, step))), {"exp_avg": mean, "exp_avg_sq": square}


def _sqrt(square: Tensor) -> Tensor:
    """The square root as IEEE 754 rounds it; the last bit of torch's, from MKL, depends on the processor."""
    return torch.from_numpy(np.asarray(np.sqrt(square.numpy())))


def _power(base: float, exponent: int) -> float:
    """base ** exponent by multiplication: libm's pow rounds differently from machine to machine."""
    product = 1.0
    for _ in range(exponent):
        product *= base
    return product


def _slot_names(options: OuterOptimOptions) -> tuple[str, ...]:
    if options.type == "sgd":
        return ("momentum",) if options.sgd_momentum else ()
    return ("exp_avg", "exp_avg_sq")


def _slot(state: OuterState, slot: str, name: str, param: Tensor) -> Tensor:
    if state.step == 0:
        return torch.zeros_like(param)
    value = state.slots.get(slot, {}).get(name)
    if value is None or value.shape != param.shape:
        raise CheckpointError(
            f"outer state after {state.step} rounds has no {slot} for {name!r} of shape "
            f"{tuple(param.shape)}; it belongs to another outer_optim or model"
        )
    return value


def _check_float32(name: str, tensor: Tensor) -> None:
    if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
        raise BadContribution(f"{name!r} must be float32 on the CPU, got {tensor.dtype} on {tensor.device}")
