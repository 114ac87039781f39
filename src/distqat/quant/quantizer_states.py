"""All quantizers of a stage: moved from state to state together, and named for optimizer and rounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from typing import cast

import torch
from torch import Tensor, nn

from distqat.errors import QuantError
from distqat.quant.late_calibration import must_wait
from distqat.quant.options import QuantOptions
from distqat.quant.quantized_layers import QuantizedLayer
from distqat.quant.quantizer import STATES, ActivationQuantizer, Quantizer, QuantState
from distqat.quant.weight_quantizer import WeightQuantizer

OBSERVES = "_observes_data"
_ORDER: tuple[QuantState, ...] = ("calibrating", "active", "frozen")


def quantizers(module: nn.Module) -> Iterator[tuple[str, Quantizer]]:
    """All quantizers with their names in the module, in order."""
    for name, child in module.named_modules():
        if isinstance(child, Quantizer):
            yield name, child


def activate(module: nn.Module, *, wait: bool = False) -> list[Quantizer]:
    """calibrating -> active for the whole stage: all steps are computed first, then all are set.

    Raises QuantError, and changes nothing, if a quantizer is not calibrating or saw no real data. With `wait`
    those that saw none, and those of weights that are all zero, wait instead (see `late_calibration`); they
    are returned.
    """
    for _, quantizer in quantizers(module):
        if quantizer.state != "calibrating":
            raise QuantError(
                f"{quantizer.name} is {quantizer.state}; only a calibrating stage can be activated"
            )
    layers = [child for child in module.modules() if isinstance(child, QuantizedLayer)]
    of_weights = {
        layer.weight_quant: (layer.weight, layer.weight_quant.initial_step(layer.weight))
        for layer in layers
        if isinstance(layer.weight_quant, WeightQuantizer)
    }
    tensors = [each for _, each in quantizers(module) if isinstance(each, ActivationQuantizer)]
    waiting: list[Quantizer] = [each for each in tensors if wait and must_wait(each)]
    of_tensors = {each: each.initial_step() for each in tensors if each not in waiting}
    waiting += [each for each, (weight, _) in of_weights.items() if wait and must_wait(each, weight)]
    for quantizer in waiting:
        known = of_weights.get(cast(WeightQuantizer, quantizer))
        quantizer.wait(known[1] if known else cast(ActivationQuantizer, quantizer).unseen_step)
    for weight_quant, (_, step) in of_weights.items():
        if weight_quant not in waiting:
            weight_quant.begin(step)
    for tensor_quant, found in of_tensors.items():
        tensor_quant.begin_calibrated(*found)
    return waiting


def set_state(module: nn.Module, state: QuantState) -> None:
    """Move every quantizer of a stage to `state`; being there already is fine, going back is a QuantError."""
    if state not in _ORDER:
        raise QuantError(f"unknown quantizer state {state!r}; known: {', '.join(_ORDER)}")
    present = {quantizer.state for _, quantizer in quantizers(module)}
    if present <= {state}:
        return
    if state == "active" and present == {"calibrating"}:
        activate(module)
    elif state == "frozen" and "calibrating" not in present:
        for _, quantizer in quantizers(module):
            quantizer.freeze()
    else:
        raise QuantError(
            f"quantizers that are {' and '.join(sorted(present))} cannot become {state}; "
            f"the order is {' -> '.join(_ORDER)}"
        )


def calibrated(module: nn.Module, options: QuantOptions, shown: int = 0) -> bool:
    """Whether every activation quantizer has observed warmup.calibrate_batches, or is past calibrating.

    After twice as many passes (`shown`) calibration is over in any case: whoever has not seen values by then
    waits for them elsewhere.
    """
    wanted = options.warmup.calibrate_batches
    return shown >= 2 * wanted or all(
        quantizer.state != "calibrating" or int(quantizer.batches) >= wanted
        for _, quantizer in quantizers(module)
        if isinstance(quantizer, ActivationQuantizer)
    )


def check_observed(module: nn.Module) -> None:
    """Raises QuantError, naming the layer, if what calibration has seen cannot be quantized as configured."""
    for _, quantizer in quantizers(module):
        if isinstance(quantizer, ActivationQuantizer) and quantizer.state == "calibrating":
            quantizer.check_observed()


def freeze_in(buffers: Mapping[str, Tensor], names: Set[str]) -> dict[str, Tensor]:
    """A committed stage's buffers with its active quantizers frozen; `names` are quantizer_buffer_names."""
    active, frozen = STATES.index("active"), STATES.index("frozen")
    codes = {name for name in names if name.rpartition(".")[2] == "state_code"}
    return {
        name: torch.full_like(tensor, frozen) if name in codes and int(tensor) == active else tensor
        for name, tensor in buffers.items()
    }


def follow_weights(module: nn.Module) -> None:
    """Steps of weights that are not frozen yet to where the weights need them, as the next pass would."""
    for child in (each for each in module.modules() if isinstance(each, QuantizedLayer)):
        quantizer = child.weight_quant
        if isinstance(quantizer, WeightQuantizer) and quantizer.state == "active":
            quantizer.follow(child.weight)


def observe_data(module: nn.Module, *, on: bool) -> None:
    """Whether calibrating quantizers count what they see from now on; not while a stage trains in float."""
    module.__dict__[OBSERVES] = on


def step_parameter_names(module: nn.Module) -> set[str]:
    """Parameters of quantizers (log-steps, offsets): no weight decay; averaged outside the outer momentum."""
    return {
        f"{name}.{own}" if name else own
        for name, quantizer in quantizers(module)
        for own, _ in quantizer.named_parameters(recurse=False)
    }


def weight_step_names(module: nn.Module) -> set[str]:
    """Those of `step_parameter_names` that are log-steps of weights."""
    return {f"{name}.log_step" for name, each in quantizers(module) if isinstance(each, WeightQuantizer)}


def moving_buffers(module: nn.Module) -> dict[str, Tensor]:
    """The buffers that a forward pass can change: all but those of quantizers that have their step."""
    settled = {id(b) for _, each in quantizers(module) if not each.in_float for b in each.buffers()}
    return {name: buffer for name, buffer in module.named_buffers() if id(buffer) not in settled}


def quantizer_buffer_names(module: nn.Module) -> set[str]:
    """Names of the quantizers' buffers: equal on all replicas once active, so compared and never averaged."""
    return {
        f"{name}.{buffer_name}" if name else buffer_name
        for name, quantizer in quantizers(module)
        for buffer_name, _ in quantizer.named_buffers()
    }
