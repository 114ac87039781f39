"""The metric of a task on the held-out part of its data."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping

from torch import Tensor

from distqat.tasks.base import Sample, Task

Forward = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
BATCH = 256


def evaluate(task: Task, heldout: Iterable[Sample], forward: Forward) -> tuple[float, float, int]:
    """Metric, mean loss and number of the samples in `heldout`."""
    totals: dict[str, float] = {}
    loss = 0.0
    for samples in _batched(heldout):
        batch = task.collate(samples)
        outputs = forward(batch.inputs)
        loss += float(task.loss(outputs, batch.labels)) * batch.size
        for name, value in task.score(outputs, batch.labels).items():
            totals[name] = totals.get(name, 0.0) + value
    count = int(totals.get("count", 0))
    return task.summarize(totals), loss / max(count, 1), count


def _batched(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    iterator = iter(samples)
    while batch := list(itertools.islice(iterator, BATCH)):
        yield batch
