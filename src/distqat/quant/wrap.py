"""Quantize a stage in place, and move all of its quantizers from state to state."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distqat.errors import QuantError
from distqat.quant.flow import Flow
from distqat.quant.joint import OUTPUT_QUANT, CarriedInput, InputQuantizer, SharedInput, add_joint
from distqat.quant.layers import QuantizedLayer, channel_axis, layer_kind, to_quantized
from distqat.quant.options import QuantOptions
from distqat.quant.placement import JOINT_BITS, OWN, Boundary, Placement, place
from distqat.quant.quantizer import STATES, ActivationQuantizer, Quantizer, QuantState, WeightQuantizer
from distqat.quant.rules import LayerBits, layer_bits


@dataclass(frozen=True)
class LayerReport:
    """One quantized layer."""

    name: str
    kind: str
    weight_bits: int
    activation_bits: int


@dataclass(frozen=True)
class QuantReport:
    """What `quantize_module` did to one stage, and what it left in float and why."""

    stage: str
    enabled: bool
    layers: tuple[LayerReport, ...]
    left_out: tuple[tuple[str, str], ...]
    joints: tuple[str, ...] = ()
    """Modules whose output is quantized where it is produced."""

    def lines(self) -> list[str]:
        """For the log: one line in all, one per pair of bits, one per layer left out."""
        if not self.enabled:
            return [f"{self.stage}: quantization is off"]
        lines = [f"{self.stage}: {len(self.layers)} layers quantized, {len(self.left_out)} left in float"]
        if self.joints:
            lines.append(f"  joints: {len(self.joints)} ({self.joints[0]} ... {self.joints[-1]})")
        groups: dict[str, list[str]] = {}
        for layer in self.layers:
            groups.setdefault(f"W{layer.weight_bits}A{layer.activation_bits}", []).append(layer.name)
        lines += [f"  {bits}: {len(names)} ({names[0]} ... {names[-1]})" for bits, names in groups.items()]
        return lines + [f"  float: {name} ({reason})" for name, reason in self.left_out]

    def __str__(self) -> str:
        return "\n".join(self.lines())


def quantize_module(
    module: nn.Module,
    options: QuantOptions,
    *,
    stage: str,
    first: bool,
    last: bool,
    flow: Flow | None = None,
    boundary: Boundary | None = None,
) -> QuantReport:
    """Turn the layers of a stage into their quantized twins, calibrating; nothing where options say disabled.

    `first` and `last` tell whether the stage is the first and the last of the pipeline: the first layer
    (in the order of definition) of the first stage and the last layer of the last one get first_last_bits.
    `flow` (flow.record, of the float stage) lets quantizers stand where tensors are produced; without, each
    layer has one in front of it. Forward passes in training mode are observed until `activate`, except those
    whose tensors are all empty or zero. Raises QuantError if the module is quantized already. Patterns are
    not checked: see check_patterns.
    """
    if not options.enabled:
        return QuantReport(stage, False, (), ())
    if any(isinstance(child, Quantizer) for child in module.modules()):
        raise QuantError(f"stage {stage!r} is quantized already; build it anew to quantize it otherwise")
    chosen, left_out = choose_layers(module, options, stage=stage, first=first, last=last)
    bits_of = {name: bits.activation for name, bits in chosen.items()}
    placement = Placement() if flow is None else place(flow, bits_of, boundary or Boundary())
    kinds = {name: layer_kind(module.get_submodule(name)) or "" for name in chosen}
    for name, changed_later in placement.joints.items():
        _join(module.get_submodule(name), _full(stage, name), changed_later=changed_later)
    for name, bits in chosen.items():
        _quantize_layer(module, name, stage, bits, placement)
    if chosen:
        module.register_forward_pre_hook(_note_dummies, with_kwargs=True)
    layers = (
        LayerReport(name or stage, kinds[name], bits.weight, bits.activation) for name, bits in chosen.items()
    )
    return QuantReport(
        stage, True, tuple(layers), tuple(left_out), tuple(name or stage for name in placement.joints)
    )


def edges(
    module: nn.Module, options: QuantOptions, flow: Flow, *, stage: str, first: bool, last: bool
) -> tuple[bool, bool]:
    """(whether a layer takes the stage's input directly, whether the stage's output comes from layers).

    Where both hold of two neighbours, the tensor between them is quantized by the one that produces it.
    """
    if not options.enabled:
        return False, False
    chosen, _ = choose_layers(module, options, stage=stage, first=first, last=last)
    placement = place(flow, {name: bits.activation for name, bits in chosen.items()}, Boundary())
    return placement.wants_codes, placement.has_codes


def choose_layers(
    module: nn.Module, options: QuantOptions, *, stage: str, first: bool, last: bool
) -> tuple[dict[str, LayerBits], list[tuple[str, str]]]:
    """The layers of a float stage that the options quantize, with their bits; what is left out, and why."""
    named = list(module.named_modules())
    candidates = [name for name, child in named if layer_kind(child) is not None]
    outer = {name for name, wanted in zip(candidates[:1], [first], strict=False) if wanted}
    outer |= {name for name, wanted in zip(candidates[-1:], [last], strict=False) if wanted}
    chosen: dict[str, LayerBits] = {}
    left_out: list[tuple[str, str]] = []
    for name, child in named:
        if layer_kind(child) is None:
            if any(p.dim() >= 2 for p in child.parameters(recurse=False)) or hasattr(
                child, "parametrizations"
            ):
                left_out.append((name or stage, f"{type(child).__name__} stays in float"))
            continue
        bits = layer_bits(options, stage, name, is_edge=name in outer)
        if isinstance(bits, str):
            left_out.append((name or stage, f"skip {bits!r}"))
        else:
            chosen[name] = bits
    return chosen, left_out


def quantizers(module: nn.Module) -> Iterator[tuple[str, Quantizer]]:
    """All quantizers with their names in the module, in order."""
    for name, child in module.named_modules():
        if isinstance(child, Quantizer):
            yield name, child


def activate(module: nn.Module) -> None:
    """calibrating -> active for the whole stage: all steps are computed first, then all are set.

    Raises QuantError, and changes nothing, if a quantizer is not calibrating or saw no real data.
    """
    layers = [child for child in module.modules() if isinstance(child, QuantizedLayer)]
    tensors = [each for _, each in quantizers(module) if isinstance(each, ActivationQuantizer)]
    for _, quantizer in quantizers(module):
        if quantizer.state != "calibrating":
            raise QuantError(
                f"{quantizer.name} is {quantizer.state}; only a calibrating stage can be activated"
            )
    of_weights = [layer.weight_quant.initial_step(layer.weight) for layer in layers]
    of_tensors = [quantizer.initial_step() for quantizer in tensors]
    for layer, weight_step in zip(layers, of_weights, strict=True):
        layer.weight_quant.begin(weight_step)
    for quantizer, (step, signed) in zip(tensors, of_tensors, strict=True):
        quantizer.begin_calibrated(step, signed)


def set_state(module: nn.Module, state: QuantState) -> None:
    """Move every quantizer of a stage to `state`; being there already is fine, going back is a QuantError."""
    if state not in STATES:
        raise QuantError(f"unknown quantizer state {state!r}; known: {', '.join(STATES)}")
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
            f"the order is {' -> '.join(STATES)}"
        )


def calibrated(module: nn.Module, options: QuantOptions) -> bool:
    """Whether every activation quantizer has observed warmup.calibrate_batches, or is past calibrating."""
    return all(
        quantizer.state != "calibrating" or int(quantizer.batches) >= options.warmup.calibrate_batches
        for _, quantizer in quantizers(module)
        if isinstance(quantizer, ActivationQuantizer)
    )


def step_parameter_names(module: nn.Module) -> set[str]:
    """Names of the log-step parameters: no weight decay; averaged as they are, outside the outer momentum."""
    return {f"{name}.log_step" if name else "log_step" for name, _ in quantizers(module)}


def quantizer_buffer_names(module: nn.Module) -> set[str]:
    """Names of the quantizers' buffers: equal on all replicas once active, so compared and never averaged."""
    return {
        f"{name}.{buffer_name}" if name else buffer_name
        for name, quantizer in quantizers(module)
        for buffer_name, _ in quantizer.named_buffers()
    }


def _quantize_layer(module: nn.Module, name: str, stage: str, bits: LayerBits, placement: Placement) -> None:
    layer = module.get_submodule(name)
    weight = layer.get_parameter("weight")
    whole = _full(stage, name)
    where = placement.inputs.get(name, OWN)
    taken: InputQuantizer
    if where.how == "carried":
        taken = CarriedInput(JOINT_BITS, where.of)
    elif where.how == "shared":
        owner = module.get_submodule(str(where.of)).get_submodule("input_quant")
        assert isinstance(owner, ActivationQuantizer)
        taken = SharedInput(owner, str(where.of))
    else:
        taken = ActivationQuantizer(
            f"{whole}.input_quant", bits=bits.activation, signed=bits.signed, device=weight.device
        )
    quantizer = WeightQuantizer(f"{whole}.weight_quant", weight, bits=bits.weight, axis=channel_axis(layer))
    to_quantized(layer, quantizer, taken)


def _join(module: nn.Module, name: str, *, changed_later: bool) -> None:
    device = next((tensor.device for tensor in module.parameters()), None)
    quantizer = ActivationQuantizer(f"{name}.{OUTPUT_QUANT}", bits=JOINT_BITS, signed="auto", device=device)
    add_joint(module, quantizer, changed_later=changed_later)


def _full(stage: str, name: str) -> str:
    return f"{stage}.{name}" if name else stage


def _note_dummies(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """A batch of zeros gives inner layers values that are not zero (biases, norms): it is told apart here."""
    waiting = [
        quantizer
        for _, quantizer in quantizers(module)
        if isinstance(quantizer, ActivationQuantizer) and quantizer.state == "calibrating"
    ]
    if waiting and module.training:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        real = not tensors or any(bool(torch.any(tensor)) for tensor in tensors)
        for quantizer in waiting:
            quantizer.observing = real
