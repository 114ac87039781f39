"""Configurations and weights of pretrained models: from a folder or from the hub, only the tensors needed."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distqat.config_paths import find
from distqat.errors import ModelError
from distqat.models.hub_files import fetch
from distqat.models.stored_layouts import TensorRecipe, recipes
from distqat.models.stored_weights import StoredWeights

CONFIG = "config.json"
QUANTIZATION = "quantization_config"
NOT_OF_THE_MODEL = (
    "architectures", "transformers_version", "torch_dtype", "dtype", "_name_or_path", QUANTIZATION
)  # fmt: skip


def pretrained_config(source: str) -> dict[str, Any]:
    """The configuration of a folder or hub repository, as transformers writes it. Raises ModelError."""
    return {key: value for key, value in _config(source).items() if key not in NOT_OF_THE_MODEL}


@torch.no_grad()
def load_weights(
    module: nn.Module,
    source: str,
    *,
    prefix: str,
    ties: Mapping[str, str],
    fresh: Collection[str] = (),
    model: Any = None,
) -> list[str]:
    """Copy every persistent tensor of `module` from safetensors; other shards and tensors are not read.

    `model` is the model of transformers behind `module`, whose layout the weights are brought into; None
    where names are as they are. `prefix` is what a file of the bare model leaves out (`transformer.` of
    GPT-2); `ties` names, for a tensor that files leave out or name otherwise, the one that it equals. Those
    in `fresh` may be missing (the head of a model that was trained for something else): they stay as they
    are, and are returned. Weights stored as codes become floats (`codes`).

    Of a module on the meta device it is only checked whether its tensors are there and can be read; weights
    on the hub are not looked at then.

    Raises ModelError for another one that is missing, for another shape and for codes that are not known,
    HubUnavailable where a hub name is out of reach.
    """
    own = module.state_dict()
    on_meta = any(tensor.is_meta for tensor in own.values())
    if on_meta and not find(source).is_dir():
        return []
    with StoredWeights(source, _config(source).get(QUANTIZATION) or {}) as stored:
        plan = recipes(model, {*own, *(ties[name] for name in own if name in ties)}, stored.names, prefix)
        made_by = {target: recipe for recipe in plan for target in recipe.targets}
        places = {name: name if name in made_by else ties.get(name, name) for name in own}
        missing = [name for name, place in places.items() if place not in made_by]
        for name in missing:
            if name not in fresh:
                raise ModelError(f"the weights of {source!r} hold no {name!r}{stored.instead_of(name)}")
        needed = {id(recipe): recipe for place in places.values() if (recipe := made_by.get(place))}
        for recipe in needed.values():
            _copy(recipe, own, places, stored, model)
    return missing


def _copy(
    recipe: TensorRecipe,
    own: Mapping[str, Tensor],
    places: Mapping[str, str],
    stored: StoredWeights,
    model: Any,
) -> None:
    """Make what the recipe makes, and copy it to every tensor that it is the place of."""
    wanted = {name: place for name, place in places.items() if place in recipe.targets}
    floats = any(own[name].is_floating_point() for name in wanted)
    if any(own[name].is_meta for name in wanted):
        for name in recipe.stored if floats else ():
            stored.scale_of(name)
        return
    made = recipe.make(lambda name: stored.read(name, floats=floats), model)
    for name, place in wanted.items():
        value = made.get(place)
        if value is None or value.shape != own[name].shape:
            found = "missing" if value is None else str(list(value.shape))
            raise ModelError(
                f"{name!r} of {stored.source!r} is {found}, the stage's is {list(own[name].shape)}; do "
                "config and weights belong together?"
            )
        own[name].copy_(value)


def _config(source: str) -> dict[str, Any]:
    path = fetch(source, CONFIG)
    if path is None:
        raise ModelError(f"{source!r} has no {CONFIG}; is it a model of transformers?")
    try:
        given: Any = json.loads(path.read_text(encoding="utf-8"), object_hook=_with_infinity)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"{path} is not JSON: {error}") from error
    if not isinstance(given, dict):
        raise ModelError(f"{path} holds no configuration; is {source!r} a model of transformers?")
    return given


def _with_infinity(given: dict[str, Any]) -> Any:
    """transformers writes numbers that JSON does not have as `{"__float__": "Infinity"}`."""
    return float(given["__float__"]) if given.keys() == {"__float__"} else given
