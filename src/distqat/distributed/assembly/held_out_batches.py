"""Batches of the held-out part: looked at before a run begins, and when it is judged."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

from distqat.config import Config
from distqat.data.reading_errors import batch_of, heldout_of
from distqat.data.source import Source
from distqat.data.sources.sample_stream import LANGUAGE_TASKS
from distqat.errors import DataError, DistqatError
from distqat.tasks.base import Batch, Sample, Task

BATCH = 256
TOKENS = 4096  # of language models; logits of a large vocabulary take 200 kB each
FIRST_LOOK = 32  # samples that are looked at before a run begins


def heldout_batches(task: Task, heldout: Iterable[Sample]) -> Iterator[Batch]:
    """All of it, as many samples at once as the task takes. Raises DataError naming a broken sample."""
    iterator, size, first = iter(heldout), _at_once(task), 1
    while samples := list(itertools.islice(iterator, size)):
        yield collate(task, samples, first)
        first += len(samples)


def check_heldout(config: Config, task: Task, source: Source) -> None:
    """Raises DataError, TaskError unless the held-out part gives a batch: else the end of the run fails."""
    name = config.data.dataset_name
    samples = list(itertools.islice(heldout_of(source), min(FIRST_LOOK, _at_once(task))))
    if not samples:
        raise DataError(
            f"the held-out part of {name!r} is empty, so nothing could judge the model: {_fix(config)}"
        )
    collate(task, samples, 1)


def heldout_problem(config: Config, task: Task, source: Source) -> DistqatError | None:
    """What `check_heldout` raises: for who looks before it uses the source, which is not thread-safe."""
    try:
        check_heldout(config, task, source)
    except DistqatError as error:
        return error
    return None


def collate(task: Task, samples: Sequence[Sample], first: int) -> Batch:
    """A batch; `first` is the number of its first sample, from 1. Raises DataError naming the broken one."""
    try:
        return batch_of(task, samples)
    except DataError as error:
        last = first + len(samples) - 1
        raise DataError(f"held-out samples {first} to {last} (from 1): {error}") from error


def _at_once(task: Task) -> int:
    return task.heldout_batch or max(1, min(BATCH, TOKENS // getattr(task, "sequence_length", 1)))


def _fix(config: Config) -> str:
    if config.data.task_type in LANGUAGE_TASKS:
        return (
            f"it must hold a sequence of data.sequence_length {config.data.sequence_length} tokens; add text "
            "to it, or shorten the sequences"
        )
    return "add samples to it, or a folder or file named validation or test"
