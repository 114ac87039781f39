"""Small models with calibrated quantizers, built as a run builds them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distqat.config import Config, load_config
from distqat.distributed.assembly.evaluation import build_all
from distqat.distributed.assembly.stage_factory import build_module, build_task, open_data, task_settings
from distqat.export.checker import Expectations
from distqat.export.export_request import ExportRequest
from distqat.export.file_description import FileDescription
from distqat.export.joined_stages import JoinedStages
from distqat.quant import activate
from distqat.tasks import Batch, Sample, Task

GPT = {"n_layer": 1, "n_embd": 16, "n_head": 2, "vocab_size": 257, "n_positions": 32, "dropout": 0.0}
SPEECH = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    "conv_dim": [16, 16], "conv_kernel": [10, 3], "conv_stride": [5, 2],
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "do_stable_layer_norm": True,
}  # fmt: skip
LLAMA = {
    "model_type": "llama", "vocab_size": 257, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 16,
}  # fmt: skip
CHANGES: dict[str, dict[str, Any]] = {
    "mlp": {},
    "resnet18": {
        "data.img_size": 8,
        "model_pipeline.pipeline": [
            {"model_name": f"resnet18.{part}", "num_classes": 10, "width": 0.0625}
            for part in ("front", "back")
        ],
    },
    "distilgpt2": {
        "quant.enabled": True,
        "data.sequence_length": 12,
        "model_pipeline.pipeline": [{"model_name": "distilgpt2.full", **GPT}],
    },
    "hf_tiny": {
        "data.sequence_length": 12,
        "model_pipeline.pipeline": [{"model_name": "hf.full", "config": LLAMA}],
    },
    "gcn": {"quant.enabled": True},
    "wav2vec2": {
        "quant.enabled": True,
        "model_pipeline.pipeline": [{"model_name": "wav2vec2.full", "config": SPEECH}],
    },
}


def tiny_config(name: str, **changes: Any) -> Config:
    """The shipped configuration of this name, made small."""
    return load_config(f"configs/{name}.yaml", {**CHANGES[name], **changes})


def request_for(model: JoinedStages, config: Config, samples: list[Sample], folder: Path) -> ExportRequest:
    """What `distqat export` asks a format for."""
    settings = task_settings(config)
    description = FileDescription(
        config.data.task_type, settings, tokenizer=config.data.tokenizer, source="test"
    )
    return ExportRequest(
        model,
        build=lambda: JoinedStages(build_all(config)),
        samples=samples,
        description=description,
        folder=folder,
        config=config.model_dump(mode="json"),
        expected=Expectations(latency_s=0, stress=64),
    )


def quantized(
    config: Config, batches: int = 2, *, frozen: bool = True
) -> tuple[JoinedStages, Task, list[Sample]]:
    """A model with random weights whose quantizers saw real batches; its task and some held-out samples."""
    torch.manual_seed(5)
    stages = {stage: build_module(config, stage) for stage in config.stages}
    model, task = JoinedStages(stages), build_task(config)
    source = open_data(config)
    model.train()
    with torch.no_grad():
        _spread(model)
        for _ in range(batches):
            model(*task.collate([item.sample for item in source.take(16)]).inputs.values())
    for stage in stages.values():
        activate(stage)
    return model.settled() if frozen else model.eval(), task, list(source.heldout())[:64]


def first_batch(task: Task, samples: list[Sample], size: int = 8) -> Batch:
    return task.collate(samples[:size])


def state_of(model: JoinedStages) -> Mapping[str, torch.Tensor]:
    """As `distqat checkpoint assemble` names it."""
    return {name: tensor for stage in model.children() for name, tensor in stage.state_dict().items()}


def _spread(model: nn.Module) -> None:
    """Norms that are not the identity, one channel turned around."""
    for child in model.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.weight.uniform_(0.5, 1.5)
            child.weight[0] = -child.weight[0]
            child.bias.uniform_(-0.3, 0.3)
