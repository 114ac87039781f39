"""Data sets that come with an installed package, so that training needs no network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from distqat.data.options import DataOptions
from distqat.data.order import permutation
from distqat.data.rows import LeftOut
from distqat.data.source import Item, parse_place
from distqat.errors import DataError
from distqat.tasks.base import Sample

SPLIT_SEED = 1797  # fixed: the held-out part must not depend on the run's seed
HELDOUT_SHARE = 0.2


class EmbeddedSource:
    """Samples that lie in memory, in a new order every epoch."""

    def __init__(
        self,
        name: str,
        train: Sequence[Sample],
        heldout: Sequence[Sample],
        *,
        seed: int,
        classes: Sequence[str] = (),
    ) -> None:
        """`classes` are their names by number, where they have names."""
        self.name = name
        self.classes = tuple(classes)
        self.seed = seed
        self.left_out: tuple[LeftOut, ...] = (LeftOut("samples", len(train) + len(heldout)),)
        self.complete = True
        self._train = train
        self._heldout = heldout
        self._epoch = 0
        self._index = 0
        self._order = permutation(seed, 0, 0, len(train))

    @property
    def order(self) -> str:
        """Name of the data, seed and number of training samples."""
        return f"{self.name} seed={self.seed} samples={len(self._train)}"

    def take(self, count: int) -> list[Item]:
        """The next 1 to `count` samples of this epoch; at its end the next one begins."""
        if self._index == len(self._train):
            self._go_to(self._epoch + 1, 0)
        chosen = self._order[self._index : self._index + count]
        items = [Item(self._epoch, self._index + i, self._train[at]) for i, at in enumerate(chosen)]
        self._index += len(items)
        return items

    def state(self) -> dict[str, int]:
        """`{"epoch", "index"}` of the next sample."""
        return {"epoch": self._epoch, "index": self._index}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to a position; DataError for one that is outside the data."""
        epoch, index = parse_place(state)
        if index > len(self._train):
            raise DataError(
                f"{self.name} has {len(self._train)} training samples; position {index} is outside"
            )
        self._go_to(epoch, index)

    def heldout(self) -> Iterable[Sample]:
        """The samples that are never trained on, the same for every seed."""
        return self._heldout

    def _go_to(self, epoch: int, index: int) -> None:
        if epoch != self._epoch:
            self._order = permutation(self.seed, epoch, 0, len(self._train))
        self._epoch, self._index = epoch, index


def check_split(options: DataOptions) -> None:
    """DataError for a split or a configuration that no embedded set has."""
    if options.dataset_split != "train" or options.dataset_config is not None:
        raise DataError(
            f"the embedded data set {options.dataset_name!r} has one split, 'train', and no configurations; "
            "its held-out part is used for evaluation by itself"
        )


def held_out(options: DataOptions, samples: Sequence[Sample], *, seed: int) -> EmbeddedSource:
    """`samples` cut into a training and a fixed held-out part."""
    check_split(options)
    shuffled = permutation(SPLIT_SEED, 0, 0, len(samples))
    cut = int(len(samples) * HELDOUT_SHARE)
    heldout = [samples[i] for i in shuffled[:cut]]
    return EmbeddedSource(options.dataset_name, [samples[i] for i in shuffled[cut:]], heldout, seed=seed)
