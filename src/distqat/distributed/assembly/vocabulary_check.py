"""Whether the tokens of the data are those that the model knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distqat.config import Config
from distqat.data.sources.sample_stream import LANGUAGE_TASKS
from distqat.data.text.open_tokenizer import known_size
from distqat.errors import HubUnavailable, ModelError
from distqat.models import MODEL_TYPES
from distqat.models.causal_lm import StageBuilder

OWN_SHARE = 0.9  # a model's matrices are often padded to a round number of tokens


def vocabulary(config: Config) -> int | None:
    """Tokens that the model knows; None where its entries do not say, or only a hub out of reach does."""
    for entry in config.model_pipeline.pipeline:
        size = entry.kwargs.get("vocab_size")
        if isinstance(size, int):
            return size
        factory = MODEL_TYPES.get(entry.model_name.rstrip("0123456789"))
        if isinstance(factory, StageBuilder):
            return _of_model(factory, entry.kwargs)
    return None


def check_tokenizer(config: Config) -> None:
    """Tokens that the model does not know, or a pretrained model that has learnt those of another tokenizer.

    Says nothing of a tokenizer that is on the hub and not yet on this host. Raises ModelError, DataError.
    """
    if config.data.task_type not in LANGUAGE_TASKS:
        return
    name, knows = config.data.tokenizer, vocabulary(config)
    tokens = None if knows is None else known_size(name)
    if knows is None or tokens is None:
        return
    given = (entry.kwargs.get("pretrained") for entry in config.model_pipeline.pipeline)
    pretrained = next((str(source) for source in given if source), None)
    told = f"data.tokenizer {name!r} has {tokens} tokens"
    if tokens > knows:
        own = f"set vocab_size to {tokens} in all entries of model_pipeline.pipeline (or their config)"
        fix = own if pretrained is None else f"use the model's own, data.tokenizer: {pretrained}"
        raise ModelError(f"{told}, but the model knows {knows}; {fix}")
    if pretrained is not None and tokens < OWN_SHARE * knows:
        raise ModelError(
            f"{told}, but the pretrained model has learnt {knows} of another tokenizer; "
            f"use its own, data.tokenizer: {pretrained}"
        )


def _of_model(factory: StageBuilder, keys: Mapping[str, Any]) -> int | None:
    try:
        return factory.vocabulary(keys)
    except HubUnavailable:
        return None
