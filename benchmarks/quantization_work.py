"""What benchmarks/quantization.py trains: a ResNet on augmented digits, a small GPT on Python's own text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distqat.config import Config
from distqat.data.open_source import open_source
from distqat.distributed.assembly.stage_factory import build_task
from distqat.models import named_tensors
from distqat.tasks.base import Batch
from distqat.tasks.perturbations import moved_pictures as augmented

HELDOUT_SEED = 1797
FINAL = 0.01  # of the rate: so that scores of runs differ little by chance, and standing norms do no harm


@dataclass(frozen=True)
class Effort:
    """How much is trained and judged."""

    steps: int
    """Optimizer steps of one process."""
    replica_steps: int
    """Inner steps of each of the four replicas: about as many samples in all as one process sees."""
    inner_steps: int
    """Of a round."""
    judged: int
    """Held-out samples: augmented images, or sequences."""
    seeds: tuple[int, ...]
    validation: bool = False
    """Judge on the last fifth of the training part, which is not trained on: for choices.

    Figures come from the held-out part, which no choice has seen."""


@dataclass(frozen=True)
class Score:
    """Per held-out sample, so that two models can be compared in pairs: right (1 or 0), or its loss."""

    values: Tensor

    @property
    def mean(self) -> float:
        return float(self.values.mean())


class Work:
    """A model, its data, and how well it does."""

    name: str
    metric: str

    def __init__(self, effort: Effort, seed: int) -> None:
        self.effort, self.seed = effort, seed
        self._source = open_source(self.config(None).data, seed=seed)
        self.task = build_task(self.config(None))
        self._train = [item.sample for item in _all(self._source)]
        self._judged = list(self._source.heldout())
        if effort.validation:
            cut = len(self._train) * 4 // 5
            self._train, self._judged = self._train[:cut], self._train[cut:]

    def config(self, quant: Mapping[str, Any] | None) -> Config:
        """The run; `quant` None: in float."""
        raise NotImplementedError

    def batches(self, seed: int, count: int) -> Iterator[list[Batch]]:
        """`count` batches, one microbatch each; the same for the same seed."""
        raise NotImplementedError

    def judge(self, module: nn.Module) -> Score:
        """On the held-out part."""
        raise NotImplementedError

    def _config(self, body: Mapping[str, Any], quant: Mapping[str, Any] | None) -> Config:
        effort = self.effort
        rounds = {"inner_steps": effort.inner_steps, "outer_steps": effort.steps // effort.inner_steps}
        return Config.model_validate(
            {
                "experiment_prefix": "quantization",
                "seed": self.seed,
                **body,
                "diloco": {"averaging_timeout": 120.0, **rounds, **body["diloco"]},
                "quant": {"enabled": quant is not None, **(quant or {})},
            }
        )


class Digits(Work):
    """ResNet-18 of quarter width; each image is rotated, scaled, moved and noisy anew."""

    name, metric = "resnet18 x 0.25, augmented digits", "accuracy"
    size = 8

    def config(self, quant: Mapping[str, Any] | None) -> Config:
        body = {
            "data": {"dataset_name": "digits", "img_size": self.size, "num_channels": 1},
            "diloco": {
                "inner_optim": {"type": "adamw", "adam_lr": 2e-3},
                "lr_schedule": "cosine",
                "lr_final": FINAL,
                "warmup_steps": self.effort.steps // 20,
                "batch_size_per_step": 64,
            },
            "model_pipeline": {
                "pipeline": [{"model_name": "resnet18.full", "num_classes": 10, "width": 0.25}],
                "microbatches": 1,
            },
        }
        return self._config(body, quant)

    def batches(self, seed: int, count: int) -> Iterator[list[Batch]]:
        generator = torch.Generator().manual_seed(seed)
        whole = self.task.collate(self._train)
        for _ in range(count):
            chosen = torch.randint(len(self._train), (64,), generator=generator)
            x = augmented(whole.inputs["x"][chosen], generator)
            yield [Batch({"x": x}, {"y": whole.labels["y"][chosen]}, 64)]

    @torch.no_grad()
    def judge(self, module: nn.Module) -> Score:
        module.eval()
        whole = self.task.collate(self._judged)
        generator, right, left = torch.Generator().manual_seed(HELDOUT_SEED), [], self.effort.judged
        while left > 0:
            x, y = augmented(whole.inputs["x"], generator)[:left], whole.labels["y"][:left]
            right.append((module(x).argmax(1) == y).float())
            left -= len(y)
        return Score(torch.cat(right))


class Text(Work):
    """A GPT-2 of two blocks, byte by byte."""

    name, metric = "GPT-2 (2 blocks of 64), Python's text", "loss"
    length = 64

    def config(self, quant: Mapping[str, Any] | None) -> Config:
        shape = {"n_layer": 2, "n_embd": 64, "n_head": 4, "n_positions": self.length, "vocab_size": 257}
        body = {
            "data": {
                "dataset_name": "python_docs",
                "task_type": "llm",
                "tokenizer": "bytes",
                "sequence_length": self.length,
            },
            "diloco": {
                "inner_optim": {"type": "adamw", "adam_lr": 3e-3},
                "lr_schedule": "cosine",
                "lr_final": FINAL,
                "warmup_steps": self.effort.steps // 20,
                "batch_size_per_step": 16,
                "max_grad_norm": 1.0,
            },
            "model_pipeline": {
                "pipeline": [{"model_name": "distilgpt2.full", "dropout": 0.0, **shape}],
                "microbatches": 1,
            },
        }
        return self._config(body, quant)

    def batches(self, seed: int, count: int) -> Iterator[list[Batch]]:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(count):
            chosen = torch.randint(len(self._train), (16,), generator=generator).tolist()
            yield [self.task.collate([self._train[index] for index in chosen])]

    @torch.no_grad()
    def judge(self, module: nn.Module) -> Score:
        module.eval()
        samples = self._judged[: self.effort.judged]
        losses = []
        for start in range(0, len(samples), 32):
            batch = self.task.collate(samples[start : start + 32])
            logits_BSV = next(iter(named_tensors(module(*batch.inputs.values())).values()))
            for logits_SV, labels in zip(logits_BSV, _rows(batch.labels), strict=True):
                losses.append(self.task.loss({"x": logits_SV[None]}, labels))
        return Score(torch.stack(losses))


def paired(one: Sequence[Score], other: Sequence[Score]) -> tuple[float, float]:
    """(mean of other - one, half of its 95 % interval) over the samples of all seeds."""
    difference = torch.cat([b.values - a.values for a, b in zip(one, other, strict=True)])
    spread = float(difference.std()) / math.sqrt(max(len(difference), 1))
    return float(difference.mean()), 1.96 * spread


def _rows(labels: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    count = len(next(iter(labels.values())))
    for row in range(count):
        yield {name: tensor[row : row + 1] for name, tensor in labels.items()}


def _all(source: Any) -> Iterator[Any]:
    """One epoch."""
    while True:
        items = source.take(256)
        if not items or items[0].epoch > 0:
            return
        yield from (item for item in items if item.epoch == 0)
