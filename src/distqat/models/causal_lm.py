"""Any causal language model of transformers, cut at any block: `hf.full`, `hf.head`, `hf.body`, `hf.tail`.

    token ids -> embeddings -> block 0 ... block N-1 -> norm -> head -> logits of the next token
                 |----- head -----|- body -|----------- tail ------------|

Which model: `pretrained`, a folder or a name on the hub, or `config`, the keys of a transformers
configuration with its `model_type`. Which blocks: `layers: [from, to]` (`to` not included), or `stages: N`,
which cuts where the stages compute about as much (`costs`); then a head is the first of the N, a tail the
last, `body2` number 2.

Tied embeddings (a head matrix that is the embedding's) stay tied where both lie in one stage, i.e. in a
`full` one. Over several stages they are two matrices, each trained by its own stage, and equal only at the
start of a pretrained model; `tie: false` unties a `full` stage too: then it is the composed stages exactly.
`tie: average`, in all entries, keeps the two copies together: outer rounds average them.

A mixture of experts trains with the balancing loss that its configuration asks for (`balancing`); a release
mostly asks for none, then `balancing: 0.01`, in all entries, is its weight.

The model is built on the meta device, cut, and only what is left gets memory, so no process holds the whole.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from distqat.errors import ModelError, UnknownName
from distqat.models.block_costs import BlockCosts, balanced, costs_of
from distqat.models.causal_lm_outline import outline
from distqat.models.causal_lm_stage import BlockStage, cut, stand_in
from distqat.models.meta_init import materialize, weights_on_meta
from distqat.models.pretrained import load_weights, pretrained_config
from distqat.models.router_loss import WEIGHTS

StageName = Literal["full", "head", "body", "tail"]
AVERAGE = "average"
STAGES: tuple[StageName, ...] = ("full", "head", "body", "tail")


@dataclass(frozen=True)
class ModelPart:
    """Which part of which model a pipeline entry is: the keys that every causal language model takes."""

    pretrained: str | None = None
    layers: Sequence[int] | None = None
    stages: int | None = None
    position: int | None = None
    tie: bool | str = True
    balancing: float | None = None
    default_stages: ClassVar[int | None] = None
    """Where an entry names neither `layers` nor `stages`."""

    def keys(self) -> Mapping[str, Any] | None:
        """Keys of a transformers configuration; None where `pretrained` settles them. Raises ModelError."""
        raise NotImplementedError

    def model_config(self) -> Any:
        """A configuration of transformers, a new object each time. Raises ModelError, UnknownName."""
        config = model_config(self.keys(), self.pretrained)
        if self.balancing is not None:
            config.output_router_logits = self.balancing > 0
            for name in WEIGHTS:
                if hasattr(config, name):
                    setattr(config, name, self.balancing)
        return config


@dataclass(frozen=True)
class Hf(ModelPart):
    """A part of any model: `config` or `pretrained`."""

    config: Mapping[str, Any] | None = None

    def keys(self) -> Mapping[str, Any] | None:
        """Keys of a configuration of transformers; None: `pretrained` has them."""
        return self.config


class StageBuilder:
    """Builds one stage of a kind of model; takes the fields of the kind's `ModelPart` as keywords."""

    def __init__(self, stage: StageName, kind: type[ModelPart]) -> None:
        self.__signature__ = inspect.signature(kind)
        self._stage = stage
        self._kind = kind

    def __call__(self, **keys: Any) -> BlockStage:
        """The stage with its weights as the keys say."""
        return build(self._stage, self._kind(**keys))

    def vocabulary(self, keys: Mapping[str, Any]) -> int:
        """Tokens that the model of an entry with these keys knows. Raises as building it would."""
        names = self.__signature__.parameters
        part = self._kind(**{name: value for name, value in keys.items() if name in names})
        return int(part.model_config().vocab_size)


class StageSample:
    """Makes the input of one stage: token ids for the first one, hidden states for the others."""

    def __init__(self, stage: StageName, kind: type[ModelPart]) -> None:
        own = [inspect.Parameter("batch_size", inspect.Parameter.KEYWORD_ONLY)]
        own += [inspect.Parameter("sequence_length", inspect.Parameter.KEYWORD_ONLY, default=128)]
        fields = inspect.signature(kind).parameters.values()
        keywords = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in fields]
        self.__signature__ = inspect.Signature([*own, *keywords])
        self._stage = stage
        self._kind = kind

    def __call__(self, *, batch_size: int, sequence_length: int = 128, **keys: Any) -> Tensor:
        """Token ids [B, T] for the first stage, hidden states [B, T, H] for the others."""
        config = self._kind(**keys).model_config()
        _check_length(config, sequence_length)
        if self._stage in ("full", "head"):
            return torch.zeros(batch_size, sequence_length, dtype=torch.int64)
        return torch.zeros(batch_size, sequence_length, int(config.hidden_size))


def build(stage: StageName, part: ModelPart) -> BlockStage:
    """One stage, on the default device, initialised by the family's own rules or from `pretrained`.

    Imports transformers. Raises ModelError for a model that cannot be cut so, UnknownName for a model type
    that transformers does not have, HubUnavailable where a hub name is out of reach.
    """
    whole, device = part.model_config(), torch.empty(0).device
    start, stop, parts = 0, int(whole.num_hidden_layers), None
    if stage != "full":
        unsplit = _unsplit(part)
        parts = outline(unsplit)
        start, stop = block_range(stage, costs_of(unsplit, parts), part)
    elif part.layers is not None and list(part.layers) != [0, stop]:
        raise ModelError(f"layers: {list(part.layers)} of a full model must be [0, {stop}]")
    if not isinstance(part.tie, bool) and part.tie != AVERAGE:
        raise ModelError(f"tie: {part.tie!r} must be true, false or {AVERAGE!r}")
    tied = bool(part.tie) and stage == "full"
    with weights_on_meta():
        model = model_class(whole)._from_config(whole, dtype=torch.float32)
    if not tied:
        _untie(model)
    ties = dict(model.all_tied_weights_keys)
    built = BlockStage(model, (), first=True, last=True) if parts is None else cut(model, parts, start, stop)
    if part.balancing and built.balancing is None:
        raise ModelError(
            f"balancing: {type(model).__name__} has no experts with a balancing loss; leave it out"
        )
    if device.type != "meta":
        materialize(model, device)
        for module in model.modules():  # its constructor has marked what had no memory then as initialised
            module._is_hf_initialized = False
        model.initialize_weights()
    if parts is not None:
        stand_in(model, parts, unsplit)
    if part.tie == AVERAGE and stage in ("head", "tail"):
        built.copies = _copies(stage, ties)
    if tied and device.type != "meta":
        model.tie_weights()
    if part.pretrained is not None:
        load_weights(built, part.pretrained, prefix=str(model.base_model_prefix), ties=ties, model=model)
    return built.train()


def _copies(stage: StageName, ties: Mapping[str, str]) -> dict[str, str]:
    """The tied weights of a first or last stage: what both stages call them, to their names in this one."""
    if not ties:
        raise ModelError(
            f"tie: {AVERAGE} needs a model whose head is tied to its embeddings; leave tie out, or set "
            "tie_word_embeddings in its config"
        )
    return {target: source if stage == "head" else target for target, source in ties.items()}


def _unsplit(part: ModelPart) -> Any:
    """The whole model, without memory."""
    whole = part.model_config()
    with torch.device("meta"):
        return model_class(whole)._from_config(whole, dtype=torch.float32)


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


def block_range(stage: StageName, costs: BlockCosts, part: ModelPart) -> tuple[int, int]:
    """The blocks [start, stop) of a stage of a model whose blocks cost so much."""
    count, layers = len(costs.blocks), part.layers
    if layers is not None:
        if len(layers) != 2 or not 0 <= layers[0] < layers[1] <= count:
            raise ModelError(f"layers: {list(layers)} must be [from, to] with 0 <= from < to <= {count}")
        start, stop = int(layers[0]), int(layers[1])
    else:
        start, stop = _share(stage, costs, part)
    if (start == 0) != (stage == "head") or (stop == count) != (stage == "tail"):
        raise ModelError(
            f"blocks [{start}, {stop}) of {count} are no {stage}: a head starts at 0 and stops before "
            f"{count}, a tail stops at {count}, a body does neither"
        )
    return start, stop


def _share(stage: StageName, costs: BlockCosts, part: ModelPart) -> tuple[int, int]:
    count, stages = len(costs.blocks), part.stages or part.default_stages
    if stages is None:
        raise ModelError("say which blocks: layers: [from, to], or stages: the number of stages")
    if not 1 < stages <= count:
        raise ModelError(f"stages: {stages} must be 2 to {count}, the number of blocks")
    position = part.position
    if position is None:
        position = {"head": 0, "tail": stages - 1}.get(stage, 1)
    if not 0 <= position < stages:
        raise ModelError(f"position {position} is outside of {stages} stages; they count from 0")
    return balanced(costs, stages)[position]


def _check_length(config: Any, length: int) -> None:
    """ModelError where the model has a table of positions that is shorter than the sequences."""
    most = getattr(config, "max_position_embeddings", None)
    if isinstance(most, int) and length > most > 0:
        raise ModelError(
            f"data.sequence_length is {length}, but the model knows {most} positions: shorten the sequences, "
            "or raise n_positions (gpt2) or max_position_embeddings of all its entries"
        )


def _untie(model: Any) -> None:
    """Two matrices where the constructor made one; still on the meta device, so it costs nothing."""
    for target in model.all_tied_weights_keys:
        owner, _, name = target.rpartition(".")
        module = model.get_submodule(owner)
        shared = getattr(module, name)
        setattr(module, name, nn.Parameter(torch.empty_like(shared), requires_grad=shared.requires_grad))
    model.config.tie_word_embeddings = False
