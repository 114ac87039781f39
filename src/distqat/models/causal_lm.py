"""Any causal language model of transformers, cut at any block: `hf.full`, `hf.head`, `hf.body`, `hf.tail`.

    token ids -> embeddings -> block 0 ... block N-1 -> norm -> head -> logits of the next token
                 |----- head -----|- body -|----------- tail ------------|

Which model: `pretrained`, a folder or a name on the hub, or `config`, the keys of a transformers
configuration with its `model_type`. Which blocks: `layers: [from, to]` (`to` not included), or `stages: N`,
which deals the blocks out evenly; then a head is the first of the N, a tail the last, `body2` number 2.

Tied embeddings (a head matrix that is the embedding's) stay tied where both lie in one stage, i.e. in a
`full` one. Over several stages they are two matrices, each trained by its own stage, and equal only at the
start of a pretrained model; `tie: false` unties a `full` stage too: then it is the composed stages exactly.

The model is built on the meta device, cut, and only what is left gets memory, so no process holds the whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from distqat.errors import ModelError, UnknownName
from distqat.models.block_stage import BlockStage, cut, slice_config
from distqat.models.pretrained import load_weights, pretrained_config

StageName = Literal["full", "head", "body", "tail"]
STAGES: tuple[StageName, ...] = ("full", "head", "body", "tail")


def build(
    stage: StageName,
    config: Mapping[str, Any] | None = None,
    pretrained: str | None = None,
    layers: Sequence[int] | None = None,
    stages: int | None = None,
    position: int | None = None,
    tie: bool = True,
) -> BlockStage:
    """One stage, on the default device, initialised by the family's own rules or from `pretrained`.

    Imports transformers. Raises ModelError for a model that cannot be cut so, UnknownName for a model type
    that transformers does not have, HubUnavailable where a hub name is out of reach.
    """
    whole = model_config(config, pretrained)
    start, stop = block_range(stage, int(whole.num_hidden_layers), layers, stages, position)
    device = torch.empty(0).device
    with torch.device("meta"):
        model = model_class(whole)._from_config(whole, dtype=torch.float32)
    if not (tie and stage == "full"):
        _untie(model)
    ties = dict(model.all_tied_weights_keys)
    built = cut(model, start, stop)
    if device.type != "meta":
        model.to_empty(device=device)
        model.initialize_weights()
    slice_config(model.config, start, stop)
    if device.type == "meta":
        return built
    if tie and stage == "full":
        model.tie_weights()
    if pretrained is not None:
        load_weights(built, pretrained, prefix=str(model.base_model_prefix), ties=ties)
    return built.train()


def sample_input(
    stage: StageName,
    batch_size: int,
    config: Mapping[str, Any] | None = None,
    pretrained: str | None = None,
    sequence_length: int = 128,
) -> Tensor:
    """Token ids for the first stage, hidden states for the others."""
    if stage in ("full", "head"):
        return torch.zeros(batch_size, sequence_length, dtype=torch.int64)
    return torch.zeros(batch_size, sequence_length, int(model_config(config, pretrained).hidden_size))


def model_config(config: Mapping[str, Any] | None, pretrained: str | None) -> Any:
    """A configuration of transformers, a new object each time."""
    if (config is None) == (pretrained is None):
        raise ModelError(
            "a stage of hf takes either config: {model_type: gpt2, ...} or pretrained: name-or-folder"
        )
    given = dict(config) if config is not None else pretrained_config(str(pretrained))
    # Not `from transformers import ...`: the package's lazy names load far more.
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

    model_type = str(given.pop("model_type", ""))
    if model_type not in CONFIG_MAPPING_NAMES:
        raise UnknownName("model_type of transformers", model_type, CONFIG_MAPPING_NAMES)
    made = CONFIG_MAPPING[model_type](**given)
    text = made.get_text_config()
    if not isinstance(getattr(text, "num_hidden_layers", None), int):
        raise ModelError(f"model_type {model_type!r} has no num_hidden_layers; it cannot be cut into stages")
    return text


def model_class(config: Any) -> Any:
    """The causal language model class of a configuration."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    try:
        return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    except KeyError:
        raise ModelError(f"transformers has no causal language model for {type(config).__name__}") from None


def block_range(
    stage: StageName, count: int, layers: Sequence[int] | None, stages: int | None, position: int | None
) -> tuple[int, int]:
    """The blocks [start, stop) of a stage of a model with `count` blocks."""
    if stage == "full":
        if layers is not None and list(layers) != [0, count]:
            raise ModelError(f"layers: {list(layers)} of a full model must be [0, {count}]")
        return 0, count
    if layers is not None:
        if len(layers) != 2 or not 0 <= layers[0] < layers[1] <= count:
            raise ModelError(f"layers: {list(layers)} must be [from, to] with 0 <= from < to <= {count}")
        start, stop = int(layers[0]), int(layers[1])
    else:
        start, stop = _share(stage, count, stages, position)
    if (start == 0) != (stage == "head") or (stop == count) != (stage == "tail"):
        raise ModelError(
            f"blocks [{start}, {stop}) of {count} are no {stage}: a head starts at 0 and stops before "
            f"{count}, a tail stops at {count}, a body does neither"
        )
    return start, stop


def _share(stage: StageName, count: int, stages: int | None, position: int | None) -> tuple[int, int]:
    if stages is None:
        raise ModelError("say which blocks: layers: [from, to], or stages: the number of stages")
    if not 1 < stages <= count:
        raise ModelError(f"stages: {stages} must be 2 to {count}, the number of blocks")
    if position is None:
        position = {"head": 0, "tail": stages - 1}.get(stage, 1)
    if not 0 <= position < stages:
        raise ModelError(f"position {position} is outside of {stages} stages; they count from 0")
    return position * count // stages, (position + 1) * count // stages


def _untie(model: Any) -> None:
    """Two matrices where the constructor made one; still on the meta device, so it costs nothing."""
    for target in model.all_tied_weights_keys:
        owner, _, name = target.rpartition(".")
        module = model.get_submodule(owner)
        shared = getattr(module, name)
        setattr(module, name, nn.Parameter(torch.empty_like(shared), requires_grad=shared.requires_grad))
    model.config.tie_word_embeddings = False
