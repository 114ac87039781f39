"""Pipelines whose boundaries are looked at: models, cuts, batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from distqat.config import Config
from distqat.distributed.assembly.stage_factory import build_task
from distqat.tasks.base import Batch

SEED = 3
GPT2 = {"n_layer": 4, "n_embd": 128, "n_head": 4, "n_positions": 64, "vocab_size": 257, "dropout": 0.0}
SKIP = ["*.wte", "*.wpe", "*ln_*", "*lm_head*"]


@dataclass(frozen=True)
class WireCase:
    """One model and cut, quantized; `reason` why its boundaries stay in float, if they do."""

    name: str
    model: str
    stages: tuple[str, ...]
    keys: Mapping[str, Any]
    quick_keys: Mapping[str, Any]
    batch: int = 32
    img_size: int = 32
    task: str = "cv"
    quant: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""

    def config(self, *, quick: bool) -> Config:
        """The run; rounds never come due."""
        keys = self.quick_keys if quick else self.keys
        data = {"img_size": 16 if quick else self.img_size, "sequence_length": 32, "task_type": self.task}
        dataset = "python_docs" if self.task == "llm" else "digits"
        classes = {} if self.task == "llm" else {"num_classes": 10}
        return Config.model_validate(
            {
                "experiment_prefix": "benchmark",
                "seed": 7,
                "data": {"dataset_name": dataset, "num_channels": 3, **data},
                "diloco": {
                    "inner_optim": {"type": "adamw", "adam_lr": 1e-3},
                    "inner_steps": 1_000_000,
                    "outer_steps": 1,
                    "batch_size_per_step": 8 if quick else self.batch,
                    "max_grad_norm": 1.0,
                },
                "model_pipeline": {
                    "pipeline": [
                        {"model_name": f"{self.model}.{stage}", **classes, **keys} for stage in self.stages
                    ],
                    "microbatches": 4,
                },
                "quant": {"enabled": True, "warmup": {"calibrate_batches": 4}, **self.quant},
            }
        )


_TWO, _THREE = ("front", "back"), ("head", "body", "tail")
_QUARTER = {"width": 0.25}
_SHIFTED = {"weight": {"bits": 4}, "activation": {"method": "lsq+"}}
WIRE_CASES = [
    WireCase("resnet18", "resnet18", _TWO, {}, _QUARTER),
    WireCase("resnet18, three stages", "resnet18", _THREE, {}, _QUARTER),
    WireCase("resnet18, W4, lsq+", "resnet18", _TWO, {}, _QUARTER, quant=_SHIFTED),
    WireCase("resnet50, three stages", "resnet50", _THREE, {"width": 0.25}, {"width": 0.125}),
    WireCase("mlp", "mlp", _TWO, {"hidden": 1024, "depth": 6}, {"hidden": 256, "depth": 2}, batch=256),
    WireCase(
        "gpt2, four blocks", "distilgpt2", ("head", "tail"), GPT2, GPT2,
        batch=8, task="llm", quant={"skip": SKIP}, reason="the residual stream stays in float",
    ),
]  # fmt: skip


def wire_batches(config: Config, count: int) -> list[list[Batch]]:
    """Random samples, the same for everybody, cut into microbatches."""
    task, data, size = build_task(config), config.data, config.diloco.batch_size_per_step
    generator = torch.Generator().manual_seed(SEED)
    made = []
    for _ in range(count):
        samples: list[dict[str, Any]]
        if data.task_type == "llm":
            tokens = torch.randint(0, 256, (size, data.sequence_length + 1), generator=generator)
            samples = [{"tokens": row} for row in tokens]
        else:
            shape = size, data.num_channels, data.img_size, data.img_size
            labels = torch.randint(0, 10, (size,), generator=generator).tolist()
            images = torch.rand(shape, generator=generator)
            samples = [{"image": image, "label": y} for image, y in zip(images, labels, strict=True)]
        made.append(task.collate(samples).microbatches(config.model_pipeline.microbatches))
    return made
