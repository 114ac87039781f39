"""Layers whose weight is computed from other parameters (torch's parametrizations: weight norm).

The quantizer stands behind the computation: what is rounded is the weight that the layer uses. In an exported
model that weight is a constant, and its parametrization is gone.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrize


def plain_type(module: nn.Module) -> type[nn.Module] | None:
    """The class that the layer had before its weight was parametrized; its own class where nothing is.

    None where something else than `weight` is computed too, or where the weight is not a parameter otherwise.
    """
    if parametrize.is_parametrized(module):
        only_weight = set(module.parametrizations) == {"weight"}  # type: ignore[arg-type]
        return parametrize.type_before_parametrizations(module) if only_weight else None
    has_weight = "weight" in module._parameters or not hasattr(module, "weight")
    return type(module) if has_weight else None


def twin_type(module: nn.Module, twin: type[nn.Module]) -> type[nn.Module]:
    """`twin`, with the computed weight of the module's class where it has one."""
    own = type(module)
    if not parametrize.is_parametrized(module):
        return twin
    if (twin, own) not in _MADE:
        _MADE[twin, own] = type(f"{twin.__name__}Parametrized", (twin, own), {})
    return _MADE[twin, own]


def inner_modules(module: nn.Module) -> set[int]:
    """Ids of the modules that compute the weight of another one: they are not layers of their own."""
    lists = [child for child in module.modules() if isinstance(child, parametrize.ParametrizationList)]
    return {id(inner) for each in lists for inner in each.modules()}


@torch.no_grad()
def settle_computed_weights(module: nn.Module) -> None:
    """Every computed weight of quantized layers becomes a parameter with its value now, in place."""
    for child in [each for each in module.modules() if parametrize.is_parametrized(each)]:
        if type(child) not in _MADE.values():
            continue
        weight = child.weight.detach().clone()  # type: ignore[operator]
        del child.parametrizations
        child.__class__ = type(child).__bases__[0]
        child.weight = nn.Parameter(weight, requires_grad=False)


_MADE: dict[tuple[type[nn.Module], type[nn.Module]], type[nn.Module]] = {}
