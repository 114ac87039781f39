"""What benchmarks/export.py exports: trained models and held-out samples, and larger ones for speed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.quantization_runs import one_process
from benchmarks.quantization_work import HELDOUT_SEED, Digits, Effort, Text, Work, augmented
from distqat.config import Config, load_config
from distqat.data.open_source import open_source
from distqat.distributed.assembly.stage_factory import build_module, build_task
from distqat.export.joined_stages import JoinedStages
from distqat.quant import activate
from distqat.tasks import Sample

CALIBRATION = 4  # samples that a model with random weights is shown


class LargerDigits(Digits):
    """The same pictures twice as wide and high."""

    name = "resnet18 x 0.25, augmented digits of 16"
    size = 16


class TinyQwen(Text):
    """The model of configs/hf_tiny.yaml, on the same text; activations are quantized per token."""

    name = "Qwen3 (4 blocks of 64), Python's text"

    def config(self, quant: Mapping[str, Any] | None) -> Config:
        shipped = load_config("hf_tiny")
        stage = {"model_name": "hf.full", "config": shipped.model_pipeline.pipeline[0].model_dump()["config"]}
        if quant is not None:
            activation = {**quant.get("activation", {}), "granularity": "per_token"}
            quant = {**quant, "activation": activation, "skip": shipped.quant.skip}
        body = super().config(quant).model_dump(exclude={"model_pipeline"})
        pipeline = {"pipeline": [stage], "microbatches": 1}
        return Config.model_validate({**body, "model_pipeline": pipeline})


TRAINED: dict[str, type[Work]] = {
    "digits": Digits,
    "digits16": LargerDigits,
    "text": Text,
    "hf_tiny": TinyQwen,
}


@dataclass(frozen=True)
class Exportable:
    """A model, the run that it is of, and held-out samples."""

    config: Config
    model: JoinedStages
    samples: list[Sample]


def trained(name: str, quant: Mapping[str, Any], effort: Effort) -> Exportable:
    """Quantization-aware training in one process; `effort.judged` held-out samples, images augmented."""
    work = TRAINED[name](effort, seed=0)
    config = work.config(quant)
    model = JoinedStages({config.stages[0]: one_process(work, quant)})
    source = open_source(config.data, seed=0)
    if isinstance(work, Digits):
        return Exportable(config, model, augmented_samples(work, list(source.heldout()), effort.judged))
    return Exportable(config, model, list(itertools.islice(source.heldout(), effort.judged)))


def augmented_samples(work: Work, heldout: list[Sample], count: int) -> list[Sample]:
    """Pictures as `Digits.judge` sees them, as samples: cut off at 0 and 1, as pictures are."""
    whole = work.task.collate(heldout)
    generator = torch.Generator().manual_seed(HELDOUT_SEED)
    samples: list[Sample] = []
    while len(samples) < count:
        images = ((augmented(whole.inputs["x"], generator) + 1) / 2).clamp(0, 1)
        labels = whole.labels["y"].tolist()
        samples += [{"image": i, "label": label} for i, label in zip(images, labels, strict=True)]
    return samples[:count]


def resnet(width: float, size: int) -> dict[str, Any]:
    """The configuration of a ResNet-18 for pictures of `size`."""
    stage = {"model_name": "resnet18.full", "num_classes": 10, "width": width}
    return {
        "data": {"dataset_name": "digits", "img_size": size, "num_channels": 1},
        "model_pipeline": {"pipeline": [stage]},
    }


def distilgpt2() -> dict[str, Any]:
    """Its shape (6 blocks of 768), for sequences of 128 bytes; 257 tokens, so that blocks are all it does."""
    shape = {"n_layer": 6, "n_embd": 768, "n_head": 12, "n_positions": 128, "vocab_size": 257}
    text = {"dataset_name": "python_docs", "task_type": "llm", "tokenizer": "bytes", "sequence_length": 128}
    stage = {"model_name": "distilgpt2.full", "dropout": 0.0, **shape}
    return {"data": text, "model_pipeline": {"pipeline": [stage]}}


UNTRAINED: dict[str, Callable[[], dict[str, Any]]] = {
    "resnet18 x 0.25, 32 px": lambda: resnet(0.25, 32),
    "resnet18, 16 px": lambda: resnet(1.0, 16),
    "resnet18, 32 px": lambda: resnet(1.0, 32),
    "distilgpt2, 128 tokens": distilgpt2,
}


@torch.no_grad()
def untrained(name: str, quant: Mapping[str, Any]) -> Exportable:
    """A model with random weights whose quantizers saw real samples: for speed, which asks for no more."""
    config = Config.model_validate({**UNTRAINED[name](), "quant": {"enabled": True, **quant}})
    module: nn.Module = build_module(config, config.stages[0]).train()
    samples = list(itertools.islice(open_source(config.data, seed=0).heldout(), CALIBRATION))
    module(*build_task(config).collate(samples).inputs.values())
    activate(module)
    return Exportable(config, JoinedStages({config.stages[0]: module}), samples)
