"""The edge to code that decodes, collates and reads samples: whatever it raises becomes a DataError.

A file may be damaged, and a task or a data set may be a plugin's, so anything can be raised, and the same
samples will raise it again. It is told as one sentence that names the sample, and nobody waits for an answer.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from distqat.data.rows import origin_of
from distqat.data.source import Item, Source
from distqat.errors import ConfigError, DataError, DistqatError
from distqat.failpoints import failpoint
from distqat.failures import describe
from distqat.tasks.base import Batch, Place, Sample, Task

log = logging.getLogger(__name__)

ADDRESS = re.compile(r" at 0x[0-9a-f]+")
RAISED = (Exception, SystemExit)
"""What code of others may raise; a thread of ours would hand SystemExit on, and end the wrong program."""


def batch_of(task: Task, samples: Sequence[Sample], places: Sequence[Place] | None = None) -> Batch:
    """The task's batch of `samples`; `places` tell where samples to train on were taken.

    Raises:
        DataError: it cannot be made; names the first sample that cannot be collated alone, and why.
        MissingExtra: a package that decoding needs is not installed.
    """
    try:
        return _collated(task, samples, places)
    except ConfigError:
        raise
    except RAISED as error:
        log.debug("a batch cannot be made", exc_info=True)
        raise DataError(_blame(task, samples, places, error)) from error


def read_from(source: Source, count: int) -> list[Item]:
    """`source.take(count)`, at least one item. Raises DataError that says where the source stood."""
    try:
        items = source.take(count)
        if not items or not isinstance(items, Sequence) or not all(isinstance(i, Item) for i in items):
            raise TypeError(f"take({count}) gave {_kind(items)}, not a list of 1 to {count} items")
        return items
    except (DataError, ConfigError):
        raise
    except RAISED as error:
        log.debug("samples cannot be read", exc_info=True)
        state = source.state()
        where = f"sample {state.get('index')} of epoch {state.get('epoch')} of {source.order}"
        raise DataError(f"{where} cannot be read: {told(error)}") from error


def restore(source: Source, state: Mapping[str, Any]) -> None:
    """`source.restore(state)`. Raises DataError."""
    try:
        source.restore(state)
    except (DataError, ConfigError):
        raise
    except RAISED as error:
        raise DataError(f"the data position cannot be taken up again: {told(error)}") from error


def heldout_of(source: Source) -> Iterator[Sample]:
    """`source.heldout()`. What it raises becomes a DataError that names the number of the sample."""
    number = 0
    try:
        for sample in source.heldout():
            yield sample
            number += 1
    except DistqatError:
        raise
    except RAISED as error:
        raise DataError(f"held-out sample {number} (from 0) cannot be read: {told(error)}") from error


def told(error: BaseException) -> str:
    """`failures.describe` without addresses in memory: the same failure gives the same sentence."""
    return ADDRESS.sub("", describe(error))[:500]


def _collated(task: Task, samples: Sequence[Sample], places: Sequence[Place] | None) -> Batch:
    failpoint("data.collate")
    batch = task.collate(samples) if places is None else task.collate_at(samples, places)
    if not isinstance(batch, Batch):
        raise TypeError(f"collate of the task {task.name!r} gave {_kind(batch)}, not a Batch")
    for named in (batch.inputs, batch.labels):
        if not isinstance(named, Mapping) or not all(
            isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in named.items()
        ):
            raise TypeError(f"inputs and labels of a batch are tensors by name, not {_kind(named)}")
    if type(batch.size) is not int or batch.size < 1:
        raise TypeError(f"the size of a batch is a number of samples, not {_kind(batch.size)}")
    return batch


def _blame(
    task: Task, samples: Sequence[Sample], places: Sequence[Place] | None, error: BaseException
) -> str:
    """The sample that fails alone, and how; where none does, that they fail together."""
    names = [_name(sample, number, places) for number, sample in enumerate(samples)]
    for number, sample in enumerate(samples):
        try:
            _collated(task, [sample], None if places is None else places[number : number + 1])
        except RAISED as alone:
            ours = isinstance(alone, DistqatError)
            doing = "" if ours else f"the task {task.name!r} cannot make a batch of it: "
            return f"{names[number]}: {doing}{told(alone)}"
    if not samples:
        return told(error)
    return f"the samples from {names[0]} to {names[-1]} make no batch together: {told(error)}"


def _name(sample: Sample, number: int, places: Sequence[Place] | None) -> str:
    """A sample by its origin; where its source does not say, by its place in the order of training."""
    origin = origin_of(sample)
    if origin:
        return origin
    if places is None:
        return f"sample {number} of a batch (from 0)"
    epoch, index = places[number]
    return f"sample {index} of epoch {epoch} (in the order of training, from 0)"


def _kind(value: object) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {str(value)[:60]}"
