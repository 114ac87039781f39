"""Quantization of language models: GPT-2's Conv1D layers and an hf family, with patterns to skip."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from distqat.config import Config
from distqat.distributed.assembly.stage_factory import build_task, check_model
from distqat.distributed.training.baseline_trainer import BaselineTrainer
from distqat.quant import quantizers
from distqat.tasks.base import Batch

pytestmark = pytest.mark.usefixtures("one_thread")
QWEN = {
    "model_type": "qwen3",
    "vocab_size": 257,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 16,
}
GPT2 = {"n_layer": 3, "n_embd": 32, "n_head": 4, "n_positions": 16, "vocab_size": 257, "dropout": 0.0}
MODELS: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "distilgpt2": (GPT2, ["*.wte", "*.wpe", "*ln_*", "*lm_head*"], "mlp.c_fc"),
    "hf": ({"config": QWEN, "stages": 3}, ["*embed_tokens*", "*norm*", "*lm_head*"], "mlp.gate_proj"),
}
STEPS = 25


def config(model: str) -> Config:
    entry, skip, _ = MODELS[model]
    names = ("head", "body", "tail")
    return Config.model_validate(
        {
            "seed": 3,
            "data": {"dataset_name": "python_docs", "task_type": "llm", "sequence_length": 12},
            "diloco": {"inner_optim": {"type": "adamw", "adam_lr": 3e-3}, "inner_steps": STEPS},
            "model_pipeline": {
                "pipeline": [{"model_name": f"{model}.{n}", **entry} for n in names],
                "microbatches": 2,
            },
            "quant": {
                "enabled": True,
                "activation": {"granularity": "per_token"},
                "skip": skip,
                "warmup": {"calibrate_batches": 2},
            },
        }
    )


def batch(run: Config) -> list[Batch]:
    tokens = torch.arange(8)[:, None] * 5 + torch.arange(13)
    return build_task(run).collate([{"tokens": row} for row in tokens]).microbatches(2)


@pytest.mark.parametrize("model", MODELS)
def test_a_quantized_language_model_trains(model: str) -> None:
    run = config(model)
    check_model(run)
    trainer = BaselineTrainer(run, torch.device("cpu"))
    names = [name for name, _ in quantizers(trainer.model)]
    assert sum(MODELS[model][2] in name for name in names) >= 3, names  # in each block
    assert not any("lm_head" in name or "norm" in name for name in names)
    while trainer.model.calibrating:
        trainer.calibrate(batch(run))
    losses = [trainer.step(batch(run)) for _ in range(STEPS)]
    assert losses[-1] < 0.6 * losses[0], losses[:: STEPS // 4]
