"""Quantize a stage in place: choose its layers, place its quantizers, turn layers into their twins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distqat.errors import QuantError
from distqat.quant.folded_batchnorm import fold_norm
from distqat.quant.layer_rules import LayerBits, layer_bits
from distqat.quant.options import QuantOptions, WeightOptions
from distqat.quant.output_quantizer import (
    OUTPUT_QUANT,
    CarriedInput,
    InputQuantizer,
    SharedInput,
    Unquantized,
    add_joint,
)
from distqat.quant.parametrized import inner_modules
from distqat.quant.quant_report import LayerReport, QuantReport
from distqat.quant.quantized_embedding import quantize_embeddings, quantizes_rows
from distqat.quant.quantized_layers import channel_axis, layer_kind, to_quantized
from distqat.quant.quantizer import ActivationQuantizer, Quantizer, QuantizerSettings
from distqat.quant.quantizer_placement import (
    JOINT_BITS,
    OWN,
    QuantizerPlacement,
    StageBoundary,
    outer_layers,
    place,
)
from distqat.quant.quantizer_states import OBSERVES, quantizers
from distqat.quant.tensor_producers import TensorFlow
from distqat.quant.token_quantizer import TokenQuantizer
from distqat.quant.weight_quantizer import WeightQuantizer

_REPORT = "_quant_report"
_REQUANTIZED = "_quant_requantized"
_OBSERVERS = "_quant_observers"


def quantize_module(
    module: nn.Module,
    options: QuantOptions,
    *,
    stage: str,
    first: bool,
    last: bool,
    flow: TensorFlow | None = None,
    boundary: StageBoundary | None = None,
) -> QuantReport:
    """Turn the layers of a stage into their quantized twins, calibrating; nothing where options say disabled.

    `first` and `last` tell whether the stage is the first and the last of the pipeline: the first layer
    (in the order of definition) of the first stage and the last layer of the last one get first_last_bits,
    and so do all others that take the model's inputs or give its outputs, where there is a flow.
    `flow` (flow.record, of the float stage) lets quantizers stand where tensors are produced; without, each
    layer has one in front of it. Forward passes in training mode are observed until `activate`, except those
    whose tensors are all empty or zero. Raises QuantError if the module is quantized already. Patterns are
    not checked: see check_patterns.
    """
    if not options.enabled:
        return QuantReport(stage, False, (), ())
    if any(isinstance(child, Quantizer) for child in module.modules()):
        raise QuantError(f"stage {stage!r} is quantized already; build it anew to quantize it otherwise")
    chosen, left_out = choose_layers(module, options, stage=stage, first=first, last=last, flow=flow)
    placement = QuantizerPlacement()
    if flow is not None:
        placement = place(flow, _placed_bits(module, chosen, options), boundary or StageBoundary())
    kinds = {name: layer_kind(module.get_submodule(name)) or "" for name in chosen}
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    for name, changed_later in placement.joints.items():
        quantizer = _tensor_quantizer(f"{_full(stage, name)}.{OUTPUT_QUANT}", JOINT_BITS, options, device)
        quantizer.leaves_stage = name == placement.sends
        add_joint(module.get_submodule(name), quantizer, changed_later=changed_later)
    for name, bits in chosen.items():
        _quantize_layer(module, name, stage, bits, options, placement)
    tables, in_float = quantize_embeddings(module, options, stage)
    if options.bias.snap:
        for name, norm in placement.norms.items():
            fold_norm(module.get_submodule(norm), module.get_submodule(name))
    if chosen:
        observers = [each for _, each in quantizers(module) if isinstance(each, ActivationQuantizer)]
        module.__dict__[_OBSERVERS] = observers
        module.register_forward_pre_hook(_note_dummies, with_kwargs=True)
    layers = (
        LayerReport(name or stage, kinds[name], bits.weight, bits.activation) for name, bits in chosen.items()
    )
    report = QuantReport(
        stage,
        True,
        tuple(layers),
        (*left_out, *in_float),
        tuple(name or stage for name in placement.joints),
        None if placement.sends is None else placement.sends or stage,
        {name or stage: bits for name, bits in tables.items()},
        tuple(
            name or stage
            for name in chosen
            if _ungrouped(module.get_submodule(name), kinds[name], options.weight)
        ),
    )
    module.__dict__[_REPORT] = report
    module.__dict__[_REQUANTIZED] = placement.requantized
    return report


def report_of(module: nn.Module) -> QuantReport | None:
    """What `quantize_module` did to this stage; None if it did nothing."""
    report: QuantReport | None = module.__dict__.get(_REPORT)
    return report


def requantized(module: nn.Module) -> dict[str, str]:
    """`QuantizerPlacement.requantized` of a stage; empty for one in float."""
    return dict(module.__dict__.get(_REQUANTIZED, {}))


def edges(
    module: nn.Module, options: QuantOptions, flow: TensorFlow, *, stage: str, first: bool, last: bool
) -> tuple[bool, bool]:
    """(whether a layer takes the stage's input directly, whether the stage's output comes from layers).

    Where both hold of two neighbours, the tensor between them is quantized by the one that produces it.
    """
    if not options.enabled:
        return False, False
    chosen, _ = choose_layers(module, options, stage=stage, first=first, last=last, flow=flow)
    placement = place(flow, _placed_bits(module, chosen, options), StageBoundary())
    return placement.wants_codes, placement.has_codes


def choose_layers(
    module: nn.Module,
    options: QuantOptions,
    *,
    stage: str,
    first: bool,
    last: bool,
    flow: TensorFlow | None = None,
) -> tuple[dict[str, LayerBits], list[tuple[str, str]]]:
    """The layers of a float stage that the options quantize, with their bits; what is left out, and why."""
    named = list(module.named_modules())
    candidates = [name for name, child in named if layer_kind(child) is not None]
    outer = set(candidates[:1] if first else []) | set(candidates[-1:] if last else [])
    if flow is not None:
        takers, givers = outer_layers(flow)
        outer |= (takers if first else set()) | (givers if last else set())
    chosen: dict[str, LayerBits] = {}
    left_out: list[tuple[str, str]] = []
    inner = inner_modules(module)
    for name, child in named:
        if layer_kind(child) is None:
            computed = hasattr(child, "parametrizations")
            matrices = id(child) not in inner and any(p.dim() >= 2 for p in child.parameters(recurse=False))
            if computed or (matrices and not quantizes_rows(child)):
                left_out.append((name or stage, f"{type(child).__name__} stays in float"))
            continue
        bits = layer_bits(options, stage, name, is_edge=name in outer)
        if isinstance(bits, str):
            left_out.append((name or stage, f"skip {bits!r}"))
        elif options.weight.method == options.activation.method == "none":
            left_out.append((name or stage, "methods 'none'"))
        else:
            chosen[name] = bits
    return chosen, left_out


def _placed_bits(module: nn.Module, chosen: Mapping[str, LayerBits], options: QuantOptions) -> dict[str, int]:
    """Bits of the inputs that are quantized as whole tensors."""
    if options.activation.method == "none":
        return {}
    return {
        name: bits.activation
        for name, bits in chosen.items()
        if not _per_token(module.get_submodule(name), options)
    }


def _quantize_layer(
    module: nn.Module,
    name: str,
    stage: str,
    bits: LayerBits,
    options: QuantOptions,
    placement: QuantizerPlacement,
) -> None:
    layer = module.get_submodule(name)
    weight: Any = layer.weight  # a parameter, or computed from others
    whole = _full(stage, name)
    quantizer: WeightQuantizer | Unquantized = Unquantized()
    if options.weight.method != "none":
        axis = None if options.weight.granularity == "per_tensor" else channel_axis(layer)
        how = QuantizerSettings(options.weight.method, options.weight.init, options.compile)
        quantizer = WeightQuantizer(
            f"{whole}.weight_quant",
            weight,
            bits=bits.weight,
            axis=axis,
            group=weight_group(layer, options.weight),
            how=how,
        )
    taken: InputQuantizer
    where = placement.inputs.get(name, OWN)
    if options.activation.method == "none":
        taken = Unquantized()
    elif _per_token(layer, options):
        taken = TokenQuantizer(bits.activation, quantizer if isinstance(quantizer, WeightQuantizer) else None)
    elif where.how == "carried":
        source = None if where.of is None else module.get_submodule(where.of)._modules[OUTPUT_QUANT]
        assert source is None or isinstance(source, ActivationQuantizer)
        taken = CarriedInput(JOINT_BITS, where.of, source)
    elif where.how == "shared":
        owner = module.get_submodule(str(where.of)).get_submodule("input_quant")
        assert isinstance(owner, ActivationQuantizer)
        taken = SharedInput(owner, str(where.of))
    else:
        taken = _tensor_quantizer(f"{whole}.input_quant", bits.activation, options, weight.device)
    to_quantized(layer, quantizer, taken, snaps_bias=options.bias.snap)


def weight_group(layer: nn.Module, options: WeightOptions) -> int | None:
    """How many inputs of a channel share a step; None where all of them do."""
    if options.granularity != "per_group" or layer_kind(layer) not in ("Linear", "Conv1D"):
        return None
    weight: Any = layer.weight
    inputs = weight.shape[1 - channel_axis(layer)]
    return options.group if inputs % options.group == 0 else None


def _ungrouped(layer: nn.Module, kind: str, options: WeightOptions) -> bool:
    """Whether a quantized layer has steps per channel because groups do not divide its inputs."""
    wanted = options.granularity == "per_group" and kind in ("Linear", "Conv1D")
    quantizer = layer.get_submodule("weight_quant")
    return wanted and isinstance(quantizer, WeightQuantizer) and quantizer.group is None


def _per_token(layer: nn.Module, options: QuantOptions) -> bool:
    """Whether a layer quantizes its input token by token: linear ones do, convolutions have no tokens."""
    return options.activation.granularity == "per_token" and layer_kind(layer) in ("Linear", "Conv1D")


def _tensor_quantizer(
    name: str, bits: int, options: QuantOptions, device: torch.device
) -> ActivationQuantizer:
    activation = options.activation
    how = QuantizerSettings(activation.method, activation.init, options.compile)
    return ActivationQuantizer(name, bits=bits, signed=activation.signed, device=device, how=how)


def _full(stage: str, name: str) -> str:
    return f"{stage}.{name}" if name else stage


def _note_dummies(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """A batch of zeros gives inner layers values that are not zero (biases, norms): it is told apart here."""
    if not module.training:
        return
    waiting = [quantizer for quantizer in module.__dict__[_OBSERVERS] if quantizer.in_float]
    if waiting:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        blank = bool(tensors) and not any(bool(torch.any(tensor)) for tensor in tensors)
        looks = bool(module.__dict__.get(OBSERVES, True))
        for quantizer in waiting:
            quantizer.observing = looks and not blank
            quantizer.looked["zeros"] += looks and blank
