"""`distilgpt2` and `gptneo`: causal language models of known shapes, cut as every `hf` model is.

DistilGPT-2 (arXiv:1910.01108) is a GPT-2 of 6 blocks; GPT-Neo (Black et al., 2021) alternates blocks with
global attention and with attention to the last `window_size` tokens, and its 125M shape is the default. Every
size can be changed; `pretrained` takes shape and weights from a folder or the hub instead. Without `stages`
or `layers` the blocks are dealt out to a head, a body and a tail. Embeddings are tied as `causal_lm` says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from distqat.errors import ModelError
from distqat.models import causal_lm
from distqat.models.block_stage import BlockStage
from distqat.models.causal_lm import StageName

DEFAULT_STAGES = 3


def build_distilgpt2(
    stage: StageName,
    n_layer: int | None = None,
    n_embd: int | None = None,
    n_head: int | None = None,
    vocab_size: int | None = None,
    n_positions: int | None = None,
    dropout: float | None = None,
    pretrained: str | None = None,
    layers: Sequence[int] | None = None,
    stages: int | None = None,
    position: int | None = None,
    tie: bool = True,
) -> BlockStage:
    """One stage; defaults 6 blocks, width 768, 12 heads, 50257 tokens, 1024 positions, dropout 0.1."""
    sizes = {
        "n_layer": n_layer,
        "n_embd": n_embd,
        "n_head": n_head,
        "vocab_size": vocab_size,
        "n_positions": n_positions,
    }
    config = gpt2_config(sizes, dropout)
    return _build(stage, config, sizes, pretrained, layers, stages or DEFAULT_STAGES, position, tie)


def build_gptneo(
    stage: StageName,
    num_layers: int | None = None,
    hidden_size: int | None = None,
    num_heads: int | None = None,
    vocab_size: int | None = None,
    max_position_embeddings: int | None = None,
    window_size: int | None = None,
    dropout: float | None = None,
    pretrained: str | None = None,
    layers: Sequence[int] | None = None,
    stages: int | None = None,
    position: int | None = None,
    tie: bool = True,
) -> BlockStage:
    """One stage; defaults 12 blocks, width 768, 12 heads, 50257 tokens, 2048 positions, a window of 256."""
    sizes = {
        "num_layers": num_layers,
        "hidden_size": hidden_size,
        "num_heads": num_heads,
        "vocab_size": vocab_size,
        "max_position_embeddings": max_position_embeddings,
        "window_size": window_size,
    }
    config = gptneo_config(sizes, dropout)
    return _build(stage, config, sizes, pretrained, layers, stages or DEFAULT_STAGES, position, tie)


def sample_distilgpt2(
    stage: StageName,
    batch_size: int,
    n_embd: int | None = None,
    pretrained: str | None = None,
    sequence_length: int = 128,
) -> Tensor:
    """Token ids for the first stage, hidden states for the others."""
    config = gpt2_config({"n_embd": n_embd}, None)
    return _sample(stage, batch_size, int(config["n_embd"]), pretrained, sequence_length)


def sample_gptneo(
    stage: StageName,
    batch_size: int,
    hidden_size: int | None = None,
    pretrained: str | None = None,
    sequence_length: int = 128,
) -> Tensor:
    """Token ids for the first stage, hidden states for the others."""
    config = gptneo_config({"hidden_size": hidden_size}, None)
    return _sample(stage, batch_size, int(config["hidden_size"]), pretrained, sequence_length)


def gpt2_config(sizes: Mapping[str, int | None], dropout: float | None) -> dict[str, Any]:
    """Keys of a GPT2Config; 81.9 million parameters with the defaults."""
    given = {key: value for key, value in sizes.items() if value is not None}
    config: dict[str, Any] = {"model_type": "gpt2", "n_layer": 6, "n_embd": 768, "n_head": 12, **given}
    if dropout is not None:
        config |= {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
    return _marked(config)


def gptneo_config(sizes: Mapping[str, int | None], dropout: float | None) -> dict[str, Any]:
    """Keys of a GPTNeoConfig: global and local blocks in turn; 125 million parameters with the defaults."""
    given = {key: value for key, value in sizes.items() if value is not None}
    config: dict[str, Any] = {
        "model_type": "gpt_neo", "num_layers": 12, "hidden_size": 768, "num_heads": 12, **given
    }  # fmt: skip
    pairs, odd = divmod(int(config["num_layers"]), 2)
    config["attention_types"] = [[["global", "local"], pairs]] + ([[["global"], 1]] if odd else [])
    if dropout is not None:
        config |= {"resid_dropout": dropout, "embed_dropout": dropout, "attention_dropout": dropout}
    return _marked(config)


def _marked(config: dict[str, Any]) -> dict[str, Any]:
    """The marks of begin and end are the last token, as in GPT-2, whatever the size of the vocabulary."""
    last = int(config.get("vocab_size", 50257)) - 1
    return {**config, "bos_token_id": last, "eos_token_id": last}


def _build(
    stage: StageName,
    config: Mapping[str, Any],
    sizes: Mapping[str, int | None],
    pretrained: str | None,
    layers: Sequence[int] | None,
    stages: int,
    position: int | None,
    tie: bool,
) -> BlockStage:
    if pretrained is None:
        return causal_lm.build(stage, config, None, layers, stages, position, tie)
    fixed = sorted(key for key, value in sizes.items() if value is not None)
    if fixed:
        raise ModelError(f"pretrained: {pretrained!r} settles the shape; leave out {', '.join(fixed)}")
    return causal_lm.build(stage, None, pretrained, layers, stages, position, tie)


def _sample(stage: StageName, batch_size: int, width: int, pretrained: str | None, length: int) -> Tensor:
    if pretrained is not None:
        return causal_lm.sample_input(stage, batch_size, None, pretrained, length)
    if stage in ("full", "head"):
        return torch.zeros(batch_size, length, dtype=torch.int64)
    return torch.zeros(batch_size, length, width)
