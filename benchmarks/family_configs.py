"""Tiny configurations of causal language model families of transformers, for exactness under a cut."""

from __future__ import annotations

from typing import Any

BLOCKS, VOCABULARY, WINDOW = 5, 61, 4
MARKS: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2}
SIZES: dict[str, Any] = {
    **MARKS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
SHORT = {**GROUPED, "head_dim": 8}
SLIDING = {"sliding_window": WINDOW}
LAYER_TYPES = [
    "sliding_attention", "sliding_attention", "full_attention", "sliding_attention", "sliding_attention"
]  # fmt: skip
MIXED = {**SLIDING, "layer_types": LAYER_TYPES}
LATENT = {
    **SIZES, "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8, "v_head_dim": 8, "first_k_dense_replace": 1,
}  # fmt: skip
GPT = {"n_embd": 32, "n_layer": BLOCKS, "n_head": 4}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
STATE_SPACE = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": BLOCKS, "state_size": 4}

FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {**GPT, **MARKS, "n_positions": 64},
    "gpt_neo": {
        **MARKS,
        "hidden_size": 32,
        "num_layers": BLOCKS,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 2], [["global"], 1]],
        "window_size": WINDOW,
        "max_position_embeddings": 64,
    },
    "gptj": {**GPT, **MARKS, "n_positions": 64, "rotary_dim": 4},
    "gpt_neox": SIZES,
    "opt": {
        **MARKS,
        "hidden_size": 32,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": 4,
        "ffn_dim": 48,
        "max_position_embeddings": 64,
        "word_embed_proj_dim": 16,
        "pad_token_id": 1,
    },
    "bloom": {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": BLOCKS, "n_head": 4},
    "falcon": {**SIZES, "alibi": True, "multi_query": True},
    "mpt": {
        "d_model": 32, "n_heads": 4, "n_layers": BLOCKS, "vocab_size": VOCABULARY, "expansion_ratio": 2,
        "max_seq_len": 64,
    },
    "llama": GROUPED,
    "qwen2": {**GROUPED, **SLIDING, "use_sliding_window": True, "max_window_layers": 2},
    "qwen3": SHORT,
    "mistral": {**GROUPED, **SLIDING},
    "gemma": SHORT,
    "gemma2": {**SHORT, **SLIDING},
    "gemma3_text": {**SHORT, **MIXED},
    "phi": SIZES,
    "phi3": GROUPED,
    "glm": SHORT,
    "glm4": SHORT,
    "cohere": GROUPED,
    "nemotron": GROUPED,
    "gpt_bigcode": {**GPT, **MARKS, "n_positions": 64},
    "codegen": {**GPT, **MARKS, "n_positions": 64, "rotary_dim": 4},
    "stablelm": GROUPED,
    "starcoder2": {**GROUPED, **SLIDING},
    "olmo2": SIZES,
    "olmo3": {**SIZES, **MIXED},
    "cohere2": {**SHORT, **SLIDING},
    "granite": GROUPED,
    "ctrl": {
        "n_embd": 32, "dff": 48, "n_layer": BLOCKS, "n_head": 4, "vocab_size": VOCABULARY, "n_positions": 64
    },
    "apertus": GROUPED,
    "mixtral": {**GROUPED, **EXPERTS, **SLIDING},
    "qwen3_moe": {**SHORT, **EXPERTS},
    "gpt_oss": {**SHORT, **EXPERTS, **SLIDING},
    "olmoe": {**GROUPED, **EXPERTS},
    "qwen2_moe": {**GROUPED, **EXPERTS, "shared_expert_intermediate_size": 24},
    "phimoe": {**GROUPED, **EXPERTS},
    "granitemoe": {**GROUPED, **EXPERTS},
    "deepseek_v2": {**LATENT, **EXPERTS, "n_routed_experts": 4, "n_group": 1, "topk_group": 1},
    "deepseek_v3": {**LATENT, **EXPERTS, "n_routed_experts": 4, "n_group": 1, "topk_group": 1},
    "glm4_moe": {
        **SHORT, **EXPERTS, "n_routed_experts": 4, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1
    },
    "jamba": {
        **GROUPED, **EXPERTS, "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False,
        "mamba_d_state": 4, "mamba_dt_rank": 4,
    },
    "bamba": {
        **GROUPED, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 4, "mamba_chunk_size": 4,
        "attn_layer_indices": [1, 3],
    },
    "mamba": STATE_SPACE,
    "mamba2": {**STATE_SPACE, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 4},
    "recurrent_gemma": {
        **GROUPED, "lru_width": 32, "attention_window_size": WINDOW,
        "block_types": ["recurrent", "recurrent", "attention"],
    },
}  # fmt: skip
