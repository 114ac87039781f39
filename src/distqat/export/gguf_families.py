"""Families of language models that both transformers and llama.cpp have: what differs between the two.

Names of tensors are the `gguf` package's own mapping. Here are the hyperparameters that llama.cpp reads, the
values it takes for granted, and the order of rows, which it has otherwise for two families.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from distqat.errors import ExportError

RowOrder = Callable[[str, Any, int], "Tensor | None"]
"""Name of a tensor in transformers, configuration, rows -> the row for each place; None: as they are."""


def _same(name: str, config: Any, rows: int) -> None:
    return None


@dataclass(frozen=True)
class Family:
    """How a `model_type` of transformers is written."""

    architecture: str
    """llama.cpp's name, as `gguf.MODEL_ARCH` spells it."""
    write: Callable[[Any, Any], None]
    """Write the hyperparameters of a configuration into a `GGUFWriter`."""
    needs: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Keys of the configuration, and the values that llama.cpp computes with."""
    row_order: RowOrder = _same
    shares_embedding: bool = True
    """Whether a file without a head means that the head is the embedding."""


def family_of(config: Any) -> Family:
    """That of a configuration of transformers. Raises ExportError for what llama.cpp would run otherwise."""
    kind = str(config.model_type)
    if kind not in FAMILIES:
        raise ExportError(
            f"--format gguf takes {', '.join(FAMILIES)} models, and this is {kind}: llama.cpp has no "
            "architecture for it, or none that is written here; use --format onnx-int8"
        )
    family = FAMILIES[kind]
    for key, values in family.needs.items():
        value = getattr(config, key, values[0])
        if value not in values:
            raise ExportError(
                f"llama.cpp runs {kind} models with {key}: {values[0]!r}, and this one has {value!r}"
            )
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "default":
        raise ExportError(f"--format gguf does not write the rope_type {rope['rope_type']!r}")
    return family


def _sizes(writer: Any, config: Any, feed_forward: int) -> None:
    writer.add_vocab_size(int(config.vocab_size))
    writer.add_context_length(int(config.max_position_embeddings))
    writer.add_embedding_length(int(config.hidden_size))
    writer.add_block_count(int(config.num_hidden_layers))
    writer.add_head_count(int(config.num_attention_heads))
    writer.add_feed_forward_length(feed_forward)


def _write_gpt2(writer: Any, config: Any) -> None:
    _sizes(writer, config, int(config.n_inner or 4 * config.n_embd))
    writer.add_layer_norm_eps(float(config.layer_norm_epsilon))


def _write_llama(writer: Any, config: Any) -> None:
    """Also Qwen's: rotary positions, RMSNorm, keys shared by groups of heads."""
    _sizes(writer, config, int(config.intermediate_size))
    size = _head_size(config)
    writer.add_head_count_kv(int(config.num_key_value_heads))
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_layer_norm_rms_eps(float(config.rms_norm_eps))


def _write_gpt_neox(writer: Any, config: Any) -> None:
    _sizes(writer, config, int(config.intermediate_size))
    rope = config.rope_parameters
    writer.add_rope_dimension_count(int(_head_size(config) * rope.get("partial_rotary_factor", 1.0)))
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    writer.add_parallel_residual(bool(config.use_parallel_residual))
    writer.add_layer_norm_eps(float(config.layer_norm_eps))


def _llama_rows(name: str, config: Any, rows: int) -> Tensor | None:
    """llama.cpp rotates neighbouring pairs of a head's rows, transformers a row and that half a head on."""
    kind = name.rpartition(".")[0].rpartition(".")[2]
    if kind not in ("q_proj", "k_proj"):
        return None
    heads = rows // _head_size(config)
    return torch.arange(rows).view(heads, 2, -1).transpose(1, 2).reshape(-1)


def _gpt_neox_rows(name: str, config: Any, rows: int) -> Tensor | None:
    """transformers has query, key and value head by head; llama.cpp all queries, all keys, all values."""
    if "query_key_value" not in name:
        return None
    return torch.arange(rows).view(int(config.num_attention_heads), 3, -1).transpose(0, 1).reshape(-1)


def _head_size(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


_GATED = {"hidden_act": ("silu",), "use_sliding_window": (False,)}
FAMILIES: dict[str, Family] = {
    "gpt2": Family(
        "GPT2",
        _write_gpt2,
        {
            "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
        },
    ),
    "gpt_neox": Family(
        "GPTNEOX",
        _write_gpt_neox,
        {"hidden_act": ("gelu", "gelu_new", "gelu_pytorch_tanh"), "attention_bias": (True,)},
        _gpt_neox_rows,
        shares_embedding=False,
    ),
    "llama": Family("LLAMA", _write_llama, _GATED, _llama_rows),
    "qwen2": Family("QWEN2", _write_llama, _GATED),
    "qwen3": Family("QWEN3", _write_llama, _GATED),
}
"""By `model_type`. GPT-Neo is not among them: llama.cpp has GPT-NeoX and GPT-J, which are other models."""
