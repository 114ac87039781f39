"""The metric of a task on the held-out part of its data."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from distqat.tasks.base import Forward, Judging, Sample, Task

BATCH = 256
TOKENS = 4096  # of language models; logits of a large vocabulary take 200 kB each


def evaluate(task: Task, heldout: Iterable[Sample], forward: Forward) -> tuple[float, float, int]:
    """Metric, mean loss and number of the samples in `heldout`."""
    if isinstance(task, Judging):
        return task.judge(heldout, forward)
    totals: dict[str, float] = {}
    loss = 0.0
    at_once = max(1, min(BATCH, TOKENS // getattr(task, "sequence_length", 1)))
    for samples in _batched(heldout, at_once):
        batch = task.collate(samples)
        outputs = forward(batch.inputs)
        loss += float(task.loss(outputs, batch.labels)) * batch.size
        for name, value in task.score(outputs, batch.labels).items():
            totals[name] = totals.get(name, 0.0) + value
    count = int(totals.get("count", 0))
    return task.summarize(totals), loss / max(count, 1), count


def _batched(samples: Iterable[Sample], count: int) -> Iterator[list[Sample]]:
    iterator = iter(samples)
    while batch := list(itertools.islice(iterator, count)):
        yield batch
