"""Outputs of the exported model beside those of the fake-quantized one, added up over held-out batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from distqat.tasks import Batch, Sample, Task

NO_LABEL = -100
CLOSE = 2 / 255
"""Outputs without classes (images) agree where they differ by at most this share of their range."""


class RunsModel(Protocol):
    """Named inputs to named outputs, as tasks want them."""

    def __call__(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The whole model in eval mode."""


@dataclass
class OutputAgreement:
    """Sums over batches; `places` are samples, or labelled places of sequences."""

    places: int = 0
    same: int = 0
    largest_error: float = 0.0
    error_sum: float = 0.0
    numbers: int = 0
    spread: float = 0.0
    """The largest absolute output of the fake-quantized model, what errors compare to."""

    @property
    def share(self) -> float:
        """Share of places where both give the same answer; 1 of nothing."""
        return self.same / self.places if self.places else 1.0

    @property
    def mean_error(self) -> float:
        """Mean absolute difference of the outputs, in their own unit; 0 before the first batch."""
        return self.error_sum / self.numbers if self.numbers else 0.0

    def add(self, expected: Tensor, found: Tensor, labels: Mapping[str, Tensor]) -> None:
        """One batch of outputs of the fake-quantized and of the exported model."""
        expected, found = overlapping(expected.double(), found.double())
        error = (expected - found).abs()
        self.largest_error = max(self.largest_error, float(error.max()) if error.numel() else 0.0)
        self.error_sum += float(error.sum())
        self.numbers += error.numel()
        self.spread = max(self.spread, float(expected.abs().max()) if error.numel() else 0.0)
        if expected.dim() in (2, 3):
            same = expected.argmax(-1) == found.argmax(-1)
            wanted = [y for y in labels.values() if y.shape == same.shape and not y.is_floating_point()]
            if wanted:
                same = same[wanted[0] != NO_LABEL]
        else:
            same = error <= CLOSE * (expected.max() - expected.min())
        self.places += same.numel()
        self.same += int(same.sum())


@dataclass(frozen=True)
class FloatAnswers:
    """The fake-quantized model beside the same weights without quantization."""

    agreement: float
    """Share of the places where both give the same answer."""
    places: int
    points: tuple[tuple[float, float], ...]
    """Some outputs: (float, quantized)."""


def overlapping(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """What both have: a model may cut padding off that the exported one keeps; it is at the end."""
    sizes = [min(pair) for pair in zip(one.shape, other.shape, strict=True)]
    for dim, size in enumerate(sizes):
        one, other = one.narrow(dim, 0, size), other.narrow(dim, 0, size)
    return one, other


@dataclass
class Scores:
    """The task's metric of several models on the same samples."""

    agreement: OutputAgreement
    metrics: dict[str, float]
    samples: int


@dataclass
class _Totals:
    sums: dict[str, float] = field(default_factory=dict)

    def add(self, score: Mapping[str, float]) -> None:
        for name, value in score.items():
            self.sums[name] = self.sums.get(name, 0.0) + value


@torch.no_grad()
def compare(
    task: Task,
    samples: Sequence[Sample],
    batches: Iterable[Batch],
    models: Mapping[str, RunsModel],
    *,
    reference: str,
    exported: str,
) -> Scores:
    """Run all models on all batches. `reference` and `exported` name the two whose outputs are compared."""
    agreement, count = OutputAgreement(), 0
    totals = {name: _Totals() for name in models}
    for batch in batches:
        outputs = {name: model(batch.inputs) for name, model in models.items()}
        first = next(iter(outputs[reference]))
        agreement.add(outputs[reference][first], outputs[exported][first], batch.labels)
        count += batch.size
        if not task.judges:
            for name, output in outputs.items():
                totals[name].add(task.score(output, batch.labels))
    if task.judges:
        return Scores(agreement, {n: float(task.judge(samples, m)[0]) for n, m in models.items()}, count)
    metrics = {name: task.summarize(total.sums) for name, total in totals.items()}
    return Scores(agreement, metrics, count)
