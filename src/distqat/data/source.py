"""Where samples come from: one endless, repeatable order over the epochs of a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from distqat.data.options import DataOptions
from distqat.errors import DataError
from distqat.registration import enter
from distqat.tasks.base import Sample


@dataclass(frozen=True)
class Item:
    """A sample and its place: `index` counts within the epoch, in the order of training."""

    epoch: int
    index: int
    sample: Sample

    @property
    def place(self) -> tuple[int, int]:
        """What items are ordered by."""
        return self.epoch, self.index


class Source(Protocol):
    """Samples in an order fixed by the seed; each once per epoch. Not thread-safe.

    Every method may raise DataError; a HubUnavailable leaves the position as it was, so one may try again.
    """

    @property
    def order(self) -> str:
        """Names the order; a position is valid only for the order that it was taken from."""

    def take(self, count: int) -> list[Item]:
        """The next 1 to `count` items; goes on with the next epoch, never ends."""

    def state(self) -> dict[str, int]:
        """`{"epoch", "index"}` of the next item."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to a position; the next item is the one that `state` names."""

    def heldout(self) -> Iterable[Sample]:
        """The part that is never trained on: the same samples whatever the seed."""


@runtime_checkable
class NamesClasses(Protocol):
    """A source whose labels are numbers of classes that have names."""

    @property
    def classes(self) -> Sequence[str]:
        """By number; empty where nobody names them."""


def class_names(source: Source) -> list[str]:
    """The names of a source's classes by number; empty where it does not tell."""
    return [str(name) for name in source.classes] if isinstance(source, NamesClasses) else []


class NoData:
    """The source of a task that makes its batches by acting: nothing to train on, nothing held out."""

    order = "none"

    def take(self, count: int) -> list[Item]:
        """Raises DataError: such a task never asks for samples."""
        raise DataError("this task has no data set; its trainers make their batches by playing")

    def state(self) -> dict[str, int]:
        """Always the beginning."""
        return {"epoch": 0, "index": 0}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing to go to."""

    def heldout(self) -> Iterable[Sample]:
        """Empty."""
        return ()


Opener = Callable[[DataOptions, int], Source]
"""`(data section, seed) -> source`; may raise DataError."""

DATASETS: dict[str, Opener] = {}
"""Data sets that `data.dataset_name` may name, besides those of the hub and of folders."""


def register_dataset(name: str) -> Callable[[Opener], Opener]:
    """Make a data set known by name; decorates what opens it. The same opener may be registered again.

    Raises DataError when another one has the name already.
    """

    def register(opener: Opener) -> Opener:
        enter(DATASETS, name, opener, kind="data set", error=DataError)
        return opener

    return register


def parse_place(state: Mapping[str, Any]) -> tuple[int, int]:
    """`(epoch, index)` of a saved position; DataError for anything else."""
    epoch, index = state.get("epoch"), state.get("index")
    if not (isinstance(epoch, int) and isinstance(index, int) and epoch >= 0 and index >= 0):
        raise DataError(f"a data position needs epoch and index, both >= 0; found {dict(state)!r}")
    return epoch, index
